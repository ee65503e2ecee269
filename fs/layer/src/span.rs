//! Spans: the runs of a layer that can be decompressed alone.

use alloc::vec::Vec;
use core::ops::Range;

use crate::ztoc::zinfo::{self, GzipPoints, Point, TarCut};
use crate::ztoc::{Compression, View, Ztoc, ZtocError};
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
        /// Where in the *encoded zTOC* the 32,768 window bytes stand. They stay on disk: at 32 KiB
        /// a span they would be most of our memory. 0, where no window can be, stands for zeros:
        /// old zTOCs leave the window of the first span out, which needs none.
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
/// padding) belongs to the diffID but to no file. Spans wholly in that padding are left out, so the
/// last one's compressed end may lie before the blob's. None is empty but that of an empty layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanTable {
    spans: Vec<Span>,
    compressed_len: u64,
}

/// Why restart points don't make spans.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpanError {
    /// The encoded restart points can't be read.
    #[error("invalid restart points: {0}")]
    Encoding(&'static str),
    /// Counts that differ.
    #[error("there are {digests} span digests for {spans} spans")]
    Count {
        /// Spans that the restart points make.
        spans: u64,
        /// Digests that are there.
        digests: usize,
    },
    /// The first span does not begin at the layer's first byte.
    #[error("span 0 begins at {output}, expected 0")]
    Start {
        /// Where it begins.
        output: u64,
    },
    /// A span that ends before it begins, is empty without being the last, or has more than 7 bits.
    #[error("span offsets are non-monotonic at span {span}")]
    NonMonotonic {
        /// Number of the span.
        span: usize,
    },
    /// Sizes that differ.
    #[error("restart points are for a blob of {found} bytes, expected {expected}")]
    Size {
        /// Bytes of the blob.
        expected: u64,
        /// Bytes that the restart points say.
        found: u64,
    },
}

impl SpanTable {
    /// Spans of an encoded zTOC; its records are not looked at.
    pub fn from_ztoc(encoded: &[u8]) -> Result<Self, ZtocError> {
        let view = View::new(encoded)?;
        let digests = view.span_digests()?;
        let restarts = Restarts {
            compression: view.compression,
            encoded: view.checkpoints,
            encoded_at: view.checkpoints_at as u64,
            compressed_len: view.compressed_size,
            uncompressed_len: view.uncompressed_size,
        };
        restarts.table(&digests).map_err(ZtocError::Spans)
    }

    /// Spans that a table has given before, as somebody kept them.
    pub fn from_spans(spans: Vec<Span>, compressed_len: u64) -> Result<Self, SpanError> {
        check(&spans)?;
        let mut output = 0;
        for (number, span) in spans.iter().enumerate() {
            let start = span.uncompressed.start.0;
            if number == 0 && start > 0 {
                return Err(SpanError::Start { output: start });
            }
            let abuts = start == output && span.compressed.end.0 <= compressed_len;
            if !abuts || span.uncompressed.end.0 < start {
                return Err(SpanError::NonMonotonic { span: number });
            }
            output = span.uncompressed.end.0;
        }
        Ok(Self { spans, compressed_len })
    }

    /// Check a zTOC's spans. The windows' places are those within its `checkpoints`.
    pub(crate) fn of(ztoc: &Ztoc) -> Result<Self, SpanError> {
        let restarts = Restarts {
            compression: ztoc.compression,
            encoded: &ztoc.checkpoints,
            encoded_at: 0,
            compressed_len: ztoc.compressed_size,
            uncompressed_len: ztoc.uncompressed_size,
        };
        restarts.table(&ztoc.span_digests)
    }

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

struct Restarts<'a> {
    compression: Compression,
    encoded: &'a [u8],
    encoded_at: u64,
    compressed_len: u64,
    uncompressed_len: u64,
}

impl Restarts<'_> {
    fn table(&self, digests: &[Digest]) -> Result<SpanTable, SpanError> {
        let spans = match self.compression {
            Compression::Gzip => {
                let points = GzipPoints::new(self.encoded).map_err(SpanError::Encoding)?;
                let restart = |point: &Point| Restart::Deflate {
                    bits: point.bits,
                    window_at: point.window_at.map_or(0, |at| self.encoded_at + at as u64),
                };
                self.spans(points.count(), points.iter(), digests, restart)?
            }
            Compression::Zstd => {
                let frames = zinfo::frames(self.encoded).map_err(SpanError::Encoding)?;
                let count = frames.len();
                let points = frames.map(|frame| Point {
                    input: frame.input.0,
                    output: frame.output.0,
                    bits: 0,
                    window_at: None,
                });
                self.spans(count, points, digests, |_| Restart::ZstdFrame)?
            }
            Compression::Uncompressed => self.cut(digests)?,
        };
        Ok(SpanTable { spans, compressed_len: self.compressed_len })
    }

    fn spans(
        &self,
        count: usize,
        points: impl Iterator<Item = Point>,
        digests: &[Digest],
        restart: impl Fn(&Point) -> Restart,
    ) -> Result<Vec<Span>, SpanError> {
        if count != digests.len() {
            return Err(SpanError::Count { spans: count as u64, digests: digests.len() });
        }
        let mut spans: Vec<Span> = Vec::with_capacity(count);
        for (point, &digest) in points.zip(digests) {
            let shared = u64::from(point.bits > 0);
            let non_monotonic = SpanError::NonMonotonic { span: spans.len() };
            let start = point.input.checked_sub(shared).ok_or(non_monotonic.clone())?;
            if point.bits > 7 {
                return Err(non_monotonic);
            }
            match spans.last_mut() {
                Some(before) => {
                    before.compressed.end = CompressedOffset(point.input);
                    before.uncompressed.end = UncompressedOffset(point.output);
                }
                None if point.output > 0 => return Err(SpanError::Start { output: point.output }),
                None => {}
            }
            spans.push(Span {
                compressed: CompressedOffset(start)..CompressedOffset(self.compressed_len),
                uncompressed: UncompressedOffset(point.output)
                    ..UncompressedOffset(self.uncompressed_len),
                digest,
                restart: restart(&point),
            });
        }
        check(&spans)?;
        self.leave_out_padding(&mut spans);
        Ok(spans)
    }

    /// Drop what lies behind the archive's end, where checkpoints can stand, too.
    fn leave_out_padding(&self, spans: &mut Vec<Span>) {
        let end = UncompressedOffset(self.uncompressed_len);
        let kept = spans.partition_point(|span| span.uncompressed.start < end);
        spans.truncate(kept.max(1));
        if let Some(last) = spans.last_mut() {
            last.uncompressed.end = end;
        }
    }

    fn cut(&self, digests: &[Digest]) -> Result<Vec<Span>, SpanError> {
        let TarCut { span_size, size } = TarCut::new(self.encoded).map_err(SpanError::Encoding)?;
        if size != self.compressed_len {
            return Err(SpanError::Size { expected: self.compressed_len, found: size });
        }
        if self.uncompressed_len > size {
            return Err(SpanError::Size { expected: self.uncompressed_len, found: size });
        }
        let count = size.div_ceil(span_size);
        if count != digests.len() as u64 {
            return Err(SpanError::Count { spans: count, digests: digests.len() });
        }
        let start = |index: usize| (index as u64).saturating_mul(span_size).min(size);
        let mut spans = Vec::new();
        for (index, &digest) in digests.iter().enumerate() {
            let (start, end) = (start(index), start(index + 1));
            if start >= self.uncompressed_len {
                break;
            }
            spans.push(Span {
                compressed: CompressedOffset(start)..CompressedOffset(end),
                uncompressed: UncompressedOffset(start)
                    ..UncompressedOffset(end.min(self.uncompressed_len)),
                digest,
                restart: Restart::Stored,
            });
        }
        Ok(spans)
    }
}

/// Spans rise in both coordinates; the last may begin behind the end of the archive.
fn check(spans: &[Span]) -> Result<(), SpanError> {
    let last = spans.len().saturating_sub(1);
    let rises = |(index, span): (usize, &Span)| {
        let compressed = !span.compressed.is_empty();
        let uncompressed = !span.uncompressed.is_empty();
        if index == last {
            compressed || (!uncompressed && span.compressed.start == span.compressed.end)
        } else {
            compressed && uncompressed
        }
    };
    match spans.iter().enumerate().position(|span| !rises(span)) {
        Some(span) => Err(SpanError::NonMonotonic { span }),
        None => Ok(()),
    }
}
