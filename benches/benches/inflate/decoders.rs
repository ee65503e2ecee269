//! Decoders of gzip that can be had from Rust, on one core: which one a pass is to use.

use std::hint::black_box;
use std::io::Read;
use std::time::Duration;

use flate2::bufread::MultiGzDecoder;
use spanfs_cache::build::cost;
use spanfs_cache::inflate::{Buffers, Decoder};

use crate::layer::Layer;
use crate::{rate, sys, thread_time};

/// Processor time of the calling thread, each against zlib in the same run.
pub(crate) fn measure(what: &str, layer: &Layer, rounds: usize) {
    let mut decoder = Decoder::new(Buffers::new(16 << 20));
    let count = |bytes: &[u8]| {
        black_box(bytes);
    };
    let mut decoders: [(&str, &mut dyn FnMut()); 5] = [
        ("zlib", &mut || sys::zlib::read(&layer.blob, count)),
        ("miniz_oxide (flate2)", &mut || {
            let (mut reader, mut buffer) =
                (MultiGzDecoder::new(layer.blob.as_slice()), vec![0; 64 << 10]);
            while reader.read(&mut buffer).unwrap() > 0 {}
        }),
        ("zlib-rs", &mut || sys::zlib_rs::read(&layer.blob, count)),
        ("ours, in order", &mut || _ = black_box(cost::inflate(&layer.blob))),
        ("libdeflate, span by span", &mut || layer.inflate_all(&mut decoder)),
    ];
    let mut best = [Duration::MAX; 5];
    for _ in 0..rounds {
        for ((_, decode), best) in decoders.iter_mut().zip(&mut best) {
            let start = thread_time();
            decode();
            *best = (*best).min(thread_time() - start);
        }
    }
    println!("decoders, one core, {what}:");
    for ((name, _), time) in decoders.iter().zip(best) {
        let ratio = best[0].as_secs_f64() / time.as_secs_f64();
        println!("  {:>6.0} MB/s {ratio:.2}× {name}", rate(layer.len(), time));
    }
}
