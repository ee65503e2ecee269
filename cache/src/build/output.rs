//! The uncompressed side of a build: sink, tar reader, span sums and diffID.

use spanfs_layer::tar::{Archive, Limits, Reader};
use spanfs_layer::ztoc::WINDOW_LEN;
use spanfs_layer::{Digest, Record, UncompressedOffset};

use super::hashing::HashThread;
use super::sums::{SpanSum, SpanSums};
use super::{BuildError, Sink};

/// Bytes gathered before they go on. Small enough to stay in a core's cache until they are hashed.
const CHUNK_LEN: usize = 512 << 10;

/// Gathers what a scan produces, behind the window of what came before.
pub(super) struct Output<S> {
    sink: S,
    tar: Reader,
    records: Vec<Record>,
    sums: SpanSums,
    /// `None` where the blob is the tar: its digest is known anyway.
    diff: Option<HashThread>,
    /// The last [`WINDOW_LEN`] bytes that went on (zeros at first), then new ones.
    buffer: Vec<u8>,
    /// End of the new bytes in `buffer`.
    filled: usize,
    /// Position in the tar of the first new byte.
    start: u64,
    len_max: u64,
}

/// What came out.
pub(super) struct Tar {
    pub(super) records: Vec<Record>,
    pub(super) sums: Vec<SpanSum>,
    pub(super) archive: Archive,
    pub(super) len: u64,
    pub(super) diff_id: Option<Digest>,
}

impl<S: Sink> Output<S> {
    pub(super) fn new(sink: S, len_max: u64) -> Result<Self, BuildError> {
        let diff = HashThread::start("hash-tar").map_err(BuildError::Start)?;
        Ok(Self {
            sink,
            tar: Reader::new(Limits::default()),
            records: Vec::new(),
            sums: SpanSums::default(),
            diff: Some(diff),
            buffer: vec![0; WINDOW_LEN + CHUNK_LEN],
            filled: WINDOW_LEN,
            start: 0,
            len_max,
        })
    }

    /// Leave the digest to whoever hashes the blob.
    pub(super) fn without_diff_id(&mut self) {
        self.diff = None;
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
            self.pass_on()?;
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

    /// A span begins at `at`, which has not gone on yet.
    pub(super) fn begin_span(&mut self, at: u64) {
        self.sums.begin(at);
    }

    /// The 32 KiB before the position, filled up with zeros in front.
    pub(super) fn window(&self) -> &[u8] {
        self.buffer.get(self.filled - WINDOW_LEN..self.filled).unwrap_or_default()
    }

    fn pass_on(&mut self) -> Result<(), BuildError> {
        let at = UncompressedOffset(self.start);
        let content = self.buffer.get(WINDOW_LEN..self.filled).unwrap_or_default();
        self.tar.feed(content, &mut self.records)?;
        self.sums.update(content);
        (self.sink)(at, content).map_err(|source| BuildError::Sink { at, source })?;
        self.start += content.len() as u64;
        self.start_chunk();
        Ok(())
    }

    /// Give the full buffer to the hashing thread and go on in another, behind the same window.
    fn start_chunk(&mut self) {
        let Some(diff) = &self.diff else {
            self.buffer.copy_within(self.filled - WINDOW_LEN..self.filled, 0);
            self.filled = WINDOW_LEN;
            return;
        };
        let mut next = diff.spent_buffer();
        next.resize(WINDOW_LEN + CHUNK_LEN, 0);
        if let Some(window) = next.get_mut(..WINDOW_LEN) {
            window.copy_from_slice(self.window());
        }
        let mut full = std::mem::replace(&mut self.buffer, next);
        full.truncate(self.filled);
        self.filled = WINDOW_LEN;
        diff.hash_from(full, WINDOW_LEN);
    }

    /// Nothing more comes.
    pub(super) fn finish(mut self) -> Result<Tar, BuildError> {
        self.pass_on()?;
        let Self { tar, records, sums, diff, start: len, .. } = self;
        let archive = tar.finish()?;
        let diff_id = diff.map(|diff| diff.finish().whole);
        Ok(Tar { records, sums: sums.finish(), archive, len, diff_id })
    }
}
