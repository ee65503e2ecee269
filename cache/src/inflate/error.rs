//! Why a span can't be had from its compressed bytes.

use spanfs_layer::Digest;

/// Fetched bytes are not those of their span. Another source may have better ones.
#[derive(Clone, Debug, thiserror::Error)]
#[error("checking span {number} of layer {layer}: {fault}")]
pub struct VerifyError {
    /// Layer.
    pub layer: Digest,
    /// Number of the span.
    pub number: usize,
    /// What was wrong; boxed because two digests are large.
    pub fault: Box<VerifyFault>,
}

/// What is wrong with fetched bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyFault {
    /// The table has no such span.
    #[error("the layer has only {count} spans")]
    NoSpan {
        /// Spans in the table.
        count: usize,
    },
    /// Too few or too many bytes.
    #[error("found {found} compressed bytes, expected {expected}")]
    Length {
        /// Bytes fetched.
        found: u64,
        /// Bytes of the span.
        expected: u64,
    },
    /// Other bytes.
    #[error("digest of the compressed bytes is {found}, expected {expected}")]
    Digest {
        /// Digest of the bytes fetched.
        found: Digest,
        /// Digest that the zTOC promises.
        expected: Digest,
    },
}

/// Verified bytes don't decode to what the span table says: the layer's zTOC is wrong.
#[derive(Clone, Debug, thiserror::Error)]
#[error("inflating span {number} of layer {layer}: {fault}")]
pub struct InflateError {
    /// Layer.
    pub layer: Digest,
    /// Number of the span.
    pub number: usize,
    /// What was wrong.
    pub fault: InflateFault,
}

/// What is wrong with a span's compressed bytes, or with what was said about them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InflateFault {
    /// No encoder packs so much into so little.
    #[error("{compressed} compressed bytes can't yield {declared}")]
    Implausible {
        /// Compressed bytes.
        compressed: u64,
        /// Bytes that the table says.
        declared: u64,
    },
    /// More than we decode in memory.
    #[error("{declared} bytes, at most {max} can be decoded at once")]
    TooLong {
        /// Bytes that the table says.
        declared: u64,
        /// See [`super::SPAN_BYTES_MAX`].
        max: u64,
    },
    /// The stream itself is not valid.
    #[error("{0}")]
    Stream(String),
    /// It ends too early, or goes on.
    #[error("decoded to {found} bytes, expected {expected}")]
    WrongLength {
        /// Bytes that came out; where the span goes on, at least so many.
        found: u64,
        /// Bytes that the table says.
        expected: u64,
    },
    /// Behind the archive's end comes more than padding.
    #[error("more than {max} bytes follow the end of the archive")]
    LongTail {
        /// Most that we accept.
        max: u64,
    },
    /// The decoder could not start.
    #[error("no memory for the decoder")]
    NoMemory,
}
