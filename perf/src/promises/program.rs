//! Start of a program that touches most of its image: a large Python wheel is imported.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use spanfs_registry::Link;

use super::{index, serve};
use crate::lab::{Lab, run as run_command, seconds};
use crate::report::{Goal, Report, Row};

/// Bytes that come out of one compressed byte of this image, and what one core inflates a second; both
/// only turn the bytes touched into the time that fetching and inflating them takes.
const INFLATE_RATIO: f64 = 3.3;
const INFLATE_BYTES_PER_SECOND: f64 = 480e6;

/// What the starts of one round took.
struct Round {
    cold: f64,
    traced: f64,
    warm: f64,
    /// Compressed bytes on the link.
    fetched: f64,
    fetched_traced: f64,
    /// Uncompressed bytes of the spans that the first start has read.
    touched: f64,
}

pub(super) fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let plain = lab.images.join("python-ml");
    ensure!(
        plain.join("oci-layout").exists(),
        "{} is not there: perf/images/build python-ml {}",
        plain.display(),
        lab.images.display()
    );
    let layout = index(lab, &plain, "python-ml")?;
    let rounds = (0..lab.runs).map(|_| round(lab, &layout)).collect::<Result<Vec<_>>>()?;
    let median = |of: fn(&Round) -> f64| {
        let mut values: Vec<_> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().context("no run")
    };
    let (cold, traced, warm) =
        (median(|it| it.cold)?, median(|it| it.traced)?, median(|it| it.warm)?);
    let touched = median(|it| it.touched)?;
    let floor = floor(touched)?;
    let (fetched, fetched_traced) = (median(|it| it.fetched)?, median(|it| it.fetched_traced)?);
    for (what, value, unit, goal) in [
        ("warm: everything local", warm, "s", Goal::None),
        ("first start, cold", cold, "s", Goal::None),
        ("compressed bytes fetched by the first start", fetched / 1e6, "MB", Goal::None),
        ("start with a trace, cold", traced, "s", Goal::None),
        ("compressed bytes fetched with a trace", fetched_traced / 1e6, "MB", Goal::None),
        ("uncompressed bytes of the spans touched", touched / 1e6, "MB", Goal::None),
        (
            "(first start - warm) / max(link, inflate)",
            (cold - warm) / floor,
            "x",
            Goal::AtMost(1.6),
        ),
        (
            "(start with a trace - warm) / max(link, inflate)",
            (traced - warm) / floor,
            "x",
            Goal::AtMost(1.2),
        ),
    ] {
        report.row(&Row { promise: "program", what: what.to_owned(), value, unit, goal })?;
    }
    Ok(())
}

/// A first start, one that knows what it has read, and one with everything local.
fn round(lab: &Lab, layout: &Path) -> Result<Round> {
    let dir = lab.dir("program")?;
    let (registry, reference) = serve(layout, Link::CLOUD)?;
    let start = || -> Result<f64> {
        lab.forget_all_but(layout)?;
        registry.reset_stats();
        seconds(|| {
            let said = run_command(lab.spanfs(&dir).args(["run", &reference]))?;
            ensure!(said.contains("ready"), "the program said {said:?}");
            Ok(())
        })
    };
    let fetched = || registry.stats().blob_bytes() as f64;
    let (cold, of_cold, touched) = (start()?, fetched(), touched_bytes(&dir)?);
    // Only the trace is kept.
    fs::remove_dir_all(dir.join("cache/layers")).context("forgetting the layers")?;
    let (traced, of_traced) = (start()?, fetched());
    // Everything local, and in the page cache: what the program itself needs.
    complete(lab, &dir, &reference)?;
    run_command(lab.spanfs(&dir).args(["run", &reference]))?;
    let warm = seconds(|| run_command(lab.spanfs(&dir).args(["run", &reference])).map(drop))?;
    Ok(Round { cold, traced, warm, fetched: of_cold, fetched_traced: of_traced, touched })
}

/// The link and the cores would need this long for what the program touches.
fn floor(touched: f64) -> Result<f64> {
    let cores = std::thread::available_parallelism()?.get() as f64;
    let rate = Link::CLOUD.bytes_per_second.map_or(f64::INFINITY, |rate| rate as f64);
    let link = touched / INFLATE_RATIO / rate;
    Ok(link.max(touched / (INFLATE_BYTES_PER_SECOND * cores)))
}

/// Bytes of the spans that a start has read first: those of the trace that it left.
fn touched_bytes(dir: &Path) -> Result<f64> {
    let traces = fs::read_dir(dir.join("cache/traces/sha256"))?;
    let trace = traces.flatten().next().context("the start left no trace")?;
    let text = fs::read_to_string(trace.path())?;
    let lens = text.lines().skip(1).map(|line| {
        let (_, _, len): (usize, u64, u64) = serde_json::from_str(line)?;
        Ok(len)
    });
    Ok(lens.sum::<Result<u64>>()? as f64)
}

/// Lets background completion finish, so that the next start needs no network.
fn complete(lab: &Lab, dir: &Path, reference: &str) -> Result<()> {
    let mounted = crate::lab::Mounted::new(lab, dir, reference, &[])?;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(120);
    loop {
        let status = mounted.status()?;
        let done = status
            .pointer("/mounts/0/layers")
            .and_then(serde_json::Value::as_array)
            .is_some_and(|layers| layers.iter().all(|layer| layer["verification"] == "verified"));
        if done {
            return Ok(());
        }
        ensure!(std::time::Instant::now() < end, "not complete after 120 s: {status}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}
