//! Hashing beside the thread that inflates.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use spanfs_layer::{Algorithm, Digest, Hasher};

use super::spent::Spent;

/// Where a span begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Position of its first whole byte in the stream.
    pub(super) at: u64,
    /// The byte before it belongs to it too, and to the span before.
    pub(super) is_shared: bool,
}

/// Digests of a stream.
pub(super) struct Hashes {
    /// Of all of it.
    pub(super) whole: Digest,
    /// Of each span; what precedes the first cut belongs to none.
    pub(super) spans: Vec<Digest>,
}

/// A thread that hashes pieces in order.
pub(super) struct HashThread {
    pieces: Sender<Piece>,
    thread: JoinHandle<Hashes>,
}

struct Piece {
    bytes: Arc<Vec<u8>>,
    /// Bytes at the start that were hashed with an earlier piece.
    skip: usize,
    cuts: Vec<Cut>,
}

/// Pieces that may wait. Two would do; more evens out a thread that lost its core.
const PIECES_MAX: usize = 4;

impl HashThread {
    /// Buffers go to `spent` once nobody else has them.
    pub(super) fn start(name: &str, spent: Spent<u8>) -> io::Result<Self> {
        let (pieces, waiting) = bounded(PIECES_MAX);
        let run = move || run(&waiting, &spent);
        let thread = thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Self { pieces, thread })
    }

    /// Hash the next piece; the cuts lie inside it or at its ends. Waits while the queue is full.
    pub(super) fn hash(&self, bytes: Arc<Vec<u8>>, cuts: Vec<Cut>) {
        self.send(Piece { bytes, skip: 0, cuts });
    }

    /// Hash the next piece, which begins behind `skip` bytes.
    pub(super) fn hash_from(&self, bytes: Vec<u8>, skip: usize) {
        self.send(Piece { bytes: Arc::new(bytes), skip, cuts: Vec::new() });
    }

    fn send(&self, piece: Piece) {
        let sent = self.pieces.send(piece);
        assert!(sent.is_ok(), "the hashing thread ends only when its queue is closed");
    }

    /// Wait for the digests.
    pub(super) fn finish(self) -> Hashes {
        drop(self.pieces);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn run(pieces: &Receiver<Piece>, spent: &Spent<u8>) -> Hashes {
    let mut whole = Hasher::new(Algorithm::Sha256);
    let mut spans = Spans { done: Vec::new(), current: None, at: 0, last: 0 };
    for piece in pieces {
        let content = piece.bytes.get(piece.skip..).unwrap_or_default();
        whole.update(content);
        spans.update(content, &piece.cuts);
        Arc::into_inner(piece.bytes).into_iter().for_each(|bytes| spent.give(bytes));
    }
    spans.done.extend(spans.current.map(Hasher::finish));
    Hashes { whole: whole.finish(), spans: spans.done }
}

struct Spans {
    done: Vec<Digest>,
    current: Option<Hasher>,
    /// Bytes so far, and the last of them.
    at: u64,
    last: u8,
}

impl Spans {
    fn update(&mut self, mut content: &[u8], cuts: &[Cut]) {
        for cut in cuts {
            let len = cut.at.checked_sub(self.at).and_then(|len| usize::try_from(len).ok());
            let parts = len.and_then(|len| content.split_at_checked(len));
            assert!(parts.is_some(), "a cut lies in the piece that it comes with");
            let (before, behind) = parts.unwrap_or_default();
            self.add(before);
            let mut next = Hasher::new(Algorithm::Sha256);
            if cut.is_shared {
                next.update(&[self.last]);
            }
            self.done.extend(self.current.replace(next).map(Hasher::finish));
            content = behind;
        }
        self.add(content);
    }

    fn add(&mut self, content: &[u8]) {
        if let Some(span) = &mut self.current {
            span.update(content);
        }
        self.at += content.len() as u64;
        self.last = content.last().copied().unwrap_or(self.last);
    }
}
