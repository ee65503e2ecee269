//! Spans: the runs of a layer that can be decompressed alone.

use alloc::vec::Vec;
use core::ops::Range;

use crate::{CompressedOffset, Digest, UncompressedOffset};

/// How decompression of a span begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// The blob is not compressed: copy.
    Stored,
    /// Raw DEFLATE at a bit position, behind a 32 KiB window.
    Deflate {
        /// High-order bits of the first compressed byte that belong to the span; 0 to 7, 0 = whole.
        bits: u8,
        /// Where in the *encoded zTOC* the 32,768 window bytes stand. They stay on disk: at 32 KiB a
        /// span they would be most of our memory.
        window_at: u64,
    },
    /// The first byte of a zstd frame.
    ZstdFrame,
}

/// Run of a layer that can be decompressed alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Bytes of the blob to fetch. Neighbours share a byte where DEFLATE blocks meet inside it.
    pub compressed: Range<CompressedOffset>,
    /// Bytes of the tar that come out.
    pub uncompressed: Range<UncompressedOffset>,
    /// Digest of the compressed bytes, as the zTOC promises it.
    pub digest: Digest,
    /// Decoder state at its start.
    pub restart: Restart,
}

/// All spans of a layer: they abut, rise, and cover the layer exactly.
///
/// The last span's uncompressed end is the zTOC's archive size: what a blob holds behind it (record
/// padding) belongs to the diffID but to no file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanTable {
    pub(crate) spans: Vec<Span>,
    pub(crate) compressed_len: u64,
}

impl SpanTable {
    /// Spans in order; the index into this slice is the span's number.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Bytes of the blob.
    pub fn compressed_len(&self) -> u64 {
        self.compressed_len
    }

    /// Bytes of the tar up to the end of its last span.
    pub fn uncompressed_len(&self) -> u64 {
        self.spans.last().map_or(0, |span| span.uncompressed.end.0)
    }

    /// Numbers of the spans that hold any byte of `range` (clipped to the layer).
    pub fn covering(&self, range: Range<UncompressedOffset>) -> Range<usize> {
        if range.start >= range.end {
            return 0..0;
        }
        let first = self.spans.partition_point(|span| span.uncompressed.end <= range.start);
        let end = self.spans.partition_point(|span| span.uncompressed.start < range.end);
        first..end.max(first)
    }
}
