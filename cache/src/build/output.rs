//! The uncompressed side of a build: what a scan produces, gathered in chunks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use spanfs_layer::ztoc::WINDOW_LEN;

use super::spent::Spent;
use super::tar::{Chunk, Tar, TarThread};
use super::{BuildError, Sink};

/// Bytes gathered before they go on. Small enough to stay in a core's cache until they are hashed.
const CHUNK_LEN: usize = 512 << 10;

/// A chunk behind its window.
pub(super) const BUFFER_LEN: usize = WINDOW_LEN + CHUNK_LEN;

/// Gathers what a scan produces, behind the window of what came before.
pub(super) struct Output {
    tar: TarThread,
    spent: Spent<u8>,
    /// Nobody wants it any more.
    is_given_up: Arc<AtomicBool>,
    /// The last [`WINDOW_LEN`] bytes that went on (zeros at first), then new ones.
    buffer: Vec<u8>,
    /// End of the new bytes in `buffer`.
    filled: usize,
    /// Position in the tar of the first new byte.
    start: u64,
    /// Where spans begin among the new bytes.
    starts: Vec<u64>,
    len_max: u64,
}

impl Output {
    /// `is_hashed` says whether the tar's digest is wanted.
    pub(super) fn start(
        sink: Box<dyn Sink>,
        spent: Spent<u8>,
        is_hashed: bool,
        is_given_up: Arc<AtomicBool>,
        len_max: u64,
    ) -> Result<Self, BuildError> {
        let tar = TarThread::start(sink, spent.clone(), is_hashed).map_err(BuildError::Start)?;
        let mut buffer = spent.take(BUFFER_LEN);
        buffer.iter_mut().take(WINDOW_LEN).for_each(|byte| *byte = 0);
        let (filled, start, starts) = (WINDOW_LEN, 0, Vec::new());
        Ok(Self { tar, spent, is_given_up, buffer, filled, start, starts, len_max })
    }

    /// Bytes that have come so far.
    pub(super) fn position(&self) -> u64 {
        self.start + (self.filled - WINDOW_LEN) as u64
    }

    /// Room for the next bytes; never empty.
    pub(super) fn room(&mut self) -> Result<&mut [u8], BuildError> {
        let (buffer, filled) = self.space()?;
        Ok(buffer.get_mut(filled..).unwrap_or_default())
    }

    /// The same with what came before it, and how much that is: a window at least.
    pub(super) fn space(&mut self) -> Result<(&mut [u8], usize), BuildError> {
        if self.filled == self.buffer.len() {
            let mut next = self.spent.take(BUFFER_LEN);
            if let Some(window) = next.get_mut(..WINDOW_LEN) {
                window.copy_from_slice(self.window());
            }
            self.adopt(next)?;
        }
        Ok((&mut self.buffer, self.filled))
    }

    /// The first `len` bytes of the room have come.
    pub(super) fn advance(&mut self, len: usize) -> Result<(), BuildError> {
        self.filled += len;
        assert!(self.filled <= self.buffer.len());
        if self.position() > self.len_max {
            return Err(BuildError::TooLong { max: self.len_max });
        }
        Ok(())
    }

    /// Bytes that came from elsewhere.
    pub(super) fn put(&mut self, mut bytes: &[u8]) -> Result<(), BuildError> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let (now, rest) = bytes.split_at_checked(room.len()).unwrap_or((bytes, &[]));
            room.iter_mut().zip(now).for_each(|(to, byte)| *to = *byte);
            self.advance(now.len())?;
            bytes = rest;
        }
        Ok(())
    }

    /// Go on in another buffer: a window of what has come, then room, of which some may be filled.
    pub(super) fn adopt(&mut self, next: Vec<u8>) -> Result<(), BuildError> {
        assert_eq!(next.len(), BUFFER_LEN);
        self.pass_on(next, false)
    }

    fn pass_on(&mut self, next: Vec<u8>, is_last: bool) -> Result<(), BuildError> {
        if self.is_given_up.load(Ordering::Relaxed) {
            return Err(BuildError::Stopped);
        }
        self.start = self.position();
        let mut bytes = std::mem::replace(&mut self.buffer, next);
        bytes.truncate(self.filled);
        self.filled = WINDOW_LEN;
        self.tar.take(Chunk { bytes, starts: std::mem::take(&mut self.starts), is_last })
    }

    /// A span begins at `at`, which has not gone on yet.
    pub(super) fn begin_span(&mut self, at: u64) {
        self.starts.push(at);
    }

    /// The last `len` bytes that came, of those that have not gone on yet.
    pub(super) fn last(&self, len: usize) -> &[u8] {
        self.buffer.get(self.filled - len..self.filled).unwrap_or_default()
    }

    /// The 32 KiB before the position, filled up with zeros in front.
    pub(super) fn window(&self) -> &[u8] {
        self.last(WINDOW_LEN)
    }

    /// Nothing more comes.
    pub(super) fn finish(mut self) -> Result<Tar, BuildError> {
        self.pass_on(Vec::new(), true)?;
        self.tar.end()
    }

    /// The scan failed; what was wrong with what came before is told first.
    pub(super) fn fail(mut self, error: BuildError) -> BuildError {
        match self.tar.end() {
            Ok(_) | Err(BuildError::Stopped) => error,
            Err(earlier) => earlier,
        }
    }
}
