//! A layer whose zTOC is known, once past: its spans on all cores, everything else as ever.
//!
//! ```text
//! feed ─┬─ pieces with cuts ─▶ thread: blob digest, span digests
//!       └─ spans ─▶ decoding threads: inflate, sum up, sink ─(in order)─▶ diffID, tar reader
//! ```
//!
//! The zTOC is a guess that saves time. What comes out counts only if it is that zTOC again, with all
//! digests; else the layer is to be read by [`super::LayerBuilder`], which needs none.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};
use spanfs_fetch::{Fetched, Priority};
use spanfs_layer::tar::{Limits, Reader};
use spanfs_layer::ztoc::{Compression, View};
use spanfs_layer::{
    Algorithm, Digest, Hasher, Record, Restart, SpanTable, UncompressedOffset, Ztoc,
};

use super::backlog::PIECE_LEN;
use super::hashing::{Cut, HashThread};
use super::spent::Spent;
use super::{BuildError, Built, SPENT_PIECES_MAX, SpanSum, Toc};
use crate::crc::crc32;
use crate::inflate::{Decoder, HEADROOM, InflatedSpan, Pool, VerifiedSpan};

/// Where spans go, on several threads and in any order.
pub type SpanSink = dyn Fn(UncompressedOffset, &[u8]) -> io::Result<()> + Send + Sync;

/// Bytes of spans under way, compressed and not. Six spans of 4 MiB: the digest of the tar, which
/// one core makes in order, keeps up with no more.
const BYTES_MAX: u64 = 32 << 20;

/// Longest span that is worth it: longer ones would be the whole budget, one at a time.
const SPAN_LEN_MAX: u64 = 16 << 20;

/// Why a known zTOC was of no use.
#[derive(Debug, thiserror::Error)]
pub enum SpansError {
    /// The zTOC is not that of this layer, or either is damaged: its spans say so.
    #[error("the layer is not what its zTOC says: {0}")]
    Other(String),
    /// No fault of the zTOC.
    #[error(transparent)]
    Build(#[from] BuildError),
}

fn other(reason: impl ToString) -> SpansError {
    SpansError::Other(reason.to_string())
}

/// A zTOC by which a layer can be decoded span by span.
pub struct KnownToc {
    encoded: Arc<[u8]>,
    digests: Vec<Digest>,
    table: SpanTable,
}

impl KnownToc {
    /// The zTOC, if it can be one of a blob of `blob_size` bytes and its spans are worth it.
    pub fn new(encoded: Arc<[u8]>, blob_size: u64) -> Result<Self, SpansError> {
        let view = View::new(&encoded).map_err(other)?;
        let (digests, compression) = (view.span_digests().map_err(other)?, view.compression);
        let table = SpanTable::from_ztoc(&encoded).map_err(other)?;
        let spans = table.spans();
        let end = spans.last().map_or(0, |last| last.compressed.end.0);
        if end != blob_size {
            return Err(other(format_args!("spans end at {end} of {blob_size} bytes")));
        }
        if compression == Compression::Uncompressed || spans.len() < 2 {
            return Err(other("there is nothing to decode side by side"));
        }
        let longest = spans.iter().map(|span| span.uncompressed.end.0 - span.uncompressed.start.0);
        if longest.max().is_some_and(|len| len > SPAN_LEN_MAX) {
            return Err(other("it has spans too long to be decoded side by side"));
        }
        Ok(Self { encoded, digests, table })
    }

    /// Bytes of the layer that are charged while a span is under way.
    fn charge(&self, number: usize) -> u64 {
        self.table.spans().get(number).map_or(0, |span| {
            let compressed = span.compressed.end.0 - span.compressed.start.0;
            compressed + (span.uncompressed.end.0 - span.uncompressed.start.0)
        })
    }

    fn inflate(
        &self,
        layer: &Digest,
        number: usize,
        bytes: Vec<u8>,
        decoder: &mut Decoder,
    ) -> Result<InflatedSpan, SpansError> {
        let fetched = Fetched { bytes, headroom: HEADROOM };
        // The digests of all spans are compared in the end, before anything counts.
        let span = VerifiedSpan::unverified(layer, &self.table, number, fetched).map_err(other)?;
        let window = match self.table.spans().get(number).map(|span| span.restart) {
            Some(Restart::Deflate { window_at, .. }) if window_at > 0 => {
                let at = usize::try_from(window_at).unwrap_or(usize::MAX);
                self.encoded.get(at..).and_then(|window| window.first_chunk())
            }
            _ => None,
        };
        decoder.inflate(span, window).map_err(other)
    }

    /// Where the digest of a span begins.
    fn cut(&self, number: usize) -> Option<Cut> {
        let span = self.table.spans().get(number)?;
        let is_shared = matches!(span.restart, Restart::Deflate { bits, .. } if bits > 0);
        Some(Cut { at: span.compressed.start.0 + u64::from(is_shared), is_shared })
    }
}

/// Takes one compressed layer in pieces, and decodes its spans on the threads of a [`Pool`].
pub struct SpanBuilder<'a> {
    layer: Digest,
    known: Arc<KnownToc>,
    pool: &'a Pool,
    priority: Priority,
    sink: Arc<SpanSink>,
    blob: HashThread,
    spent_pieces: Spent<u8>,
    blob_size: u64,
    /// The next span whose digest begins.
    next_cut: usize,
    /// The span that comes, and what has come of it behind the headroom.
    number: usize,
    gathered: Vec<u8>,
    /// Buffers of spans that are done with.
    spent: Vec<Vec<u8>>,
    under_way: Queue,
    tar: Reader,
    records: Vec<Record>,
    diff_id: Hasher,
    sums: Vec<SpanSum>,
    len: u64,
}

/// Spans that are being decoded, in order.
#[derive(Default)]
struct Queue {
    spans: VecDeque<UnderWay>,
    bytes: u64,
}

struct UnderWay {
    bytes: u64,
    done: Receiver<Result<Done, SpansError>>,
}

impl Queue {
    fn is_full_with(&self, bytes: u64) -> bool {
        !self.spans.is_empty() && self.bytes + bytes > BYTES_MAX
    }

    fn is_front_done(&self) -> bool {
        self.spans.front().is_some_and(|front| !front.done.is_empty())
    }

    /// Wait for the oldest span.
    fn pop(&mut self) -> Option<Result<Done, SpansError>> {
        let UnderWay { bytes, done } = self.spans.pop_front()?;
        self.bytes -= bytes;
        Some(done.recv().unwrap_or_else(|_| Err(other("a span was lost while it was decoded"))))
    }
}

impl Drop for Queue {
    /// Nothing is written behind the back of whoever uses the sink's file next.
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

struct Done {
    span: InflatedSpan,
    crc: u32,
}

impl<'a> SpanBuilder<'a> {
    /// Builder at the start of the blob of `layer`. Starts a hashing thread.
    pub fn new(
        layer: Digest,
        known: KnownToc,
        pool: &'a Pool,
        priority: Priority,
        sink: Arc<SpanSink>,
    ) -> Result<Self, SpansError> {
        let spent_pieces = Spent::new(SPENT_PIECES_MAX);
        let blob = HashThread::start("hash-blob", spent_pieces.clone());
        Ok(Self {
            layer,
            known: Arc::new(known),
            pool,
            priority,
            sink,
            blob: blob.map_err(BuildError::Start)?,
            spent_pieces,
            blob_size: 0,
            next_cut: 0,
            number: 0,
            gathered: vec![0; HEADROOM],
            spent: Vec::new(),
            under_way: Queue::default(),
            tar: Reader::new(Limits::default()),
            records: Vec::new(),
            diff_id: Hasher::new(Algorithm::Sha256),
            sums: Vec::new(),
            len: 0,
        })
    }

    /// The next bytes of the blob. Waits while too much is under way.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), SpansError> {
        for piece in bytes.chunks(PIECE_LEN) {
            let end = self.blob_size + piece.len() as u64;
            let mut cuts = Vec::new();
            while let Some(cut) = self.known.cut(self.next_cut).filter(|cut| cut.at < end) {
                cuts.push(cut);
                self.next_cut += 1;
            }
            let mut buffer = self.spent_pieces.take(0);
            buffer.extend_from_slice(piece);
            self.blob.hash(Arc::new(buffer), cuts);
            self.gather(piece)?;
            self.blob_size = end;
        }
        Ok(())
    }

    /// Put a piece where its spans are gathered; full ones go to the decoders.
    fn gather(&mut self, piece: &[u8]) -> Result<(), SpansError> {
        let end = self.blob_size + piece.len() as u64;
        while let Some(span) = self.known.table.spans().get(self.number) {
            let (start, stop) = (span.compressed.start.0, span.compressed.end.0);
            let from = start + (self.gathered.len() - HEADROOM) as u64;
            // What precedes the first span is no span's.
            let from = from.max(self.blob_size);
            let to = stop.min(end);
            if from < to {
                let part = (from - self.blob_size) as usize..(to - self.blob_size) as usize;
                self.gathered.extend_from_slice(piece.get(part).unwrap_or_default());
            }
            if end < stop {
                break;
            }
            let mut next = self.spent.pop().unwrap_or_default();
            next.clear();
            next.resize(HEADROOM, 0);
            // A byte in which both have bits may have come with an earlier piece.
            let is_shared = self.known.cut(self.number + 1).is_some_and(|cut| cut.is_shared);
            next.extend(self.gathered.last().filter(|_| is_shared));
            let full = std::mem::replace(&mut self.gathered, next);
            self.submit(full)?;
            self.number += 1;
        }
        Ok(())
    }

    fn submit(&mut self, bytes: Vec<u8>) -> Result<(), SpansError> {
        let charge = self.known.charge(self.number);
        while self.under_way.is_full_with(charge)
            && let Some(done) = self.under_way.pop()
        {
            self.take(done?)?;
        }
        let (layer, number, len) = (self.layer, self.number, bytes.len());
        let (known, sink) = (Arc::clone(&self.known), Arc::clone(&self.sink));
        let (tell, done) = bounded(1);
        let job = move |decoder: &mut Decoder| {
            let result = known.inflate(&layer, number, bytes, decoder).and_then(|span| {
                let (at, content) = (span.start(), span.bytes_and_tail());
                sink(at, content).map_err(|source| BuildError::Sink { at, source })?;
                Ok(Done { crc: crc32(content), span })
            });
            // Let go before it is told, for whoever is told may want the file for himself.
            drop((known, sink));
            let _ = tell.send(result);
        };
        self.under_way.spans.push_back(UnderWay { bytes: charge, done });
        self.under_way.bytes += charge;
        self.pool.submit(self.priority, len, Box::new(job)).map_err(|_| other("no room for it"))?;
        while self.under_way.is_front_done()
            && let Some(done) = self.under_way.pop()
        {
            self.take(done?)?;
        }
        Ok(())
    }

    /// Of the next span in order: what must be made in order.
    fn take(&mut self, done: Done) -> Result<(), SpansError> {
        let Done { mut span, crc } = done;
        let content = span.bytes_and_tail();
        if span.start().0 != self.len {
            return Err(other(format_args!("a span begins at {}", span.start())));
        }
        self.diff_id.update(content);
        self.tar.feed(content, &mut self.records).map_err(other)?;
        self.sums.push(SpanSum { start: span.start(), crc });
        self.len += content.len() as u64;
        self.spent.push(span.take_spent());
        Ok(())
    }

    /// The blob has ended.
    pub fn finish(mut self) -> Result<Built, SpansError> {
        while let Some(done) = self.under_way.pop() {
            self.take(done?)?;
        }
        let Self { known, blob, blob_size, tar, records, diff_id, sums, len, .. } = self;
        let archive = tar.finish().map_err(other)?;
        let hashes = blob.finish();
        if hashes.spans != known.digests {
            return Err(other("its spans have other digests"));
        }
        let ztoc = Ztoc::decode(&known.encoded).map_err(other)?;
        let ztoc = Ztoc { records, uncompressed_size: archive.size, ..ztoc };
        if ztoc.encode() != *known.encoded {
            return Err(other("its tar has other entries"));
        }
        Ok(Built {
            toc: Toc::Lazy(ztoc),
            blob_digest: hashes.whole,
            blob_size,
            diff_id: diff_id.finish(),
            uncompressed_len: len,
            archive,
            span_sums: sums,
            len_ahead: 0,
        })
    }
}
