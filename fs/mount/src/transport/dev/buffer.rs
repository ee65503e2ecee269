//! Reply buffers: one for each thread that answers, reused.

use std::os::fd::AsFd;

use parking_lot::Mutex;

use crate::transport::READ_LEN_MAX;
use crate::transport::protocol::abi::OUT_HEADER_LEN;
use crate::transport::protocol::reply;

/// What copies to and from the page cache like best.
const ALIGNMENT: usize = 4096;

/// Room for a reply's body of [`READ_LEN_MAX`] bytes with its header right in front, so that one
/// write(2) sends both. What was never used costs address space only.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// Where the body starts: at a multiple of [`ALIGNMENT`] in memory.
    body_at: usize,
}

impl Buffer {
    pub(super) fn new() -> Self {
        let bytes = vec![0; OUT_HEADER_LEN + ALIGNMENT + READ_LEN_MAX];
        let behind_header = bytes.as_ptr().wrapping_add(OUT_HEADER_LEN);
        let padding = behind_header.align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { bytes, body_at: OUT_HEADER_LEN + padding }
    }

    /// Where the body is made.
    pub(super) fn body(&mut self) -> &mut [u8] {
        &mut self.bytes[self.body_at..][..READ_LEN_MAX]
    }

    /// Send the first `len` bytes of the body as the reply to request `unique`.
    pub(super) fn send(
        &mut self,
        device: impl AsFd,
        unique: u64,
        len: usize,
    ) -> rustix::io::Result<()> {
        let start = self.body_at - OUT_HEADER_LEN;
        let message = &mut self.bytes[start..][..OUT_HEADER_LEN + len];
        message[..OUT_HEADER_LEN].copy_from_slice(&reply::header(unique, 0, len));
        rustix::io::write(device, message).map(drop)
    }
}

/// Reply an errno, or 0, to request `unique`.
pub(super) fn send_code(device: impl AsFd, unique: u64, code: i32) -> rustix::io::Result<()> {
    rustix::io::write(device, &reply::header(unique, code, 0)).map(drop)
}

/// Buffers for the threads on which fills complete. As many exist as were ever needed at once, at
/// most one for each such thread; few are kept.
pub(super) struct Spares {
    free: Mutex<Vec<Buffer>>,
    kept_max: usize,
}

impl Spares {
    pub(super) fn new(kept_max: usize) -> Self {
        Self { free: Mutex::default(), kept_max }
    }

    pub(super) fn with<T>(&self, body: impl FnOnce(&mut Buffer) -> T) -> T {
        let spare = self.free.lock().pop();
        let mut buffer = spare.unwrap_or_else(Buffer::new);
        let outcome = body(&mut buffer);
        let mut free = self.free.lock();
        if free.len() < self.kept_max {
            free.push(buffer);
        }
        outcome
    }
}
