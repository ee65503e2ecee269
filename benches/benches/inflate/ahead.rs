//! A whole pass without a zTOC: in order, and with helpers that decode ahead.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use spanfs_cache::build::cost;
use spanfs_cache::inflate::{Pool, PoolOptions};

use crate::layer::{Layer, pass};
use crate::{rate, thread_time};

/// Processor time of all threads.
fn process_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What a byte costs, then a whole pass.
pub(crate) fn measure(what: &str, layer: &Layer, rounds: usize) {
    costs(what, layer, rounds);
    passes(&format!("{what} without a zTOC"), &layer.blob, &[4], rounds);
}

/// A whole pass over `tar` in zstd frames of 1 MB, and of 20 kB as archives of single files have them.
pub(crate) fn frames(tar: &[u8], rounds: usize) {
    for len in [1_000_000, 20_000] {
        let frames = tar.chunks(len).flat_map(|piece| zstd::bulk::compress(piece, 3).unwrap());
        let what = format!("zstd frames of {} kB", len / 1000);
        passes(&what, &frames.collect::<Vec<_>>(), &[4], rounds);
    }
}

/// Elapsed and processor time of passes, in order and helped by so many threads, each the best of its kind.
fn passes(what: &str, blob: &[u8], threads: &[usize], rounds: usize) {
    let helped = threads.iter().map(|&threads| {
        let pool = Pool::new(&PoolOptions::for_threads(threads)).unwrap();
        (format!("helped by {threads} threads"), Some(pool))
    });
    let ways: Vec<_> = std::iter::once(("in order".to_owned(), None)).chain(helped).collect();
    let mut best = vec![[Duration::MAX; 2]; ways.len()];
    let (mut len, mut len_ahead) = (0, vec![0; ways.len()]);
    for _ in 0..rounds {
        for (number, (_, pool)) in ways.iter().enumerate() {
            let (start, busy) = (Instant::now(), process_time());
            let built = pass(blob, pool.as_ref());
            let [elapsed, cpu] = best[number];
            best[number] = [elapsed.min(start.elapsed()), cpu.min(process_time() - busy)];
            (len, len_ahead[number]) = (built.uncompressed_len, built.len_ahead);
        }
    }
    println!("whole pass, {what}:");
    for (number, (way, _)) in ways.iter().enumerate() {
        let [elapsed, busy] = best[number];
        let ratio = |at: usize| best[number][at].as_secs_f64() / best[0][at].as_secs_f64();
        println!(
            "  {way}: {:.0} MB/s, {:.2}× the time, {:.2}× the CPU time ({:.2} s/GB), {:.2} ahead",
            rate(len, elapsed),
            ratio(0),
            ratio(1),
            busy.as_secs_f64() * 1e9 / len as f64,
            len_ahead[number] as f64 / len as f64,
        );
    }
}

/// What a byte costs in order and ahead.
fn costs(what: &str, layer: &Layer, rounds: usize) {
    let mut in_order = Duration::MAX;
    let mut ahead = cost::Ahead { decoding: Duration::MAX, ..Default::default() };
    for _ in 0..rounds {
        let start = thread_time();
        assert!(black_box(cost::inflate(&layer.blob)) >= layer.len());
        in_order = in_order.min(thread_time() - start);
        let once = cost::ahead(&layer.blob, &thread_time);
        ahead = if once.decoding < ahead.decoding { once } else { ahead };
    }
    let cost = |time: Duration, len: u64| time.as_secs_f64() * 1e9 / len.max(1) as f64;
    println!(
        "inflate, CPU s per GB, {what}: in order {:.2}, ahead {:.2}, replacing what was unknown {:.2}; \
         {:.2} of it was unknown",
        cost(in_order, layer.len()),
        cost(ahead.decoding, ahead.len),
        cost(ahead.replacing, ahead.unknown_len),
        ahead.unknown_len as f64 / ahead.len.max(1) as f64,
    );
}
