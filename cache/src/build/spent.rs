//! Buffers of one size, used again: a fresh one costs a page fault every 4 KiB.

use std::sync::Arc;

use parking_lot::Mutex;

/// Buffers that somebody is done with.
pub(super) struct Spent<T> {
    free: Arc<Mutex<Vec<Vec<T>>>>,
    count_max: usize,
}

impl<T: Copy + Default> Spent<T> {
    /// Keeps at most `count_max`.
    pub(super) fn new(count_max: usize) -> Self {
        Self { free: Arc::default(), count_max }
    }

    /// A buffer of `len` of any content.
    pub(super) fn take(&self, len: usize) -> Vec<T> {
        let mut buffer = self.free.lock().pop().unwrap_or_default();
        buffer.resize(len, T::default());
        buffer
    }

    pub(super) fn give(&self, buffer: Vec<T>) {
        let mut free = self.free.lock();
        if free.len() < self.count_max {
            free.push(buffer);
        }
    }
}

impl<T> Clone for Spent<T> {
    fn clone(&self) -> Self {
        Self { free: Arc::clone(&self.free), count_max: self.count_max }
    }
}
