//! Spans and index builds against zlib, on a layer of this machine's own programs.
//!
//! `cargo bench -p spanfs-benches --bench inflate` prints the figures; without `--bench`, as the
//! tests run it, it only shows on a small layer that both sides give the same. Names of parts take those
//! alone (`-- decoders stages`), SPANFS_BENCH_LAYER=FILE takes another layer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, reason = "a benchmark reports by printing")]

mod ahead;
mod decoders;
mod layer;
mod scaling;
mod stages;
mod sys;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spanfs_cache::build::{KnownToc, SpanBuilder};
use spanfs_cache::inflate::{Buffers, Decoder, Pool, PoolOptions, VerifiedSpan};
use spanfs_fetch::Priority;
use spanfs_layer::UncompressedOffset;
use spanfs_layer::tar::{Limits, Reader};

use layer::{Layer, build, tar_of_programs};

/// Rounds of each measurement; the fastest counts, since all noise is upwards.
const ROUNDS: usize = 5;

fn main() {
    if scaling::is_child() {
        return scaling::child();
    }
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let (len, rounds) = if is_bench { (192 << 20, ROUNDS) } else { (2 << 20, 1) };
    if let Some(path) = std::env::var_os("SPANFS_BENCH_LAYER") {
        let layer = Layer::new(std::fs::read(path).unwrap());
        return ahead::measure("given layer", &layer, rounds);
    }
    let tar = tar_of_programs(len);
    let layer = Arc::new(Layer::new(sys::gzip(&tar)));
    println!(
        "layer: {} MB in {} MB of gzip -6, {} spans",
        tar.len() / 1_000_000,
        layer.blob.len() / 1_000_000,
        layer.table.spans().len()
    );
    let synthetic = Layer::new(sys::gzip(&layer::synthetic_tar(len / 2)));
    let parts: [(&str, &dyn Fn()); 8] = [
        ("spans", &|| span_inflate(&layer, &tar, rounds)),
        ("scaling", &|| scaling::measure(&layer, rounds)),
        ("index", &|| index_build(&layer, rounds)),
        ("known", &|| known_ztoc(&layer, rounds)),
        ("decoders", &|| {
            decoders::measure("programs", &layer, rounds);
            decoders::measure("synthetic", &synthetic, rounds);
        }),
        ("ahead", &|| {
            ahead::measure("programs", &layer, rounds);
            ahead::measure("synthetic", &synthetic, rounds);
        }),
        ("frames", &|| ahead::frames(&tar, rounds)),
        ("stages", &|| stages::measure(&layer, rounds)),
    ];
    let wanted: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with('-')).collect();
    for (name, measure) in parts {
        if wanted.is_empty() || wanted.iter().any(|it| it == name) {
            measure();
        }
    }
}

/// Megabytes a second.
pub(crate) fn rate(len: u64, time: Duration) -> f64 {
    len as f64 / 1e6 / time.as_secs_f64()
}

fn span_inflate(layer: &Layer, tar: &[u8], rounds: usize) {
    let count = layer.table.spans().len();
    let mut out = vec![0; 64 << 20];
    let zlib_all = |out: &mut [u8]| {
        let start = Instant::now();
        for number in 0..count {
            let (bits, window) = layer.restart(number);
            let range = &layer.table.spans()[number].uncompressed;
            let len = (range.end.0 - range.start.0) as usize;
            let window = window.map(|window| window.as_slice());
            sys::inflate_span(layer.data(number), bits, window, &mut out[..len]);
            assert!(out[..64.min(len)] == tar[range.start.0 as usize..][..64.min(len)]);
        }
        start.elapsed()
    };
    let mut decoder = Decoder::new(Buffers::new(16 << 20));
    let mut ours_all = |is_checked: bool| {
        let mut time = Duration::ZERO;
        for number in 0..count {
            let fetched = layer.fetched(number);
            let start = Instant::now();
            let check = if is_checked { VerifiedSpan::check } else { VerifiedSpan::unverified };
            let span = check(&layer.digest, &layer.table, number, fetched).unwrap();
            let inflated = decoder.inflate(span, layer.restart(number).1).unwrap();
            time += start.elapsed();
            assert!(
                inflated.bytes() == &tar[inflated.start().0 as usize..][..inflated.bytes().len()]
            );
        }
        time
    };
    let (mut zlib, mut plain, mut checked) = (Duration::MAX, Duration::MAX, Duration::MAX);
    for _ in 0..rounds {
        zlib = zlib.min(zlib_all(&mut out));
        plain = plain.min(ours_all(false));
        checked = checked.min(ours_all(true));
    }
    let ratio = zlib.as_secs_f64() / plain.as_secs_f64();
    let (zlib, plain) = (rate(layer.len(), zlib), rate(layer.len(), plain));
    println!("span inflate, one core: zlib {zlib:.0} MB/s, ours {plain:.0} MB/s: {ratio:.2}×");
    println!("  with the digest checked: {:.0} MB/s", rate(layer.len(), checked));
}

/// Processor time of this thread: what a busy machine can't falsify.
pub(crate) fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn index_build(layer: &Layer, rounds: usize) {
    let (mut zlib, mut ours) = (Duration::MAX, Duration::MAX);
    let timed = |best: &mut Duration, work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        *best = (*best).min(start.elapsed());
    };
    for _ in 0..rounds {
        let mut records = Vec::new();
        timed(&mut zlib, &mut || {
            black_box(sys::index(&layer.blob, 4 << 20));
            let mut reader = Reader::new(Limits::default());
            sys::zlib::read(&layer.blob, |bytes| reader.feed(bytes, &mut records).unwrap());
        });
        let mut count = 0;
        timed(&mut ours, &mut || count = build(&layer.blob).records().len());
        assert_eq!(count, records.len());
    }
    let ratio = ours.as_secs_f64() / zlib.as_secs_f64();
    let (zlib, ours) = (rate(layer.len(), zlib), rate(layer.len(), ours));
    println!(
        "index build, elapsed: two zlib passes {zlib:.0} MB/s, ours with all digests {ours:.0} MB/s: \
         {ratio:.2}× the time"
    );
}

/// A whole pass in order, against one whose zTOC is known and whose spans go to two threads.
fn known_ztoc(layer: &Layer, rounds: usize) {
    if layer.spans() < 2 {
        return println!("whole pass by a known zTOC: one span is nothing to decode side by side");
    }
    let pool = Pool::new(&PoolOptions::for_threads(2)).unwrap();
    let by_spans = || {
        let known = KnownToc::new(layer.encoded.as_slice().into(), layer.blob.len() as u64);
        let sink = |_: UncompressedOffset, bytes: &[u8]| {
            black_box(bytes);
            Ok(())
        };
        let builder = SpanBuilder::new(
            layer.digest,
            known.unwrap(),
            &pool,
            Priority::OnDemand,
            Arc::new(sink),
        );
        let mut builder = builder.unwrap();
        for piece in layer.blob.chunks(1 << 20) {
            builder.feed(piece).unwrap();
        }
        let built = builder.finish().unwrap();
        assert_eq!((built.blob_digest, built.uncompressed_len), (layer.digest, layer.len()));
    };
    let (mut in_order, mut known) = (Duration::MAX, Duration::MAX);
    for _ in 0..rounds {
        let start = Instant::now();
        drop(build(&layer.blob));
        in_order = in_order.min(start.elapsed());
        let start = Instant::now();
        by_spans();
        known = known.min(start.elapsed());
    }
    let ratio = known.as_secs_f64() / in_order.as_secs_f64();
    let (in_order, known) = (rate(layer.len(), in_order), rate(layer.len(), known));
    println!(
        "whole pass, elapsed: in order {in_order:.0} MB/s, by a known zTOC on two threads {known:.0} \
         MB/s: {ratio:.2}× the time"
    );
}
