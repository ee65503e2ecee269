//! Restart points in their encoded form, a zTOC's `checkpoints`: one form for each compression.
//!
//! gzip, little endian, packed:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 4 | i32, count of checkpoints |
//! | 4 | 8 | i64, span size that was asked for |
//! | 12 + 32785·k | 8 | i64, compressed offset of the first whole byte |
//! | + 8 | 8 | i64, uncompressed offset |
//! | + 16 | 1 | bits of the byte before that belong to the span |
//! | + 17 | 32768 | window, oldest byte first |
//!
//! In version 1, known by its length, checkpoint 0 is left out: compressed 10, uncompressed 0.
//!
//! uncompressed: a FlatBuffers table of version (i32), span size and file size (i64).
//!
//! zstd, ours alone, little endian, packed; spans begin at frames:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 4 | u32, version of this map: 1 |
//! | 4 | 4 | u32, count of frames |
//! | 8 + 16·k | 8 | u64, compressed offset of the frame |
//! | + 8 | 8 | u64, uncompressed offset |

use alloc::vec::Vec;

use super::flatbuffer::{Buffer, Builder};
use crate::{CompressedOffset, UncompressedOffset};

/// Bytes of a DEFLATE window, and so of a checkpoint's.
pub const WINDOW_LEN: usize = 32_768;

const GZIP_HEAD_LEN: usize = 12;
const CHECKPOINT_HEAD_LEN: usize = 17;
const CHECKPOINT_LEN: usize = CHECKPOINT_HEAD_LEN + WINDOW_LEN;
/// Where version 1 takes checkpoint 0 to be: behind a gzip header without optional fields.
const V1_FIRST_INPUT: u64 = 10;
const TAR_VERSION: i32 = 2;
const TAR_CUT_LEN: usize = 48;
const ZSTD_HEAD_LEN: usize = 8;
const ZSTD_VERSION: u32 = 1;
const FRAME_LEN: usize = 16;

/// DEFLATE decoder state between two blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// First whole byte of the block that starts here.
    pub input: CompressedOffset,
    /// Output so far.
    pub output: UncompressedOffset,
    /// High-order bits of the byte before `input` that belong to the block; 0 to 7.
    pub bits: u8,
    /// The 32,768 bytes before `output`, oldest first, filled up with zeros in front; or empty,
    /// which stands for zeros alone.
    pub window: Vec<u8>,
}

/// Start of a zstd frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// First byte of the frame.
    pub input: CompressedOffset,
    /// Output so far.
    pub output: UncompressedOffset,
}

/// Where decompression can begin: what a builder has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restarts {
    /// Checkpoints of a gzip blob, the first at output 0.
    Gzip {
        /// Span size that was asked for, in uncompressed bytes.
        span_size: u64,
        /// Rising.
        checkpoints: Vec<Checkpoint>,
    },
    /// A plain tar, cut every so many bytes.
    Uncompressed {
        /// Bytes of a span; not 0.
        span_size: u64,
    },
    /// Frames of a zstd blob that begin a span, the first at output 0.
    Zstd {
        /// Rising.
        frames: Vec<Frame>,
    },
}

impl Restarts {
    /// Bytes of the encoded form.
    pub(super) fn encoded_len(&self) -> u64 {
        let (head, count, len) = match self {
            Self::Gzip { checkpoints, .. } => (GZIP_HEAD_LEN, checkpoints.len(), CHECKPOINT_LEN),
            Self::Uncompressed { .. } => (TAR_CUT_LEN, 0, 0),
            Self::Zstd { frames } => (ZSTD_HEAD_LEN, frames.len(), FRAME_LEN),
        };
        (head as u64).saturating_add((count as u64).saturating_mul(len as u64))
    }

    /// The encoded form; `compressed_size` is the blob's.
    pub(super) fn encode(&self, compressed_size: u64) -> Vec<u8> {
        match self {
            Self::Gzip { span_size, checkpoints } => encode_gzip(*span_size, checkpoints),
            Self::Uncompressed { span_size } => {
                let mut builder = Builder::with_capacity(TAR_CUT_LEN);
                let mut table = builder.table(3);
                table.i32(0, TAR_VERSION);
                table.i64(1, *span_size as i64);
                table.i64(2, compressed_size as i64);
                let root = table.finish();
                builder.finish(root)
            }
            Self::Zstd { frames } => {
                let mut encoded = Vec::with_capacity(ZSTD_HEAD_LEN + frames.len() * FRAME_LEN);
                encoded.extend(ZSTD_VERSION.to_le_bytes());
                encoded.extend((frames.len() as u32).to_le_bytes());
                for frame in frames {
                    encoded.extend(frame.input.0.to_le_bytes());
                    encoded.extend(frame.output.0.to_le_bytes());
                }
                encoded
            }
        }
    }
}

fn encode_gzip(span_size: u64, checkpoints: &[Checkpoint]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(GZIP_HEAD_LEN + checkpoints.len() * CHECKPOINT_LEN);
    encoded.extend((checkpoints.len() as i32).to_le_bytes());
    encoded.extend((span_size as i64).to_le_bytes());
    for checkpoint in checkpoints {
        encoded.extend(checkpoint.input.0.to_le_bytes());
        encoded.extend(checkpoint.output.0.to_le_bytes());
        encoded.push(checkpoint.bits);
        encoded.extend_from_slice(&checkpoint.window);
        encoded.resize(encoded.len() + WINDOW_LEN - checkpoint.window.len(), 0);
    }
    encoded
}

/// A restart point as read, with the place of its window in the encoded form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// See [`Checkpoint::input`].
    pub input: u64,
    /// See [`Checkpoint::output`].
    pub output: u64,
    /// See [`Checkpoint::bits`].
    pub bits: u8,
    /// Where the window stands; `None` for zeros.
    pub window_at: Option<usize>,
}

/// Encoded gzip checkpoints, checked for length.
#[derive(Clone, Copy, Debug)]
pub struct GzipPoints<'a> {
    /// Span size that was asked for; peers accept odd values.
    pub span_size: i64,
    count: usize,
    encoded: &'a [u8],
}

impl<'a> GzipPoints<'a> {
    /// Read the head and check the length.
    pub fn new(encoded: &'a [u8]) -> Result<Self, &'static str> {
        const SHORT: &str = "checkpoints are shorter than their head";
        let count = encoded.first_chunk::<4>().map(|count| i32::from_le_bytes(*count));
        let count = count.ok_or(SHORT)?;
        let span_size = encoded.get(4..GZIP_HEAD_LEN).and_then(|bytes| bytes.first_chunk::<8>());
        let span_size = i64::from_le_bytes(*span_size.ok_or(SHORT)?);
        let count = usize::try_from(count).map_err(|_| "count of checkpoints is negative")?;
        let points = Self { span_size, count, encoded };
        let body = encoded.len() - GZIP_HEAD_LEN;
        let v1_body = count.checked_sub(1).and_then(|count| count.checked_mul(CHECKPOINT_LEN));
        if count.checked_mul(CHECKPOINT_LEN) == Some(body) || v1_body == Some(body) {
            return Ok(points);
        }
        Err("length of checkpoints does not match their count")
    }

    /// Checkpoints, those that version 1 leaves out included.
    pub fn count(&self) -> usize {
        self.count
    }

    fn lacks_first(&self) -> bool {
        let records = (self.encoded.len() - GZIP_HEAD_LEN) / CHECKPOINT_LEN;
        records < self.count
    }

    /// All checkpoints in order.
    pub fn iter(&self) -> impl Iterator<Item = Point> + 'a {
        let first = Point { input: V1_FIRST_INPUT, output: 0, bits: 0, window_at: None };
        let stored = self.encoded.get(GZIP_HEAD_LEN..).unwrap_or_default();
        let stored =
            stored.chunks_exact(CHECKPOINT_LEN).enumerate().filter_map(|(index, bytes)| {
                Some(Point {
                    input: u64::from_le_bytes(*bytes.first_chunk()?),
                    output: u64::from_le_bytes(*bytes.get(8..)?.first_chunk()?),
                    bits: *bytes.get(16)?,
                    window_at: Some(GZIP_HEAD_LEN + index * CHECKPOINT_LEN + CHECKPOINT_HEAD_LEN),
                })
            });
        self.lacks_first().then_some(first).into_iter().chain(stored)
    }
}

/// Cut of a plain tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TarCut {
    /// Bytes of a span.
    pub span_size: u64,
    /// Bytes of the file.
    pub size: u64,
}

impl TarCut {
    /// Read and check.
    pub fn new(encoded: &[u8]) -> Result<Self, &'static str> {
        const ODD: &str = "tar zinfo is not a table";
        let table = Buffer::root(encoded).map_err(|_| ODD)?;
        let span_size = table.i64(1).map_err(|_| ODD)?;
        let size = table.i64(2).map_err(|_| ODD)?;
        match (u64::try_from(span_size), u64::try_from(size)) {
            (Err(_) | Ok(0), _) => Err("span size of an uncompressed layer is not above 0"),
            (_, Err(_)) => Err("size of an uncompressed layer is negative"),
            (Ok(span_size), Ok(size)) => Ok(Self { span_size, size }),
        }
    }
}

/// Read zstd frames.
pub fn frames(encoded: &[u8]) -> Result<impl ExactSizeIterator<Item = Frame>, &'static str> {
    let head = encoded.first_chunk::<ZSTD_HEAD_LEN>().ok_or("frame table is too short")?;
    let (&[v0, v1, v2, v3, c0, c1, c2, c3], body) = (head, encoded.get(ZSTD_HEAD_LEN..));
    if u32::from_le_bytes([v0, v1, v2, v3]) != ZSTD_VERSION {
        return Err("frame table has an unknown version");
    }
    let count = u32::from_le_bytes([c0, c1, c2, c3]) as usize;
    let (records, rest) = body.unwrap_or_default().as_chunks::<FRAME_LEN>();
    if records.len() != count || !rest.is_empty() {
        return Err("length of the frame table does not match its count");
    }
    Ok(records.iter().map(|&[i0, i1, i2, i3, i4, i5, i6, i7, output @ ..]| Frame {
        input: CompressedOffset(u64::from_le_bytes([i0, i1, i2, i3, i4, i5, i6, i7])),
        output: UncompressedOffset(u64::from_le_bytes(output)),
    }))
}
