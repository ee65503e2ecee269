//! Cold sequential read of a large file over an unlimited local link.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result};
use spanfs_registry::Link;

use super::{indexed_image, serve};
use crate::content::{Layer, program_like};
use crate::lab::{Lab, Mounted, seconds};
use crate::report::{Goal, Report, Row};

const FILE_BYTES: usize = 500 << 20;

pub(super) fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let layout = indexed_image(lab, "half-gigabyte", || {
        let mut layer = Layer::new(2);
        layer.file("big", FILE_BYTES)?;
        Ok([layer])
    })?;
    let cores = std::thread::available_parallelism()?.get() as f64;
    let mut inflate = 0.0;
    let mut rate = 0.0;
    let share = lab.median(|| {
        let alone = inflate_bytes_per_second()?;
        let (_registry, reference) = serve(&layout, Link::UNLIMITED)?;
        let dir = lab.dir("sequential")?;
        lab.forget_all_but(&layout)?;
        let mounted = Mounted::new(lab, &dir, &reference, &[])?;
        let took = seconds(|| {
            let mut file = File::open(mounted.root.join("big"))?;
            let mut buffer = vec![0; 128 << 10];
            while file.read(&mut buffer)? > 0 {}
            Ok(())
        })?;
        inflate = alone;
        rate = FILE_BYTES as f64 / took;
        Ok(rate / (alone * cores))
    })?;
    let row = |what: &str, value, unit, goal| Row {
        promise: "sequential",
        what: what.to_owned(),
        value,
        unit,
        goal,
    };
    report.row(&row("inflate on one core (libdeflate)", inflate / 1e6, "MB/s", Goal::None))?;
    report.row(&row("cold read of 500 MB, 128 KiB reads", rate / 1e6, "MB/s", Goal::None))?;
    report.row(&row("share of cores x inflate", share, "", Goal::AtLeast(0.85)))
}

/// What libdeflate does on this machine right now, with content like that of the layer.
fn inflate_bytes_per_second() -> Result<f64> {
    let content = program_like(3, 16 << 20);
    let level = libdeflater::CompressionLvl::new(6).unwrap_or_default();
    let mut compressor = libdeflater::Compressor::new(level);
    let mut packed = vec![0; compressor.deflate_compress_bound(content.len())];
    let len = compressor.deflate_compress(&content, &mut packed).ok().context("compressing")?;
    let mut out = vec![0; content.len()];
    let mut decompressor = libdeflater::Decompressor::new();
    let took = seconds(|| {
        for _ in 0..4 {
            let packed = packed.get(..len).context("length")?;
            decompressor.deflate_decompress(packed, &mut out).ok().context("inflating")?;
        }
        Ok(())
    })?;
    Ok(4.0 * content.len() as f64 / took)
}
