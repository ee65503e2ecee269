//! Output buffers, used again: a fresh one costs a page fault every 4 KiB and zeroing besides.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

/// Free output buffers, bounded in bytes. Handing out is not bounded: who decodes bounds that.
pub struct Buffers {
    free: Mutex<Free>,
    bytes_max: usize,
}

#[derive(Default)]
struct Free {
    buffers: VecDeque<Vec<u8>>,
    bytes: usize,
}

/// Buffers are made in multiples of this, so that spans of similar size share them.
const BUFFER_STEP: usize = 1 << 20;

impl Buffers {
    /// Keeps at most `bytes_max` bytes of free buffers.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::default(), bytes_max })
    }

    /// A buffer of at least `len` bytes, of any content.
    pub(super) fn take(&self, len: usize) -> Vec<u8> {
        let mut buffer = self.take_free(len).unwrap_or_default();
        if buffer.len() < len {
            // Not resized: that would copy what nobody wants.
            buffer = vec![0; len.next_multiple_of(BUFFER_STEP)];
        }
        buffer
    }

    fn take_free(&self, len: usize) -> Option<Vec<u8>> {
        let mut free = self.free.lock();
        let found = free.buffers.iter().position(|buffer| buffer.len() >= len)?;
        let buffer = free.buffers.remove(found)?;
        free.bytes -= buffer.len();
        Some(buffer)
    }

    /// Give a buffer back. The oldest free ones make room for it: what decodes now says what sizes
    /// are wanted.
    pub(super) fn put(&self, buffer: Vec<u8>) {
        let mut free = self.free.lock();
        if buffer.len() > self.bytes_max {
            return;
        }
        free.bytes += buffer.len();
        free.buffers.push_back(buffer);
        while free.bytes > self.bytes_max {
            let Some(oldest) = free.buffers.pop_front() else { return };
            free.bytes -= oldest.len();
        }
    }
}
