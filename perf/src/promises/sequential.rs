//! Cold sequential read of a large file over an unlimited local link.
//!
//! The goal is a share of min(cores × inflate, link). The registry and the reading program burn the
//! same cores; what spanfs itself burns says what the share would be without them.

mod link;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use spanfs_registry::Link;

use super::{indexed_image, only_layer, serve};
use crate::content::{Layer, program_like, programs};
use crate::lab::{Lab, Mounted, seconds};
use crate::report::{Goal, Report, Row};

const FILE_BYTES: usize = 500 << 20;
/// Enough to measure inflation by.
const SAMPLE_BYTES: usize = 16 << 20;
/// Places that it is taken from.
const SAMPLES: usize = 16;

pub(super) fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let synthetic = || {
        let mut layer = Layer::new(2);
        layer.file("big", FILE_BYTES)?;
        Ok([layer])
    };
    let layout = indexed_image(lab, "half-gigabyte", synthetic)?;
    measure(lab, report, "synthetic", &layout, &program_like(3, SAMPLE_BYTES))?;
    let content = programs(FILE_BYTES)?;
    let pieces = content.chunks(FILE_BYTES / SAMPLES);
    let sample: Vec<u8> =
        pieces.flat_map(|piece| piece.iter().take(SAMPLE_BYTES / SAMPLES)).copied().collect();
    let real = || {
        let mut layer = Layer::new(0);
        layer.file_of("big", &content)?;
        Ok([layer])
    };
    let layout = indexed_image(lab, "half-gigabyte-of-programs", real)?;
    drop(content);
    measure(lab, report, "programs", &layout, &sample)
}

/// What one run showed.
#[derive(Clone, Copy, Default)]
struct Run {
    /// Share of what cores and link could do.
    share: f64,
    read: f64,
    /// Bytes a second that come out: of one core inflating, of the link.
    inflate: f64,
    link: f64,
    /// CPU seconds: of spanfs, of the reading thread, of the registry.
    ours: f64,
    reader: f64,
    registry: f64,
}

fn measure(lab: &Lab, report: &mut Report, what: &str, layout: &Path, sample: &[u8]) -> Result<()> {
    let cores = std::thread::available_parallelism()?.get() as f64;
    let digest = only_layer(layout)?;
    let mut runs = Vec::new();
    for _ in 0..lab.runs {
        let inflate = inflate_bytes_per_second(sample)?;
        let (registry, reference) = serve(layout, Link::UNLIMITED)?;
        let blob = layout.join("blobs/sha256").join(digest.hex().to_string());
        let ratio = FILE_BYTES as f64 / blob.metadata()?.len() as f64;
        let dir = lab.dir("sequential")?;
        lab.forget_all_but(layout)?;
        let link = link::bytes_per_second(registry.addr(), "perf", digest, &blob)? * ratio;
        let mounted = Mounted::new(lab, &dir, &reference, &[])?;
        let (ours, all) = (mounted.cpu_seconds()?, cpu_seconds(ClockId::ProcessCPUTime));
        let reader = cpu_seconds(ClockId::ThreadCPUTime);
        let took = seconds(|| {
            let mut file = File::open(mounted.root.join("big"))?;
            let mut buffer = vec![0; 128 << 10];
            while file.read(&mut buffer)? > 0 {}
            Ok(())
        })?;
        let reader = cpu_seconds(ClockId::ThreadCPUTime) - reader;
        let all = cpu_seconds(ClockId::ProcessCPUTime) - all;
        let read = FILE_BYTES as f64 / took;
        runs.push(Run {
            share: read / link.min(inflate * cores),
            read,
            inflate,
            link,
            ours: mounted.cpu_seconds()? - ours,
            reader,
            registry: all - reader,
        });
    }
    runs.sort_by(|a, b| a.share.total_cmp(&b.share));
    let run = runs.get(runs.len() / 2).copied().context("no run")?;
    let alone = FILE_BYTES as f64 / run.inflate;
    let mut row = |text: &str, value, unit, goal| {
        let what = format!("{text} ({what})");
        report.row(&Row { promise: "sequential", what, value, unit, goal })
    };
    row("inflate on one core (libdeflate)", run.inflate / 1e6, "MB/s", Goal::None)?;
    row("link: plain download by our engine, inflated", run.link / 1e6, "MB/s", Goal::None)?;
    row("cold read of 500 MiB, 128 KiB reads", run.read / 1e6, "MB/s", Goal::None)?;
    row("CPU of spanfs", run.ours, "s", Goal::None)?;
    row("CPU of the reading thread, kernel included", run.reader, "s", Goal::None)?;
    row("CPU of the registry", run.registry, "s", Goal::None)?;
    row("inflation alone / all CPU of spanfs", alone / run.ours, "", Goal::None)?;
    let all = run.ours + run.reader;
    row("the same, with the reading thread's", alone / all, "", Goal::None)?;
    row("share of min(cores x inflate, link)", run.share, "", Goal::AtLeast(0.85))
}

fn cpu_seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// What libdeflate does on this machine right now, with content like that of the layer.
fn inflate_bytes_per_second(content: &[u8]) -> Result<f64> {
    let level = libdeflater::CompressionLvl::new(6).unwrap_or_default();
    let mut compressor = libdeflater::Compressor::new(level);
    let mut packed = vec![0; compressor.deflate_compress_bound(content.len())];
    let len = compressor.deflate_compress(content, &mut packed).ok().context("compressing")?;
    let mut out = vec![0; content.len()];
    let mut decompressor = libdeflater::Decompressor::new();
    // Of the processor, not of the wall: others may be at work.
    let before = cpu_seconds(ClockId::ThreadCPUTime);
    for _ in 0..4 {
        let packed = packed.get(..len).context("length")?;
        decompressor.deflate_decompress(packed, &mut out).ok().context("inflating")?;
    }
    let took = cpu_seconds(ClockId::ThreadCPUTime) - before;
    Ok(4.0 * content.len() as f64 / took)
}
