//! A compressed layer, once past: its tar, its zTOC, its digests.
//!
//! [`LayerBuilder`] takes the blob in pieces of any size. Out of one pass come the tar's bytes in
//! order (to a sink, which fills the layer file), its records, the restart points, and the digests of
//! blob, spans and tar. Inflating is the dear part: it has a thread of its own, the scan, and for gzip
//! helpers, which decode what lies ahead as soon as a core is free.
//!
//! ```text
//! feed ─▶ pieces ─┬─▶ scan: gzip │ zstd │ stored ─┬─▶ chunks ─▶ sums, tar reader, sink ─▶ diffID
//!                 │      ▲ true place, window       └─▶ pieces with cuts ─▶ blob digest, span digests
//!                 └─▶ helpers: stretches ahead
//! ```

mod ahead;
mod backlog;
pub mod cost;
mod feed;
mod frames;
mod gzip;
mod hashing;
mod join;
mod output;
mod scan;
mod spans;
mod spent;
mod stored;
mod sums;
mod tar;
#[cfg(test)]
mod tests;
mod zstd;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use spanfs_layer::tar::{Archive, TarError};
use spanfs_layer::ztoc::{self, Compression};
use spanfs_layer::{Digest, Record, UncompressedOffset, Ztoc};

use backlog::Shape;
use feed::Feed;
use hashing::HashThread;
use scan::{Finished, Pass};
pub use spans::{KnownToc, SpanBuilder, SpanSink, SpansError};
use spent::Spent;
pub use sums::SpanSum;

use crate::inflate::Pool;

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
    /// Bytes of the tar that helpers decoded.
    pub len_ahead: u64,
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
    /// A thread or a decoder could not start.
    #[error("starting to read a layer")]
    Start(#[source] io::Error),
    /// Nobody wants it any more.
    #[error("reading the layer was stopped")]
    Stopped,
}

/// Where the tar's bytes go, in order, on a thread of their own.
pub trait Sink: FnMut(UncompressedOffset, &[u8]) -> io::Result<()> + Send + 'static {}

impl<F: FnMut(UncompressedOffset, &[u8]) -> io::Result<()> + Send + 'static> Sink for F {}

/// Takes one compressed layer in pieces. After an error it is of no more use. Once it is dropped or
/// finished, nothing goes to the sink any more.
pub struct LayerBuilder<'a> {
    build_tool: String,
    piece_len: usize,
    feed: Arc<Feed>,
    scan: Option<JoinHandle<Result<Finished, BuildError>>>,
    /// Bytes that the scan has not got yet.
    piece: Vec<u8>,
    spent: Spent<u8>,
    stop: Option<&'a AtomicBool>,
}

/// How often a wait looks whether it is still wanted.
const STOP_POLL: Duration = Duration::from_millis(50);

/// Pieces kept for what comes.
const SPENT_PIECES_MAX: usize = 8;

impl<'a> LayerBuilder<'a> {
    /// Builder at the start of a blob. Starts its threads.
    pub fn new(options: BuildOptions, sink: impl Sink) -> Result<Self, BuildError> {
        Self::cut_as(Shape::default(), options, sink)
    }

    fn cut_as(shape: Shape, options: BuildOptions, sink: impl Sink) -> Result<Self, BuildError> {
        let spent = Spent::new(SPENT_PIECES_MAX);
        let blob = HashThread::start("hash-blob", spent.clone()).map_err(BuildError::Start)?;
        let (build_tool, feed) = (options.build_tool.clone(), Feed::new(shape));
        let pass = Pass { feed: Arc::clone(&feed), options, sink: Box::new(sink), blob };
        let thread = thread::Builder::new().name("inflate".into());
        let scan = Some(thread.spawn(move || pass.run()).map_err(BuildError::Start)?);
        let (piece_len, piece) = (shape.piece_len, spent.take(0));
        Ok(Self { build_tool, piece_len, feed, scan, piece, spent, stop: None })
    }

    /// Let threads of `pool` decode ahead while fewer layers than it has threads are decoded.
    pub fn helped_by(self, pool: &Pool) -> Self {
        self.feed.employ(pool.crew());
        self
    }

    /// Once it is set, every wait ends with [`BuildError::Stopped`].
    pub fn stopped_by(mut self, stop: &'a AtomicBool) -> Self {
        self.stop = Some(stop);
        self
    }

    /// The next bytes of the blob. Waits while too many wait; what is wrong with them may only be
    /// told later.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), BuildError> {
        while !bytes.is_empty() {
            let room = self.piece_len - self.piece.len();
            let (now, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            bytes = rest;
            self.piece.extend_from_slice(now);
            if self.piece.len() == self.piece_len {
                self.push()?;
            }
        }
        Ok(())
    }

    /// The blob has ended.
    pub fn finish(mut self) -> Result<Built, BuildError> {
        if !self.piece.is_empty() {
            self.push()?;
        }
        let stop = self.stop;
        self.feed.complete(&|| is_set(stop))?;
        let build_tool = std::mem::take(&mut self.build_tool);
        Ok(self.join()?.into_built(build_tool))
    }

    fn push(&mut self) -> Result<(), BuildError> {
        let piece = std::mem::replace(&mut self.piece, self.spent.take(0));
        let stop = self.stop;
        match self.feed.push(Arc::new(piece), &|| is_set(stop))? {
            true => Ok(()),
            false => self.join().map(drop),
        }
    }

    /// What the scan found.
    fn join(&mut self) -> Result<Finished, BuildError> {
        let joined = self.scan.take().map(JoinHandle::join);
        joined
            .unwrap_or(Ok(Err(BuildError::Stopped)))
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for LayerBuilder<'_> {
    fn drop(&mut self) {
        self.feed.give_up();
        // What it found is of no interest.
        drop(self.scan.take().map(JoinHandle::join));
    }
}

fn is_set(stop: Option<&AtomicBool>) -> bool {
    stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
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

/// For fuzzing: whether a pass over `blob`, cut into pieces of `piece_len`, gives with helpers what it
/// gives without: tar and zTOC, or the same kind of fault.
pub(crate) fn is_same_with_helpers(blob: &[u8], piece_len: usize, options: &BuildOptions) -> bool {
    let shape = Shape { piece_len, stretch_pieces: 2, held_max: usize::MAX };
    let pass = |is_helped| {
        let tar = Arc::new(Mutex::new(Vec::new()));
        let gathered = Arc::clone(&tar);
        let sink = Box::new(move |_: UncompressedOffset, bytes: &[u8]| {
            gathered.lock().extend_from_slice(bytes);
            Ok(())
        });
        let built = scan::run_alone(blob, shape, is_helped, options.clone(), sink);
        let ztoc = match built.map_err(|error| std::mem::discriminant(&error))?.toc {
            Toc::Lazy(ztoc) => Some(ztoc.encode()),
            Toc::Whole { .. } => None,
        };
        Ok((std::mem::take(&mut *tar.lock()), ztoc))
    };
    let in_order: Result<_, std::mem::Discriminant<BuildError>> = pass(false);
    pass(true) == in_order
}
