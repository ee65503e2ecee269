//! Eight concurrent readers of random files, 20 ms away on a link of 1 Gbit/s.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use spanfs_registry::Link;

use super::{indexed_image, only_layer, serve};
use crate::content::Layer;
use crate::lab::{Lab, Mounted};
use crate::report::{Goal, Report, Row};

const FILES: usize = 300;
const FILE_BYTES: usize = 2 << 20;
const READERS: usize = 8;

pub(super) fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let layout = indexed_image(lab, "many-files", || {
        let mut layer = Layer::new(4);
        for number in 0..FILES {
            layer.file(&format!("{number:03}"), FILE_BYTES)?;
        }
        Ok([layer])
    })?;
    let link = Link {
        rtt: Duration::from_millis(20),
        bytes_per_second: Some(125_000_000),
        ..Link::UNLIMITED
    };
    let digest = only_layer(&layout)?;
    let mut twice = 0;
    let busy = lab.median(|| {
        let (registry, reference) = serve(&layout, link)?;
        let dir = lab.dir("readers")?;
        lab.forget_all_but(&layout)?;
        let mounted = Mounted::new(lab, &dir, &reference, &[])?;
        registry.reset_stats();
        let start = Instant::now();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| -> Result<()> {
            let readers: Vec<_> = (0..READERS)
                .map(|_| {
                    scope.spawn(|| -> Result<()> {
                        loop {
                            let turn = next.fetch_add(1, Ordering::Relaxed);
                            if turn >= FILES {
                                return Ok(());
                            }
                            // 167 is prime to 300: every file once, in no order
                            let number = turn * 167 % FILES;
                            let bytes = fs::read(mounted.root.join(format!("{number:03}")))?;
                            ensure!(bytes.len() == FILE_BYTES, "short file");
                        }
                    })
                })
                .collect();
            for reader in readers {
                reader.join().ok().context("a reader died")??;
            }
            Ok(())
        })?;
        let took = start.elapsed();
        let stats = registry.stats();
        let limit = 125_000_000.0 * took.as_secs_f64();
        twice = stats.refetched_bytes(&digest);
        Ok(stats.blob_bytes() as f64 / limit)
    })?;
    let row = |what: &str, value, unit, goal| Row {
        promise: "readers",
        what: what.to_owned(),
        value,
        unit,
        goal,
    };
    report.row(&row("bytes moved / link's bytes in that time", busy, "", Goal::AtLeast(0.8)))?;
    // Neighbouring spans share a byte where DEFLATE blocks meet inside it; there is a span a file.
    let borders = FILES as f64;
    report.row(&row("bytes fetched twice (span borders)", twice as f64, "B", Goal::AtMost(borders)))
}
