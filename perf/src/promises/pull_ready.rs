//! A pull through containerd to the first line of a container, lazily, against the same with the image
//! unpacked already by overlayfs: what is left of that is the way through containerd and runc.

use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use spanfs_registry::Link;

use super::{indexed_image, serve, subject};
use crate::bench::{Scratch, Session, Site, Stop, session};
use crate::content::Layer;
use crate::lab::{Lab, seconds};
use crate::report::{Goal, Report, Row};
use crate::statistics::median;

const RTT: Duration = Duration::from_millis(10);
/// Uncompressed: about 60 MB of gzip.
const FILES: usize = 150;
const FILE: usize = 1 << 20;
const FACTOR: f64 = 1.3;
const ROUND_TRIPS: f64 = 12.0;

pub(super) fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let layout = indexed_image(lab, "sixty-megabytes", || {
        let mut large = Layer::new(1);
        large.program("bin/busybox", &std::fs::read("/bin/busybox").context("busybox-static")?)?;
        for number in 0..FILES {
            large.file(&format!("data/{number}"), FILE)?;
        }
        let mut small = Layer::new(2);
        small.file("small", 1000)?;
        Ok([large, small])
    })?;
    let (lazy, eager) = (subject(lab, "spanfs-lazy")?, subject(lab, "overlayfs")?);
    let (scratch, stop) = (Scratch::open(&lab.scratch)?, Stop::on_signals()?);
    let reference = format!("{}/perf:latest", Site::host());
    let (mut floors, mut lazies) = (Vec::new(), Vec::new());
    for _ in 0..lab.runs {
        let (registry, _) = serve(&layout, Link { rtt: RTT, ..Link::UNLIMITED })?;
        let floor = {
            let site = Site::start(&scratch, &registry, &stop)?;
            let mut session = session(&site, &eager)?;
            start(&mut *session, &reference, "unpacks")?;
            start(&mut *session, &reference, "floor")?
        };
        let site = Site::start(&scratch, &registry, &stop)?;
        let mut session = session(&site, &lazy)?;
        registry.reset_stats();
        let lazy = start(&mut *session, &reference, "lazy")?;
        let stats = registry.stats();
        lab.show_requests(&format!("ready after {:.0} ms:", lazy * 1e3), &stats);
        floors.push(floor);
        lazies.push(lazy);
    }
    let floor = median(&floors).context("no run")?;
    let lazy = median(&lazies).context("no run")?;
    report.row(&Row {
        promise: "pull-ready",
        what: "pull and run, overlayfs, unpacked already, 10 ms RTT".into(),
        value: floor,
        unit: "s",
        goal: Goal::None,
    })?;
    report.row(&Row {
        promise: "pull-ready",
        what: "lazy pull to the container's line: 60 MB layer and a small one".into(),
        value: lazy,
        unit: "s",
        goal: Goal::AtMost(FACTOR * floor + ROUND_TRIPS * RTT.as_secs_f64()),
    })
}

/// Seconds from the pull to the end of a container that prints a line.
fn start(session: &mut dyn Session, reference: &str, name: &str) -> Result<f64> {
    let command = ["/bin/busybox", "echo", "ready"].map(str::to_owned);
    let (mut said, mut child) = (String::new(), None);
    let took = seconds(|| {
        session.pull(reference)?;
        session.create(reference, name, &command)?;
        let started = child.insert(session.start(reference, name, &command)?);
        let output = started.stdout.as_mut().context("its output is ours")?;
        output.read_to_string(&mut said)?;
        Ok(())
    })?;
    ensure!(said == "ready\n", "the container said {said:?}");
    let mut child = child.context("it was started")?;
    child.wait()?;
    session.stop(name, child)?;
    Ok(took)
}
