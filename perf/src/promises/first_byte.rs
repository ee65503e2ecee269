//! `spanfs mount` to the first byte of a small file of a 1 GB layer, 20 ms away.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use spanfs_registry::Link;

use super::{indexed_image, serve};
use crate::content::Layer;
use crate::lab::{Lab, Mounted, seconds};
use crate::report::{Goal, Report, Row};

const RTT: Duration = Duration::from_millis(20);
/// 4 MiB of tar, 2.5 to one, over half of the link.
const SPAN_TRANSFER_SECONDS: f64 = 1.7e6 / (2e9 / 8.0 / 2.0);

pub(super) fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let layout = indexed_image(lab, "one-gigabyte", || {
        let mut layer = Layer::new(1);
        for number in 0..256 {
            layer.file(&format!("data/{number:03}"), 4 << 20)?;
            if number == 128 {
                layer.file("small", 4096)?;
            }
        }
        Ok([layer])
    })?;
    let link = Link { rtt: RTT, ..Link::CLOUD };
    let value = lab.median(|| {
        let (registry, reference) = serve(&layout, link)?;
        let dir = lab.dir("first-byte")?;
        lab.forget_all_but(&layout)?;
        registry.reset_stats();
        let mounted = Mounted::new(lab, &dir, &reference, &[])?;
        let read = seconds(|| {
            ensure!(fs::read(mounted.root.join("small"))?.len() == 4096, "short file");
            Ok(())
        })?;
        let took = mounted.took.as_secs_f64() + read;
        let what = format!("mounted {:.0} ms, read {:.0} ms:", (took - read) * 1e3, read * 1e3);
        lab.show_requests(&what, &registry.stats());
        Ok(took)
    })?;
    report.row(&Row {
        promise: "first-byte",
        what: "mount to first byte of 4 KiB, 1 GB layer, 20 ms RTT".into(),
        value,
        unit: "s",
        goal: Goal::AtMost(6.0 * RTT.as_secs_f64() + SPAN_TRANSFER_SECONDS + 0.1),
    })
}
