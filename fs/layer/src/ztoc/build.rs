//! A new zTOC from what one pass over a layer has found.

use alloc::vec::Vec;

use super::decode::extent;
use super::{Compression, Restarts, VERSION, WINDOW_LEN, Ztoc};
use crate::tar::{Archive, BLOCK_LEN};
use crate::{Digest, Record, SpanError, SpanTable, UncompressedOffset};

/// What a builder has found in one pass over a layer.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Entries in archive order, from [`crate::tar::Reader::feed`].
    pub records: Vec<Record>,
    /// End of the archive, from [`crate::tar::Reader::finish`].
    pub archive: Archive,
    /// Bytes of the blob.
    pub compressed_size: u64,
    /// Where spans begin.
    pub restarts: Restarts,
    /// Digest of each span's compressed bytes, the byte that it shares with a neighbour included.
    pub span_digests: Vec<Digest>,
    /// Free text naming the builder.
    pub build_tool: Vec<u8>,
}

/// A layer that can't have a zTOC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why it can't.
    pub reason: BuildError,
    /// Its entries, for who goes on without.
    pub records: Vec<Record>,
}

/// Why a layer can't have a zTOC. It can still be unpacked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Kind of entry that peers don't index either.
    #[error("unsupported input tar entry '{}' at {at}", char::from(*.typeflag))]
    UnsupportedType {
        /// Type flag.
        typeflag: u8,
        /// Start of the entry.
        at: UncompressedOffset,
    },
    /// PAX sparse file: peers would write a zTOC that they then refuse to read.
    #[error("unsupported sparse file at {at}: its content in the tar is not its content")]
    Sparse {
        /// Start of the entry.
        at: UncompressedOffset,
    },
    /// Entry whose place a reader of the zTOC could not derive.
    #[error("entry at {at} does not begin where the entry before it ends, at {expected}")]
    Gap {
        /// Start of the entry.
        at: UncompressedOffset,
        /// Where a reader would look for it.
        expected: UncompressedOffset,
    },
    /// Too much for the format, whose offsets have 31 bits.
    #[error(
        "ztoc would have about {bytes} bytes, above the {ZTOC_BYTES_MAX} that the format allows"
    )]
    TooLarge {
        /// Bytes that it would have.
        bytes: u64,
    },
    /// Restart points that don't make spans.
    #[error("restart points can't be used")]
    Spans(#[from] SpanError),
}

/// Limit of FlatBuffers; some 65,000 checkpoints reach it.
const ZTOC_BYTES_MAX: u64 = i32::MAX as u64;

impl Ztoc {
    /// Put a zTOC together, refusing what a peer would refuse.
    ///
    /// # Panics
    ///
    /// If a checkpoint's window is neither empty nor [`WINDOW_LEN`] bytes long.
    pub fn from_parts(parts: Parts) -> Result<Self, Refused> {
        let Parts { records, archive, compressed_size, restarts, span_digests, build_tool } = parts;
        if let Err(reason) = check(&records, archive.global_header, &restarts) {
            return Err(Refused { reason, records });
        }
        let compression = match &restarts {
            Restarts::Gzip { checkpoints, .. } => {
                let whole = |len: usize| len == 0 || len == WINDOW_LEN;
                assert!(
                    checkpoints.iter().all(|checkpoint| whole(checkpoint.window.len())),
                    "a checkpoint's window is empty or {WINDOW_LEN} bytes long"
                );
                Compression::Gzip
            }
            Restarts::Uncompressed { .. } => Compression::Uncompressed,
            Restarts::Zstd { .. } => Compression::Zstd,
        };
        let ztoc = Self {
            version: VERSION.to_vec(),
            build_tool,
            compressed_size,
            uncompressed_size: archive.size,
            records,
            compression,
            span_digests,
            checkpoints: restarts.encode(compressed_size),
        };
        match SpanTable::of(&ztoc) {
            Ok(_) => Ok(ztoc),
            Err(error) => Err(Refused { reason: error.into(), records: ztoc.records }),
        }
    }
}

fn check(
    records: &[Record],
    global_header: Option<UncompressedOffset>,
    restarts: &Restarts,
) -> Result<(), BuildError> {
    check_entries(records, global_header)?;
    let bytes = restarts.encoded_len() + records.iter().map(encoded_len).sum::<u64>();
    if bytes > ZTOC_BYTES_MAX {
        return Err(BuildError::TooLarge { bytes });
    }
    Ok(())
}

fn check_entries(
    records: &[Record],
    global_header: Option<UncompressedOffset>,
) -> Result<(), BuildError> {
    let mut expected = UncompressedOffset(0);
    for record in records {
        let (at, typeflag) = (record.header, record.typeflag);
        if let Some(at) = global_header.filter(|&global| global < at) {
            return Err(BuildError::UnsupportedType { typeflag: b'g', at });
        }
        if matches!(typeflag, b'7' | b'S') {
            return Err(BuildError::UnsupportedType { typeflag, at });
        }
        if record.sparse.is_some() {
            return Err(BuildError::Sparse { at });
        }
        if at != expected {
            return Err(BuildError::Gap { at, expected });
        }
        let end =
            extent(record).and_then(|extent| extent.end.checked_next_multiple_of(BLOCK_LEN as u64));
        expected = UncompressedOffset(end.unwrap_or(u64::MAX));
    }
    match global_header {
        Some(at) => Err(BuildError::UnsupportedType { typeflag: b'g', at }),
        None => Ok(()),
    }
}

/// Bytes of an entry at most: its texts, and what FlatBuffers puts around them.
fn encoded_len(record: &Record) -> u64 {
    const ENTRY: usize = 256;
    const PAX_RECORD: usize = 40;
    let names = record.name.len() + record.link.len() + record.uname.len() + record.gname.len();
    let pax = record.pax.iter().map(|(key, value)| key.len() + value.len() + PAX_RECORD);
    (ENTRY + names + pax.sum::<usize>()) as u64
}
