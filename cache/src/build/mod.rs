//! A compressed layer, once past: its tar, its zTOC, its digests.
//!
//! [`LayerBuilder`] takes the blob in pieces of any size. Out of one pass come the tar's bytes in
//! order (to a sink, which fills the layer file), its records, the restart points, and the digests of
//! blob, spans and tar. Inflating is the dear part and stays on the caller's thread; hashing runs on
//! two threads beside it, fed through short queues.
//!
//! ```text
//! feed ─┬─ pieces with cuts ──────────────▶ thread: blob digest, span digests
//!       └─ scan: gzip │ zstd │ stored ─▶ output ─┬─▶ sink, tar reader
//!                                                └─▶ thread: diffID
//! ```

mod gzip;
mod hashing;
mod output;
mod spans;
mod stored;
mod sums;
#[cfg(test)]
mod tests;
mod zstd;

use std::io;

use spanfs_layer::tar::{Archive, TarError};
use spanfs_layer::ztoc::{self, Compression, Parts, Restarts};
use spanfs_layer::{Digest, Record, UncompressedOffset, Ztoc};

use gzip::GzipScan;
use hashing::{Cut, HashThread};
use output::Output;
pub use spans::{KnownToc, SpanBuilder, SpanSink, SpansError};
use stored::StoredScan;
pub use sums::SpanSum;
use zstd::ZstdScan;

/// Span size of the field's tools: 4 MiB of uncompressed bytes.
pub const SPAN_SIZE: u64 = 4 << 20;

/// Most that a layer may decompress to: with default spans, where the zTOC format ends too.
pub const UNCOMPRESSED_BYTES_MAX: u64 = 256 << 30;

/// Most spans of a layer. Each costs 32 KiB while the zTOC is built, so this is 1 GiB.
const SPANS_MAX: usize = 32 << 10;

/// Settings of a [`LayerBuilder`].
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// Compression of the blob; `None` looks at its first bytes.
    pub compression: Option<Compression>,
    /// Least uncompressed bytes of a span; exactly so many for a plain tar.
    pub span_size: u64,
    /// Text that names the builder in the zTOC.
    pub build_tool: String,
    /// Most that the blob may decompress to.
    pub uncompressed_bytes_max: u64,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            compression: None,
            span_size: SPAN_SIZE,
            build_tool: concat!("spanfs ", env!("CARGO_PKG_VERSION")).into(),
            uncompressed_bytes_max: UNCOMPRESSED_BYTES_MAX,
        }
    }
}

/// What one pass over a layer found.
#[derive(Debug)]
pub struct Built {
    /// The tar's entries, and the zTOC where there can be one.
    pub toc: Toc,
    /// SHA-256 of the blob.
    pub blob_digest: Digest,
    /// Bytes of the blob.
    pub blob_size: u64,
    /// SHA-256 of the tar.
    pub diff_id: Digest,
    /// Bytes of the tar, with all that follows the archive's end.
    pub uncompressed_len: u64,
    /// Where the archive ends.
    pub archive: Archive,
    /// Sums of the spans; of some, or none, where there is no zTOC.
    pub span_sums: Vec<SpanSum>,
}

/// The table of contents of a layer.
#[derive(Debug)]
pub enum Toc {
    /// Next time the layer can be had span by span.
    Lazy(Ztoc),
    /// The layer can only be had whole.
    Whole {
        /// The tar's entries.
        records: Vec<Record>,
        /// Why it has no zTOC.
        reason: NotLazy,
    },
}

impl Toc {
    /// The tar's entries in archive order.
    pub fn records(&self) -> &[Record] {
        match self {
            Self::Lazy(ztoc) => &ztoc.records,
            Self::Whole { records, .. } => records,
        }
    }
}

/// Why a sound layer has no zTOC.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLazy {
    /// An entry, or a restart point, that no zTOC can express.
    #[error("{0}")]
    Toc(#[from] ztoc::BuildError),
    /// Something that is no gzip member follows the last one.
    #[error("the last gzip member ends at {at}, but {len} bytes follow it")]
    TrailingBytes {
        /// Where it begins in the blob.
        at: u64,
        /// Bytes up to the blob's end.
        len: u64,
    },
    /// One zstd frame: there is nowhere to begin but at the start.
    #[error("the blob is a single zstd frame of {len} bytes")]
    OneFrame {
        /// Uncompressed bytes.
        len: u64,
    },
    /// A span too long to be decoded in memory.
    #[error("the span at {start} has {len} bytes, at most {max} can be decoded at once")]
    LongSpan {
        /// Where it begins.
        start: UncompressedOffset,
        /// Uncompressed bytes.
        len: u64,
        /// See [`crate::inflate::SPAN_BYTES_MAX`].
        max: u64,
    },
    /// More spans than we keep.
    #[error("the blob has more than {max} spans of the wanted size")]
    ManySpans {
        /// The limit.
        max: usize,
    },
}

/// Why a blob is not a layer.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Options that make no sense.
    #[error("span size 0 can't cut an uncompressed layer")]
    SpanSize,
    /// The compressed stream is not valid.
    #[error("decompressing the layer at byte {at}: {reason}")]
    Compressed {
        /// Position in the blob.
        at: u64,
        /// The decoder's words.
        reason: String,
    },
    /// The blob ends inside its compressed stream.
    #[error("the layer ends at byte {at} inside its compressed stream")]
    Truncated {
        /// Bytes of the blob.
        at: u64,
    },
    /// The blob decompresses to more than the options allow.
    #[error("the layer decompresses to more than {max} bytes")]
    TooLong {
        /// The limit.
        max: u64,
    },
    /// What comes out is no tar.
    #[error("reading the layer's tar")]
    Tar(#[from] TarError),
    /// The sink refused bytes.
    #[error("storing the layer's content at {at}")]
    Sink {
        /// Position in the tar.
        at: UncompressedOffset,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// A hashing thread or a decoder could not start.
    #[error("starting to read a layer")]
    Start(#[source] io::Error),
}

/// Where the tar's bytes go, in order.
pub trait Sink: FnMut(UncompressedOffset, &[u8]) -> io::Result<()> {}

impl<F: FnMut(UncompressedOffset, &[u8]) -> io::Result<()>> Sink for F {}

/// Takes one compressed layer in pieces. After an error it is of no more use.
pub struct LayerBuilder<S> {
    options: BuildOptions,
    scan: Scan,
    output: Output<S>,
    blob: HashThread,
    /// Bytes that the hashing thread has not got yet, and the span starts among them.
    piece: Vec<u8>,
    cuts: Vec<Cut>,
    blob_size: u64,
}

/// Blob bytes handed to the hashing thread at once.
const PIECE_LEN: usize = 256 << 10;

/// The longest magic that tells compressions apart.
const MAGIC_LEN: usize = 4;

enum Scan {
    /// The first bytes, too few to tell.
    Undecided(Vec<u8>),
    Gzip(GzipScan),
    Zstd(ZstdScan),
    Stored(StoredScan),
}

/// What a scan leaves behind.
type Scanned = Result<Restarts, NotLazy>;

impl<S: Sink> LayerBuilder<S> {
    /// Builder at the start of a blob. Starts two hashing threads.
    pub fn new(options: BuildOptions, sink: S) -> Result<Self, BuildError> {
        let scan = match options.compression {
            Some(compression) => Scan::of(compression, options.span_size)?,
            None => Scan::Undecided(Vec::new()),
        };
        let mut output = Output::new(sink, options.uncompressed_bytes_max)?;
        if matches!(scan, Scan::Stored(_)) {
            output.without_diff_id();
        }
        let blob = HashThread::start("hash-blob").map_err(BuildError::Start)?;
        let (piece, cuts) = (blob.buffer(), Vec::new());
        Ok(Self { options, scan, output, blob, piece, cuts, blob_size: 0 })
    }

    /// The next bytes of the blob.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        let Scan::Undecided(head) = &mut self.scan else { return self.scan(bytes) };
        head.extend_from_slice(bytes);
        if head.len() < MAGIC_LEN {
            return Ok(());
        }
        self.decide()
    }

    /// The blob has ended.
    pub fn finish(mut self) -> Result<Built, BuildError> {
        if matches!(self.scan, Scan::Undecided(_)) {
            self.decide()?;
        }
        let Self { options, scan, output, blob, piece, cuts, blob_size } = self;
        blob.hash(piece, cuts);
        let scanned = match scan {
            Scan::Gzip(scan) => scan.finish(output.position())?,
            Scan::Zstd(scan) => scan.finish(output.position())?,
            Scan::Stored(scan) => Ok(scan.finish()),
            Scan::Undecided(_) => unreachable!("decided above"),
        };
        let tar = output.finish()?;
        let hashes = blob.finish();
        let blob_digest = hashes.whole;
        let diff_id = tar.diff_id.unwrap_or(blob_digest);
        let (archive, uncompressed_len, span_sums) = (tar.archive, tar.len, tar.sums);
        let toc = match scanned {
            Ok(restarts) => {
                let parts = Parts {
                    // Kept for the layer that turns out to have no zTOC.
                    records: tar.records.clone(),
                    archive,
                    compressed_size: blob_size,
                    restarts,
                    span_digests: hashes.spans,
                    build_tool: options.build_tool.into_bytes(),
                };
                match Ztoc::from_parts(parts) {
                    Ok(ztoc) => Toc::Lazy(ztoc),
                    Err(error) => Toc::Whole { records: tar.records, reason: error.into() },
                }
            }
            Err(reason) => Toc::Whole { records: tar.records, reason },
        };
        Ok(Built { toc, blob_digest, blob_size, diff_id, uncompressed_len, archive, span_sums })
    }

    /// Choose the scan by the first bytes, and give them to it.
    fn decide(&mut self) -> Result<(), BuildError> {
        let Scan::Undecided(head) = &mut self.scan else { return Ok(()) };
        let head = std::mem::take(head);
        let compression = compression_of(&head);
        self.scan = Scan::of(compression, self.options.span_size)?;
        if compression == Compression::Uncompressed {
            self.output.without_diff_id();
        }
        self.scan(&head)
    }

    fn scan(&mut self, mut bytes: &[u8]) -> Result<(), BuildError> {
        while !bytes.is_empty() {
            let room = PIECE_LEN - self.piece.len();
            let (now, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            bytes = rest;
            self.piece.extend_from_slice(now);
            self.blob_size += now.len() as u64;
            match &mut self.scan {
                Scan::Gzip(scan) => scan.feed(now, &mut self.output, &mut self.cuts)?,
                Scan::Zstd(scan) => scan.feed(now, &mut self.output, &mut self.cuts)?,
                Scan::Stored(scan) => scan.feed(now, &mut self.output, &mut self.cuts)?,
                Scan::Undecided(_) => unreachable!("bytes are scanned once the scan is chosen"),
            }
            if self.piece.len() == PIECE_LEN {
                let piece = std::mem::replace(&mut self.piece, self.blob.buffer());
                self.blob.hash(piece, std::mem::take(&mut self.cuts));
            }
        }
        Ok(())
    }
}

impl Scan {
    fn of(compression: Compression, span_size: u64) -> Result<Self, BuildError> {
        Ok(match compression {
            Compression::Gzip => Self::Gzip(GzipScan::new(span_size)),
            Compression::Zstd => Self::Zstd(ZstdScan::new(span_size)?),
            Compression::Uncompressed if span_size == 0 => return Err(BuildError::SpanSize),
            Compression::Uncompressed => Self::Stored(StoredScan::new(span_size)),
        })
    }
}

/// Compression of a blob, by its first four bytes, as containerd tells it.
pub fn compression_of(head: &[u8]) -> Compression {
    const GZIP: [u8; 3] = [0x1f, 0x8b, 8];
    const ZSTD: u32 = 0xfd2f_b528;
    const ZSTD_SKIPPABLE: u32 = 0x184d_2a50;
    let word = head.first_chunk().map(|word| u32::from_le_bytes(*word));
    match word {
        _ if head.starts_with(&GZIP) => Compression::Gzip,
        Some(word) if word == ZSTD || word & !0xf == ZSTD_SKIPPABLE => Compression::Zstd,
        _ => Compression::Uncompressed,
    }
}
