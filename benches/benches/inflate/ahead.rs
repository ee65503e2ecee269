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

/// What a byte costs, then elapsed and processor time of passes, each the best of its kind.
pub(crate) fn measure(what: &str, layer: &Layer, rounds: usize) {
    costs(what, layer, rounds);
    let pools = [None, Some(4)];
    let pools = pools.map(|it| it.map(|it| Pool::new(&PoolOptions::for_threads(it)).unwrap()));
    let mut best = [[Duration::MAX; 2]; 2];
    let mut len_ahead = [0; 2];
    for _ in 0..rounds {
        for ((pool, best), len_ahead) in pools.iter().zip(&mut best).zip(&mut len_ahead) {
            let (start, busy) = (Instant::now(), process_time());
            let built = pass(&layer.blob, pool.as_ref());
            *best = [best[0].min(start.elapsed()), best[1].min(process_time() - busy)];
            *len_ahead = built.len_ahead;
        }
    }
    println!("whole pass without a zTOC, {what}:");
    for (number, threads) in ["in order", "helped by 4 threads"].iter().enumerate() {
        let [elapsed, busy] = best[number];
        let ratio = |at: usize| best[number][at].as_secs_f64() / best[0][at].as_secs_f64();
        println!(
            "  {threads}: {:.0} MB/s, {:.2}× the time, {:.2}× the CPU time ({:.2} s/GB), {:.2} ahead",
            rate(layer.len(), elapsed),
            ratio(0),
            ratio(1),
            busy.as_secs_f64() * 1e9 / layer.len() as f64,
            len_ahead[number] as f64 / layer.len() as f64,
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
