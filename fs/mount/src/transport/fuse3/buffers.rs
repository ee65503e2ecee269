//! Reply buffers: reused, and bounded in number, so that answers in flight are bounded in bytes.

use std::sync::Arc;

use crate::transport::READ_LEN_MAX;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A pool of buffers of [`READ_LEN_MAX`] bytes. Those not yet used cost address space only.
pub(super) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
    permits: Arc<Semaphore>,
}

impl Buffers {
    pub(super) fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::default(), permits: Arc::new(Semaphore::new(count.max(1))) })
    }

    /// A buffer, once one is free: answers that hold one never wait for anything but the kernel.
    pub(super) async fn take(self: &Arc<Self>) -> Buffer {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let bytes = self.free.lock().pop().unwrap_or_else(|| vec![0; READ_LEN_MAX]);
        Buffer { bytes, len: 0, pool: Arc::clone(self), _permit: permit.ok() }
    }
}

/// One buffer, which returns to its pool when dropped.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    pool: Arc<Buffers>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Buffer {
    /// The first `len` bytes, at most [`READ_LEN_MAX`].
    pub(super) fn space(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(self.bytes.len());
        &mut self.bytes[..len]
    }

    /// The first `len` bytes as an answer.
    pub(super) fn into_bytes(mut self, len: usize) -> Bytes {
        self.len = len.min(self.bytes.len());
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.free.lock().push(std::mem::take(&mut self.bytes));
    }
}
