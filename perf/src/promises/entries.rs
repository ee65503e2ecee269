//! Mount of a layer with 200,000 entries: index not yet made, and made.

use anyhow::Result;

use super::indexed_image;
use crate::content::Layer;
use crate::lab::{Lab, Mounted};
use crate::report::{Goal, Report, Row};

const ENTRIES: usize = 200_000;

pub(super) fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let name = |layout: &std::path::Path| format!("oci:{}:latest", layout.display());
    let large = indexed_image(lab, "many-entries", || {
        let mut layer = Layer::new(5);
        for number in 0..ENTRIES {
            layer.file(&format!("usr/lib/{:04}/{number:06}", number / 100), 0)?;
        }
        Ok([layer])
    })?;
    let tiny = indexed_image(lab, "one-entry", || {
        let mut layer = Layer::new(6);
        layer.file("only", 0)?;
        Ok([layer])
    })?;
    // A mount of next to nothing shows what the command itself costs: process, cache, kernel.
    let mount = |image: &str, forget: bool| -> Result<f64> {
        let dir = lab.scratch.join("entries");
        if forget {
            lab.dir("entries")?;
        }
        let mounted = Mounted::new(lab, &dir, image, &["--no-background"])?;
        Ok(mounted.took.as_secs_f64() * 1e3)
    };
    let (large, tiny) = (name(&large), name(&tiny));
    let floor_cold = lab.median(|| mount(&tiny, true))?;
    let floor = lab.median(|| mount(&tiny, false))?;
    let cold = lab.median(|| mount(&large, true))?;
    let made = lab.median(|| mount(&large, false))?;
    let row = |what: &str, value, goal| Row {
        promise: "entries",
        what: what.to_owned(),
        value,
        unit: "ms",
        goal,
    };
    report.row(&row("the command with a layer of one entry", floor, Goal::None))?;
    report.row(&row(
        "200,000 entries, zTOC local, index not made (command less floor)",
        cold - floor_cold,
        Goal::AtMost(400.0),
    ))?;
    report.row(&row(
        "200,000 entries, index made (command less floor)",
        made - floor,
        Goal::AtMost(10.0),
    ))
}
