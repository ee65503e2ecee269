//! zTOC: the table of contents of a layer's tar and the restart points of its compression, in the
//! FlatBuffers form that SOCI tools exchange.
//!
//! Decoded records take at most [`COPIES_MAX`] times the input's length, and so do decoded digests,
//! however the input's offsets overlap.

mod build;
mod decode;
mod encode;
mod flatbuffer;
#[cfg(test)]
mod tests;
mod time;
pub mod zinfo;

pub use build::{BuildError, Parts, Refused};
pub use decode::View;
pub use zinfo::{Checkpoint, Frame, Restarts, WINDOW_LEN};

use alloc::vec::Vec;

use crate::{Digest, DigestError, Record};

/// Bytes that decoding may allocate for each byte of input. A record of ours is about twice as
/// long as the table it comes from; beyond this factor an encoded zTOC uses its bytes many times.
pub const COPIES_MAX: usize = 8;

/// Format version that every release of the peer writes and none checks.
pub const VERSION: &[u8] = b"0.9";

/// How a layer's blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// gzip, one or more members.
    Gzip,
    /// Plain tar.
    Uncompressed,
    /// zstd frames. No released peer reads this; it stays on our own machines.
    Zstd,
}

impl Compression {
    fn from_code(code: i8) -> Option<Self> {
        [Self::Gzip, Self::Uncompressed, Self::Zstd].into_iter().find(|known| known.code() == code)
    }

    fn code(self) -> i8 {
        match self {
            Self::Gzip => 1,
            Self::Uncompressed => 2,
            Self::Zstd => 3,
        }
    }
}

/// A zTOC, field by field as exchanged.
///
/// A decoded record has no [`Record::sparse`], the type flag of its kind, and its header derived
/// from the entry before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ztoc {
    /// Format version; every release writes `0.9` and none checks it.
    pub version: Vec<u8>,
    /// Free text naming the builder.
    pub build_tool: Vec<u8>,
    /// Bytes of the blob.
    pub compressed_size: u64,
    /// Position behind the tar's two end-of-archive blocks.
    pub uncompressed_size: u64,
    /// The tar's entries in archive order.
    pub records: Vec<Record>,
    /// Compression of the blob.
    pub compression: Compression,
    /// Digest of each span's compressed bytes.
    pub span_digests: Vec<Digest>,
    /// The restart points, still in their encoded form; see [`zinfo`].
    pub checkpoints: Vec<u8>,
}

/// Why bytes are not a zTOC.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZtocError {
    /// An offset leads nowhere.
    #[error("cannot unmarshal ztoc: offset at byte {at} leads outside")]
    OutOfBounds {
        /// Place of the offset or of what it leads to.
        at: usize,
    },
    /// Decoding would take far more memory than the input is long.
    #[error("cannot unmarshal ztoc: decoded it is over {max} bytes, far longer than its bytes")]
    TooLarge {
        /// Bytes that this input may become.
        max: usize,
    },
    /// Size below zero.
    #[error("ztoc has a negative size {size}")]
    NegativeSize {
        /// The size.
        size: i64,
    },
    /// Value that means no compression.
    #[error("ztoc has the unknown compression algorithm {code}")]
    UnknownCompression {
        /// The value.
        code: i8,
    },
    /// Field of an entry that can't be read.
    #[error("ztoc entry {index} has an invalid {field}")]
    Entry {
        /// Number of the entry.
        index: usize,
        /// Which field.
        field: &'static str,
    },
    /// Entries that overlap, or lie behind the end of the archive.
    #[error("invalid toc entry {index}: data at {data} overlaps another entry or the end")]
    InvalidToc {
        /// Number of the entry.
        index: usize,
        /// Where its data would be.
        data: u64,
    },
    /// Digest that can't be read.
    #[error("digest of span {span} can't be read")]
    Digest {
        /// Number of the span.
        span: usize,
        /// Why.
        source: DigestError,
    },
    /// Counts of spans that differ.
    #[error("ztoc has the max span id {max_span_id}, but {digests} span digests")]
    SpanCount {
        /// Number of the last span, as claimed.
        max_span_id: i32,
        /// Digests that are there.
        digests: usize,
    },
    /// The restart points can't be used.
    #[error("ztoc's restart points can't be used")]
    Spans(#[source] crate::SpanError),
}
