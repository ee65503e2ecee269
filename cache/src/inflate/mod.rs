//! Spans from compressed to uncompressed: verified first, decoded whole, never short.
//!
//! [`VerifiedSpan`] holds compressed bytes that match the digest of their span and is all that
//! [`Decoder::inflate`] takes; [`InflatedSpan`] is built only there and knows its layer and number.
//! [`Pool`] runs decoders on all cores.

mod buffers;
mod error;
mod gzip;
mod pool;
mod splice;
#[cfg(test)]
mod tests;
mod verified;
mod zstd;

use std::ops::Range;
use std::sync::Arc;

pub use buffers::Buffers;
pub use error::{InflateError, InflateFault, VerifyError, VerifyFault};
pub(crate) use pool::{Crew, Turn};
pub use pool::{Job, Pool, PoolFull, PoolOptions};
pub use splice::HEADROOM;
pub use verified::VerifiedSpan;
pub(crate) use zstd::decoder as zstd_decoder;

use spanfs_layer::ztoc::WINDOW_LEN;
use spanfs_layer::{Digest, Restart, UncompressedOffset};

use splice::{Edges, End};

/// Most bytes that one span may decode to in memory. The default span is 4 MiB; only encoders that
/// hardly ever begin a new block exceed it, and such layers are downloaded in full instead.
pub const SPAN_BYTES_MAX: u64 = 512 << 20;

/// Most bytes behind the end of the archive that a layer may hold. Record padding is some KiB; more
/// than this is junk that would be decoded for nothing.
pub const TAIL_BYTES_MAX: u64 = 64 << 20;

/// First room given to the tail: more than tar's default record of 10,240 bytes.
const TAIL_BYTES_EXPECTED: usize = 64 * 1024;

/// Bytes that one byte can decode to at most: DEFLATE (258 bytes from two bits), and zstd (a block
/// of 128 KiB from four bytes).
const DEFLATE_RATIO_MAX: u64 = 1032;
const ZSTD_RATIO_MAX: u64 = 32 * 1024;

/// Uncompressed bytes of one span, complete. Built only by the decoder.
pub struct InflatedSpan {
    layer: Digest,
    number: usize,
    start: UncompressedOffset,
    buffer: Vec<u8>,
    /// Where span and tail stand in `buffer`.
    content: Range<usize>,
    span_len: usize,
    home: Option<Arc<Buffers>>,
    /// Memory of the compressed bytes.
    spent: Vec<u8>,
}

impl InflatedSpan {
    /// Layer that the span belongs to.
    pub fn layer(&self) -> &Digest {
        &self.layer
    }

    /// Its number in the layer's span table.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Where its first byte stands in the layer.
    pub fn start(&self) -> UncompressedOffset {
        self.start
    }

    /// Its bytes, exactly as many as the span table says.
    pub fn bytes(&self) -> &[u8] {
        self.bytes_and_tail().get(..self.span_len).unwrap_or_default()
    }

    /// What the blob holds behind the archive's end, directly behind [`Self::bytes`]; empty but for
    /// the last span. No file needs it; the diffID covers it.
    pub fn tail(&self) -> &[u8] {
        self.bytes_and_tail().get(self.span_len..).unwrap_or_default()
    }

    /// Memory of the compressed bytes, for whoever fetched them; empty where they are the output.
    pub fn take_spent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.spent)
    }

    /// Both, as they stand in the layer from [`Self::start`] on.
    pub fn bytes_and_tail(&self) -> &[u8] {
        self.buffer.get(self.content.clone()).unwrap_or_default()
    }
}

impl Drop for InflatedSpan {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.put(std::mem::take(&mut self.buffer));
        }
    }
}

/// Decodes one span after another; keeps its tables between them. One for each thread.
pub struct Decoder {
    buffers: Arc<Buffers>,
    gzip: gzip::Gzip,
    zstd: zstd::Zstd,
}

/// What a decoder has to produce, and where it put it.
struct Output {
    buffer: Vec<u8>,
    /// Bytes at the start of `buffer` that are window.
    skip: usize,
    /// Bytes of span and tail.
    len: usize,
}

/// How much has to come out.
#[derive(Clone, Copy)]
struct Wanted {
    /// Bytes of the span.
    span_len: usize,
    /// Further bytes that may come behind them.
    tail_max: usize,
}

impl Wanted {
    fn max(self) -> usize {
        self.span_len + self.tail_max
    }

    /// `len` is right, or the fault to report.
    fn check(self, len: usize) -> Result<(), InflateFault> {
        if len > self.max() && self.tail_max > 0 {
            return Err(InflateFault::LongTail { max: self.tail_max as u64 });
        }
        if len < self.span_len || len > self.max() {
            return Err(InflateFault::WrongLength {
                found: len as u64,
                expected: self.span_len as u64,
            });
        }
        Ok(())
    }
}

impl Decoder {
    /// Decoder whose output comes from `buffers`.
    pub fn new(buffers: Arc<Buffers>) -> Self {
        Self { buffers, gzip: gzip::Gzip::default(), zstd: zstd::Zstd::default() }
    }

    /// Decode `frame`, one whole zstd frame, to place `len` of `buffer`, which grows where it must. Gives where it
    /// ends there; `None` if it is no frame, or ends behind `len_max`.
    pub(crate) fn inflate_frame(
        &mut self,
        frame: &[u8],
        buffer: &mut Vec<u8>,
        len: usize,
        len_max: usize,
    ) -> Option<usize> {
        self.zstd.inflate_frame(frame, buffer, len, len_max)
    }

    /// Decode a span: exactly the bytes that its table promises, or an error.
    ///
    /// `window` is the 32 KiB before it, as its checkpoint holds them; the first span of a layer and
    /// those that are not DEFLATE need none.
    pub fn inflate(
        &mut self,
        span: VerifiedSpan,
        window: Option<&[u8; WINDOW_LEN]>,
    ) -> Result<InflatedSpan, InflateError> {
        let VerifiedSpan { layer, number, span, end, bytes, headroom } = span;
        let compressed_len = (bytes.len() - headroom) as u64;
        let start = span.uncompressed.start;
        let fail = |fault| InflateError { layer, number, fault };
        let wanted = wanted(span.uncompressed, span.restart, end, compressed_len).map_err(fail)?;
        let home = Some(self.buffers.clone());
        let (output, home, spent) = match span.restart {
            Restart::Stored => {
                let len = bytes.len() - headroom;
                (Output { buffer: bytes, skip: headroom, len }, None, Vec::new())
            }
            Restart::Deflate { bits, .. } => {
                let window = window.filter(|_| start.0 > 0);
                let edges = Edges { bits, end, window };
                let (output, spent) =
                    self.gzip.inflate(bytes, headroom, edges, wanted, &self.buffers);
                (output.map_err(fail)?, home, spent)
            }
            Restart::ZstdFrame => {
                let data = bytes.get(headroom..).unwrap_or_default();
                let output = self.zstd.inflate(data, wanted, &self.buffers);
                (output.map_err(fail)?, home, bytes)
            }
        };
        wanted.check(output.len).map_err(fail)?;
        let content = output.skip..output.skip + output.len;
        let (buffer, span_len) = (output.buffer, wanted.span_len);
        Ok(InflatedSpan { layer, number, start, buffer, content, span_len, home, spent })
    }
}

/// The lengths to expect, refused where the compressed bytes can't possibly yield them.
fn wanted(
    uncompressed: Range<UncompressedOffset>,
    restart: Restart,
    end: End,
    compressed_len: u64,
) -> Result<Wanted, InflateFault> {
    // The archive of a layer with much padding may end before its last checkpoint.
    let span_len = uncompressed.end.checked_since(uncompressed.start).unwrap_or(0);
    let ratio_max = match restart {
        Restart::Stored => 1,
        Restart::Deflate { .. } => DEFLATE_RATIO_MAX,
        Restart::ZstdFrame => ZSTD_RATIO_MAX,
    };
    let possible = compressed_len.saturating_mul(ratio_max);
    if span_len > possible {
        return Err(InflateFault::Implausible { compressed: compressed_len, declared: span_len });
    }
    if span_len > SPAN_BYTES_MAX {
        return Err(InflateFault::TooLong { declared: span_len, max: SPAN_BYTES_MAX });
    }
    let tail_max = match end {
        End::Inside(_) => 0,
        End::Blob | End::Unknown => TAIL_BYTES_MAX.min(possible - span_len),
    };
    let as_len = |len: u64| usize::try_from(len).unwrap_or(usize::MAX / 2);
    Ok(Wanted { span_len: as_len(span_len), tail_max: as_len(tail_max) })
}
