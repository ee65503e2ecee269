//! `soci create` of an image in containerd against two passes of zlib over its layers, which is what the
//! field's tool needs at least: one to inflate, one to find restart points.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use spanfs_registry::Link;

use super::{places, serve, subject};
use crate::bench::{Scratch, Site, Stop, session};
use crate::content::{self, Layer};
use crate::lab::{Lab, run as run_command, seconds};
use crate::report::{Goal, Report, Row};
use crate::statistics::median;

/// Of about 100 MB of gzip each.
const LAYERS: u64 = 4;
const FILES: usize = 250;
const FILE: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(300);

/// zlib itself, with as little around it as a script can have.
const ZLIB: &str = "
import sys, time, zlib
start = time.perf_counter()
for path in sys.argv[1:]:
    inflate, file = zlib.decompressobj(31), open(path, 'rb')
    while piece := file.read(1 << 20):
        inflate.decompress(piece)
print(time.perf_counter() - start)
";

pub(super) fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let layout = lab.scratch.join("images/four-hundred-megabytes");
    if !layout.join("oci-layout").exists() {
        let layer = |number| {
            let mut layer = Layer::new(number);
            (0..FILES).try_for_each(|file| layer.file(&format!("{number}/{file}"), FILE))?;
            Ok(layer)
        };
        content::write_layout(&layout, (1..=LAYERS).map(layer).collect::<Result<Vec<_>>>()?)?;
    }
    let (layers, bytes) = layers(&layout)?;
    let (scratch, stop) = (Scratch::open(&lab.scratch)?, Stop::on_signals()?);
    let (registry, _) = serve(&layout, Link::UNLIMITED)?;
    let site = Site::start(&scratch, &registry, &stop)?;
    let _containerd = session(&site, &subject(lab, "overlayfs")?)?;
    let reference = format!("{}/perf:latest", Site::host());
    let places = places(lab);
    let programs: Vec<_> = places.containerd.into_iter().chain([places.spanfs]).collect();
    let client = |words: &[&str]| -> Result<String> {
        let mut command = site.command("client", &programs)?;
        Ok(site.run(command.args(words).arg(&reference), PATIENCE)?.stdout)
    };
    client(&["ctr", "content", "fetch", "--plain-http"])?;
    let (mut ratios, mut last) = (Vec::new(), (0.0, 0.0));
    for _ in 0..lab.runs {
        let said = run_command(Command::new("python3").args(["-c", ZLIB]).args(&layers))?;
        let pass: f64 = said.trim().parse().context("seconds of a pass of zlib")?;
        let ours = seconds(|| {
            let said = client(&["soci", "create", "--force", "--min-layer-size", "0"])?;
            ensure!(said.lines().count() == layers.len(), "{said}");
            Ok(())
        })?;
        ratios.push(ours / (2.0 * pass));
        last = (ours, pass);
    }
    let ((ours, pass), size) = (last, bytes / 1_000_000);
    report.row(&Row {
        promise: "soci-create",
        what: format!("{size} MB, 4 layers: {ours:.1} s, a pass of zlib {pass:.1} s"),
        value: median(&ratios).context("no run")?,
        unit: "x",
        goal: Goal::AtMost(0.5),
    })
}

/// The layers of a layout, and their bytes.
fn layers(layout: &std::path::Path) -> Result<(Vec<PathBuf>, u64)> {
    let (mut paths, mut bytes) = (Vec::new(), 0);
    for blob in fs::read_dir(layout.join("blobs/sha256"))? {
        let blob = blob?;
        let len = blob.metadata()?.len();
        if len > FILE as u64 {
            paths.push(blob.path());
            bytes += len;
        }
    }
    Ok((paths, bytes))
}
