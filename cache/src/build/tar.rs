//! What is made of a tar in order, beside the thread that inflates it: its entries, the sums of its
//! spans, its digest, and its way into the sink.

use std::io;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use spanfs_layer::tar::{Archive, Limits, Reader};
use spanfs_layer::ztoc::WINDOW_LEN;
use spanfs_layer::{Digest, Record, UncompressedOffset};

use super::hashing::HashThread;
use super::spent::Spent;
use super::sums::{SpanSum, SpanSums};
use super::{BuildError, Sink};

/// The next bytes of a tar.
pub(super) struct Chunk {
    /// A window of what came before, which is not looked at, then the bytes.
    pub(super) bytes: Vec<u8>,
    /// Where spans begin among them.
    pub(super) starts: Vec<u64>,
    /// Nothing more comes.
    pub(super) is_last: bool,
}

/// What came out.
pub(super) struct Tar {
    pub(super) records: Vec<Record>,
    pub(super) sums: Vec<SpanSum>,
    pub(super) archive: Archive,
    pub(super) len: u64,
    /// `None` where the blob is the tar: its digest is known anyway.
    pub(super) diff_id: Option<Digest>,
}

/// A thread that takes a tar in chunks. Whoever drops it waits until the sink is at rest.
pub(super) struct TarThread {
    chunks: Option<Sender<Chunk>>,
    thread: Option<JoinHandle<Result<Tar, BuildError>>>,
}

/// Chunks that may wait; see the queue of the hashing threads.
const CHUNKS_MAX: usize = 4;

impl TarThread {
    /// `is_hashed` says whether the digest is wanted.
    pub(super) fn start(
        sink: Box<dyn Sink>,
        spent: Spent<u8>,
        is_hashed: bool,
    ) -> io::Result<Self> {
        let (chunks, waiting) = bounded(CHUNKS_MAX);
        let diff = is_hashed.then(|| HashThread::start("hash-tar", spent.clone())).transpose()?;
        let run = move || run(&waiting, sink, diff, &spent);
        let thread = thread::Builder::new().name("take-tar".into()).spawn(run)?;
        Ok(Self { chunks: Some(chunks), thread: Some(thread) })
    }

    /// Give it the next chunk. Waits while the queue is full; fails with what made the thread end.
    pub(super) fn take(&mut self, chunk: Chunk) -> Result<(), BuildError> {
        match &self.chunks {
            Some(chunks) if chunks.send(chunk).is_ok() => Ok(()),
            _ => self.end().map(drop),
        }
    }

    /// What came out, or why nothing did.
    pub(super) fn end(&mut self) -> Result<Tar, BuildError> {
        self.chunks = None;
        let joined = self.thread.take().map(JoinHandle::join);
        joined
            .unwrap_or(Ok(Err(BuildError::Stopped)))
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for TarThread {
    fn drop(&mut self) {
        self.chunks = None;
        // What it found is of no interest.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn run(
    chunks: &Receiver<Chunk>,
    mut sink: Box<dyn Sink>,
    diff: Option<HashThread>,
    spent: &Spent<u8>,
) -> Result<Tar, BuildError> {
    let mut reader = Reader::new(Limits::default());
    let (mut records, mut sums, mut len) = (Vec::new(), SpanSums::default(), 0);
    for Chunk { bytes, starts, is_last } in chunks {
        let content = bytes.get(WINDOW_LEN..).unwrap_or_default();
        let at = UncompressedOffset(len);
        reader.feed(content, &mut records)?;
        starts.into_iter().for_each(|start| sums.begin(start));
        sums.update(content);
        sink(at, content).map_err(|source| BuildError::Sink { at, source })?;
        len += content.len() as u64;
        match &diff {
            Some(diff) => diff.hash_from(bytes, WINDOW_LEN),
            None => spent.give(bytes),
        }
        if is_last {
            let archive = reader.finish()?;
            let diff_id = diff.map(|diff| diff.finish().whole);
            return Ok(Tar { records, sums: sums.finish(), archive, len, diff_id });
        }
    }
    Err(BuildError::Stopped)
}
