//! Limits on how many do something at once.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So many at once, over all who share it.
#[derive(Debug)]
pub struct Slots {
    free: Mutex<usize>,
    freed: Condvar,
}

/// One of them; free again when it is dropped.
#[derive(Debug)]
pub struct Slot(Arc<Slots>);

impl Slots {
    /// At least one.
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::new(count.max(1)), freed: Condvar::new() })
    }

    /// One, if one is free.
    pub fn try_take(self: &Arc<Self>) -> Option<Slot> {
        self.take_within(Duration::ZERO)
    }

    /// One, waited for no longer than `wait`.
    pub fn take_within(self: &Arc<Self>, wait: Duration) -> Option<Slot> {
        let until = Instant::now() + wait;
        let mut free = self.lock();
        while *free == 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let waited = self.freed.wait_timeout(free, left);
            free = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *free -= 1;
        Some(Slot(Arc::clone(self)))
    }

    /// How many are free now.
    pub fn free(&self) -> usize {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *self.0.lock() += 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_that_many_and_who_waits_gets_what_is_freed() {
        let slots = Slots::new(2);
        let (first, _second) = (slots.try_take().unwrap(), slots.try_take().unwrap());
        assert!(slots.try_take().is_none() && slots.free() == 0);
        assert!(slots.take_within(Duration::from_millis(5)).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| slots.take_within(Duration::from_secs(30)).is_some());
            drop(first);
            assert!(waiting.join().unwrap());
        });
        assert_eq!(slots.free(), 1);
        assert_eq!(Slots::new(0).free(), 1);
    }
}
