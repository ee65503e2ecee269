//! Tar, read as a stream: every header form that layers carry, none of the file data.
//!
//! The rules are those of Go's `archive/tar`, which every tool of the field builds on: where
//! archives are odd, agreeing with it decides whether a layer's zTOC matches its peers.

mod header;
mod pax;
mod reader;
mod sparse;
#[cfg(test)]
mod tests;

pub(crate) use header::blank_record;
pub(crate) use pax::{Pax, time as pax_time};
pub use reader::Reader;

use crate::UncompressedOffset;

/// Bytes of a tar block; headers are one block, data is padded to whole ones.
pub const BLOCK_LEN: usize = 512;

/// What a hostile archive may cost us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries in the archive.
    pub entries_max: u64,
    /// Bytes of one PAX header or GNU long name; Go stops at the same number.
    pub extension_bytes_max: u64,
    /// Bytes of names, links and PAX records of all entries together.
    pub metadata_bytes_max: u64,
    /// Runs of stored bytes in one sparse file.
    pub sparse_segments_max: usize,
}

impl Default for Limits {
    /// Several times what the largest layers of the wild need: these have some 500,000 entries.
    fn default() -> Self {
        Self {
            entries_max: 2_000_000,
            extension_bytes_max: 1 << 20,
            metadata_bytes_max: 256 << 20,
            sparse_segments_max: 1 << 16,
        }
    }
}

/// What is known once the archive has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Archive {
    /// Position behind the second zero block, or the end of data where the archive has no such
    /// end; a zTOC's `uncompressed_archive_size`.
    pub size: u64,
    /// Entries read.
    pub entries: u64,
    /// Where the first PAX global header stands. It changes no entry here, but a layer that has one
    /// can't have a zTOC.
    pub global_header: Option<UncompressedOffset>,
}

/// Why bytes are not a tar that a layer may have. Offsets count from the archive's start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// Header block whose bytes don't add up.
    #[error("tar header at {at} has checksum {found}, expected {expected}")]
    Checksum {
        /// Start of the header block.
        at: UncompressedOffset,
        /// Sum of the block's bytes.
        expected: i64,
        /// Sum that the header claims; -1 if that is not a number.
        found: i64,
    },
    /// Field of a header that can't be read.
    #[error("tar header at {at} has an invalid {field}")]
    Field {
        /// Start of the header block.
        at: UncompressedOffset,
        /// Which field.
        field: &'static str,
    },
    /// PAX header that can't be read.
    #[error("pax header before {at} is invalid: {reason}")]
    Pax {
        /// Position behind the PAX payload.
        at: UncompressedOffset,
        /// What is wrong.
        reason: &'static str,
    },
    /// Sparse map that can't be read.
    #[error("sparse file at {at} has an invalid map: {reason}")]
    Sparse {
        /// Start of the entry's main header.
        at: UncompressedOffset,
        /// What is wrong.
        reason: &'static str,
    },
    /// Kind of entry that no layer may carry.
    #[error("unsupported input tar entry '{}' at {at}", char::from(*.typeflag))]
    UnsupportedType {
        /// Start of the header block.
        at: UncompressedOffset,
        /// Its type flag.
        typeflag: u8,
    },
    /// Extension header that no entry follows.
    #[error("extension header at {at} has no entry behind it")]
    Orphan {
        /// Start of the extension header.
        at: UncompressedOffset,
    },
    /// A single zero block with something else behind it.
    #[error("tar has a header at {at} behind a lone zero block")]
    LoneZeroBlock {
        /// Start of that header.
        at: UncompressedOffset,
    },
    /// The data ends inside a header or a file.
    #[error("tar ends at {at} inside {inside}")]
    Truncated {
        /// Length of the data.
        at: UncompressedOffset,
        /// What was being read.
        inside: &'static str,
    },
    /// One of [`Limits`] is passed.
    #[error("tar entry at {at} has {what} above the limit of {max}")]
    Limit {
        /// Start of the header block.
        at: UncompressedOffset,
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        max: u64,
    },
}
