//! A few threads for a few things to do.

use std::sync::atomic::{AtomicUsize, Ordering};

/// What `work` makes of each item, in the items' order; on at most `threads` threads.
pub(crate) fn side_by_side<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(usize, &T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(number) else { return done };
            done.push((number, work(number, item)));
        }
    };
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let count = threads.clamp(1, items.len().max(1));
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(run)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().flat_map(join).collect()
    });
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Threads that this machine runs at once.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<u64> = (0..100).collect();
        let slow_first = |number: usize, item: &u64| {
            std::thread::sleep(std::time::Duration::from_micros(200 / (item + 1)));
            (number as u64, item * 2)
        };
        for threads in [0, 1, 7, 1000] {
            let found = side_by_side(&items, threads, slow_first);
            assert!(found.iter().enumerate().all(|(n, it)| *it == (n as u64, n as u64 * 2)));
            assert_eq!(found.len(), 100);
        }
        assert!(side_by_side(&[] as &[u8], 3, |_, _| ()).is_empty());
    }
}
