//! Resident memory with 100 layers of 20,000 files mounted.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::indexed_image;
use crate::content::Layer;
use crate::lab::{Lab, Mounted, drop_caches};
use crate::report::{Goal, Report, Row};

const LAYERS: u64 = 100;
const FILES: usize = 20_000;
const LIMIT_MIB: f64 = 64.0;
const SETTLING: Duration = Duration::from_secs(5);
/// So often the kernel forgets what was read: then reads come to the process again.
const FORGETTING: Duration = Duration::from_secs(5);

pub(super) fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let (layout, ..) = hundred_layers(lab)?;
    let dir = lab.dir("memory")?;
    let image = format!("oci:{}:latest", layout.display());
    let mounted = Mounted::new(lab, &dir, &image, &["--memory-limit", "64M", "--no-background"])?;
    let peak = mounted.peak_bytes()? as f64 / f64::from(1 << 20);
    // Memory of the mount itself is given back a second later.
    std::thread::sleep(SETTLING);
    let idle = mounted.resident_bytes()? as f64 / f64::from(1 << 20);
    let row = |what: String, value, goal| Row { promise: "memory", what, value, unit: "MiB", goal };
    report.row(&row(
        format!("RSS idle, {LAYERS} layers of {FILES} files, limit {LIMIT_MIB} MiB"),
        idle,
        Goal::AtMost(64.0 + LIMIT_MIB),
    ))?;
    report.row(&row("peak while mounting".into(), peak, Goal::AtMost(64.0 + LIMIT_MIB)))?;
    let read_for = |period: Duration, seed: u64| -> Result<()> {
        let (end, mut forget_at) = (Instant::now() + period, Instant::now());
        let mut state = seed;
        let mut buffer = [0; 200];
        while Instant::now() < end {
            if Instant::now() >= forget_at {
                drop_caches()?;
                forget_at += FORGETTING;
            }
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (number, file) = ((state >> 33) % LAYERS, (state >> 40) as usize % FILES);
            let path = format!("layer-{number:02}/{:03}/{file:05}", file / 100);
            File::open(mounted.root.join(path))?.read_exact_at(&mut buffer, 0)?;
        }
        Ok(())
    };
    // Some for every buffer to be made.
    read_for(lab.soak / 4, 1)?;
    let early = mounted.resident_bytes()? as f64 / f64::from(1 << 20);
    read_for(lab.soak - lab.soak / 4, 2)?;
    let full = mounted.resident_bytes()? as f64 / f64::from(1 << 20);
    let minutes = lab.soak.as_secs_f64() / 60.0;
    report.row(&row(
        format!("RSS after {minutes} min of random reads"),
        full,
        Goal::AtMost(64.0 + LIMIT_MIB),
    ))?;
    report.row(&row("growth since a quarter of it".into(), full - early, Goal::AtMost(4.0)))
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
