//! Resident memory with 100 layers of 20,000 files mounted.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::indexed_image;
use crate::content::Layer;
use crate::lab::{Lab, Mounted};
use crate::report::{Goal, Report, Row};

const LAYERS: u64 = 100;
const FILES: usize = 20_000;
const LIMIT_MIB: f64 = 64.0;
/// Long enough for several turns of every buffer; the promise speaks of an hour.
const READING: Duration = Duration::from_secs(60);

pub(super) fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let (layout, ..) = hundred_layers(lab)?;
    let dir = lab.dir("memory")?;
    let image = format!("oci:{}:latest", layout.display());
    let mounted = Mounted::new(lab, &dir, &image, &["--memory-limit", "64M", "--no-background"])?;
    let idle = mounted.resident_bytes()? as f64 / f64::from(1 << 20);
    let row = |what: String, value, goal| Row { promise: "memory", what, value, unit: "MiB", goal };
    report.row(&row(
        format!("RSS idle, {LAYERS} layers of {FILES} files, limit {LIMIT_MIB} MiB"),
        idle,
        Goal::AtMost(64.0 + LIMIT_MIB),
    ))?;
    let read_for = |period: Duration, seed: u64| -> Result<()> {
        let end = Instant::now() + period;
        let mut state = seed;
        let mut buffer = [0; 200];
        while Instant::now() < end {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (number, file) = ((state >> 33) % LAYERS, (state >> 40) as usize % FILES);
            let path = format!("layer-{number:02}/{:03}/{file:05}", file / 100);
            File::open(mounted.root.join(path))?.read_exact_at(&mut buffer, 0)?;
        }
        Ok(())
    };
    read_for(READING / 2, 1)?;
    let half = mounted.resident_bytes()? as f64 / f64::from(1 << 20);
    read_for(READING / 2, 2)?;
    let full = mounted.resident_bytes()? as f64 / f64::from(1 << 20);
    let seconds = READING.as_secs();
    report.row(&row(
        format!("RSS after {seconds} s of random reads"),
        full,
        Goal::AtMost(64.0 + LIMIT_MIB),
    ))?;
    report.row(&row("growth over the second half".into(), full - half, Goal::AtMost(4.0)))
}

/// An image of many layers with many files; how many layers, and files in each.
pub(super) fn hundred_layers(lab: &Lab) -> Result<(PathBuf, u64, usize)> {
    let layout = indexed_image(lab, "hundred-layers", || {
        Ok((0..LAYERS).map(|number| {
            let mut layer = Layer::new(1000 + number);
            for file in 0..FILES {
                let path = format!("layer-{number:02}/{:03}/{file:05}", file / 100);
                // nothing to do but panic: memory is the only thing that can fail here
                layer.file(&path, 200).unwrap_or_else(|error| panic!("{path}: {error}"));
            }
            layer
        }))
    })?;
    Ok((layout, LAYERS, FILES))
}
