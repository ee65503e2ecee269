//! The thread that scans a blob's pieces in order.

use std::sync::Arc;

use spanfs_layer::Ztoc;
use spanfs_layer::ztoc::{Compression, Parts, Restarts};

use super::backlog::Shape;
use super::feed::Feed;
use super::gzip::GzipScan;
use super::hashing::{Cut, HashThread, Hashes};
use super::output::Output;
use super::spent::Spent;
use super::stored::StoredScan;
use super::tar::Tar;
use super::zstd::ZstdScan;
use super::{BuildError, BuildOptions, Built, NotLazy, Sink, Toc, compression_of};

/// What a scan leaves behind.
pub(super) type Scanned = Result<Restarts, NotLazy>;

/// What came of a whole blob.
pub(super) struct Finished {
    pub(super) scanned: Scanned,
    pub(super) tar: Tar,
    pub(super) hashes: Hashes,
    pub(super) blob_size: u64,
    pub(super) len_ahead: u64,
}

impl Finished {
    pub(super) fn into_built(self, build_tool: String) -> Built {
        let Self { scanned, tar, hashes, blob_size, len_ahead } = self;
        let (blob_digest, archive) = (hashes.whole, tar.archive);
        let whole = |records, reason| Toc::Whole { records, reason };
        let toc = match scanned {
            Err(reason) => whole(tar.records, reason),
            Ok(restarts) => {
                let parts = Parts {
                    records: tar.records,
                    archive,
                    compressed_size: blob_size,
                    restarts,
                    span_digests: hashes.spans,
                    build_tool: build_tool.into_bytes(),
                };
                Ztoc::from_parts(parts)
                    .map_or_else(|refused| whole(refused.records, refused.reason.into()), Toc::Lazy)
            }
        };
        Built {
            toc,
            blob_digest,
            blob_size,
            diff_id: tar.diff_id.unwrap_or(blob_digest),
            uncompressed_len: tar.len,
            archive,
            span_sums: tar.sums,
            len_ahead,
        }
    }
}

pub(super) struct Pass {
    pub(super) feed: Arc<Feed>,
    pub(super) options: BuildOptions,
    pub(super) sink: Box<dyn Sink>,
    pub(super) blob: HashThread,
}

enum Scan {
    Gzip(GzipScan),
    Zstd(ZstdScan),
    Stored(StoredScan),
}

/// However a scan ends, whoever feeds it is told.
struct End(Arc<Feed>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

impl Pass {
    /// Scan all pieces.
    pub(super) fn run(self) -> Result<Finished, BuildError> {
        let Self { feed, options, sink, blob } = self;
        let _end = End(Arc::clone(&feed));
        let head = feed.wait_for(0)?;
        let head = head.as_ref().map_or(&[][..], |(piece, _)| piece);
        let compression = options.compression.unwrap_or_else(|| compression_of(head));
        if compression == Compression::Zstd {
            feed.find_frames();
        }
        let mut scan = Scan::of(compression, options.span_size)?;
        // The digest of a plain tar is that of the blob.
        let is_hashed = compression != Compression::Uncompressed;
        let (spent, is_given_up) = (feed.rooms.known.clone(), Arc::clone(&feed.is_given_up));
        let len_max = options.uncompressed_bytes_max;
        let mut output = Output::start(sink, spent, is_hashed, is_given_up, len_max)?;
        match scan_all(&feed, &mut scan, &mut output, &blob) {
            Err(error) => Err(output.fail(error)),
            Ok(blob_size) => {
                let len_ahead = scan.len_ahead();
                match scan.finish(output.position(), blob_size) {
                    Err(error) => Err(output.fail(error)),
                    Ok(scanned) => {
                        let tar = output.finish()?;
                        let hashes = blob.finish();
                        Ok(Finished { scanned, tar, hashes, blob_size, len_ahead })
                    }
                }
            }
        }
    }
}

/// Scan a whole blob on this thread; before that, if `is_helped`, what helpers may take. For fuzzing
/// and tests, as nothing in it depends on time.
pub(super) fn run_alone(
    blob: &[u8],
    shape: Shape,
    is_helped: bool,
    options: BuildOptions,
    sink: Box<dyn Sink>,
) -> Result<Built, BuildError> {
    let (feed, build_tool) = (Feed::new(shape), options.build_tool.clone());
    feed.fill(blob.chunks(shape.piece_len).map(|piece| Arc::new(piece.to_vec())));
    if is_helped {
        feed.decode_all(options.compression.unwrap_or_else(|| compression_of(blob)));
    }
    let blob = HashThread::start("hash-blob", Spent::new(0)).map_err(BuildError::Start)?;
    Ok(Pass { feed, options, sink, blob }.run()?.into_built(build_tool))
}

/// Scan what there is, as it comes; the bytes of the blob.
fn scan_all(
    feed: &Arc<Feed>,
    scan: &mut Scan,
    output: &mut Output,
    blob: &HashThread,
) -> Result<u64, BuildError> {
    let (mut at, mut cuts) = (0, Vec::new());
    while let Some((piece, offset)) = feed.wait_for(at)? {
        let input = piece.get(offset..).unwrap_or_default();
        at = match scan {
            Scan::Gzip(scan) => scan.scan(at, input, feed, output, &mut cuts)?,
            Scan::Zstd(scan) => scan.scan(input, feed, output, &mut cuts)?,
            Scan::Stored(scan) => scan.feed(input, output, &mut cuts)?,
        };
        drop(piece);
        while let Some((done, end)) = feed.take_before(at) {
            let behind = cuts.partition_point(|cut: &Cut| cut.at <= end);
            blob.hash(done, cuts.drain(..behind).collect());
        }
    }
    Ok(at)
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

    fn len_ahead(&self) -> u64 {
        match self {
            Self::Gzip(scan) => scan.len_ahead(),
            Self::Zstd(scan) => scan.len_ahead(),
            Self::Stored(_) => 0,
        }
    }

    /// The blob of so many bytes ended, from which `len` came.
    fn finish(self, len: u64, blob_size: u64) -> Result<Scanned, BuildError> {
        match self {
            Self::Gzip(scan) => scan.finish(len, blob_size),
            Self::Zstd(scan) => scan.finish(len),
            Self::Stored(scan) => Ok(Ok(scan.finish())),
        }
    }
}
