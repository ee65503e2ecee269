//! A layer that nobody can have span by span yet: its whole blob once, in order.
//!
//! ```text
//! blob ─┬─▶ chunks in memory ──────────┬─▶ builder ─┬─▶ part file ──(digests right)──▶ layer file
//!       └─▶ chunks in a file, resumable ┘   ▲        └─▶ zTOC, sums of the spans ──▶ journal, seal
//!                    │                     └─ program that decompresses, if one is set up
//!                    └──(digests right)──▶ whoever keeps blobs
//! ```
//!
//! In memory stand the chunks under way and what the builder holds. A layer that can't have a zTOC
//! stays as a finished local file; its entries are read from there the next time.

mod kept;
mod local;
mod pass;
mod program;
mod source;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use spanfs_fetch::buffer::{Download, Durable, Place, StreamOptions};
use spanfs_fetch::{Blob, Priority};
use spanfs_layer::{Digest, Record, Ztoc};

use crate::build::{BuildOptions, Built, Toc};
use crate::cache::claim::{self, Claim, FillLock, PassLock};
use crate::cache::directory::{self, BLOB, PART};
use crate::layer::open::{CONDEMNED, LAYER, remove_if_there, take_over};
use crate::layer::{Filled, open_filled};
use crate::{Cache, CacheError, Content, Layer, LayerSpec, Role};

pub use local::LocalLayer;
pub use program::Program;

/// Which layer to get whole, and how.
pub struct WholeSpec<'a> {
    /// Where the compressed bytes come from; gives the layer digest and size.
    pub blob: Arc<dyn Blob>,
    /// Digest of the uncompressed tar as the image config promises it.
    pub diff_id: Option<Digest>,
    /// The same bytes where they need not be fetched: read once, and no more after that.
    pub local: Option<Arc<dyn Blob>>,
    /// Compression if known, and how to cut spans.
    pub build: BuildOptions,
    /// A zTOC that may be the layer's, encoded. If it is, the spans are decoded on all cores, and what
    /// comes out is the same; it need not be trusted.
    pub known: Option<Arc<[u8]>>,
    /// Chunks under way, which bound the memory; who waits; how long no byte at all may come, from
    /// the source or from another process that gets the layer.
    pub stream: StreamOptions,
    /// Set it, and the work ends within a second, or once the disk has taken what it was given.
    pub stop: &'a AtomicBool,
    /// Told how many bytes of the blob have passed.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Where the blob's bytes stand between network and decoder.
    pub buffer: Buffer,
    /// Limits on layers that are decoded at once; downloads into a file need not wait for them.
    pub unpacks: &'a [Place],
    /// Given the file of the blob once its digest matched; only with [`Buffer::File`]. The file is gone
    /// when it returns, unless it was linked elsewhere.
    pub keep: Option<&'a (dyn Fn(&Path) + Sync)>,
    /// Whether the layer is to have a zTOC. Without, it is a local file and no more.
    pub ztoc: bool,
    /// Whether the disk has the layer for good when it is given out. Else [`Layer::make_durable`] sees to
    /// that; until then another process that wants the layer works on a copy.
    pub durable: Durable,
    /// Decompresses in our place; then the layer has no zTOC.
    pub program: Option<&'a Program>,
}

/// See [`WholeSpec::buffer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// In memory: the network waits for the decoder.
    Memory,
    /// In a file beside the layer: the network waits for the disk alone, and an interrupted download
    /// goes on where it was.
    File,
}

/// Together 16 MiB: 2 MiB are long beside the round trip of a request, and eight of them keep eight
/// connections at work.
const CHUNK_BYTES: u64 = 2 << 20;
const CHUNKS_MAX: usize = 8;

impl WholeSpec<'_> {
    /// Shape of the stream for somebody who waits for the whole layer.
    pub fn stream() -> StreamOptions {
        StreamOptions {
            chunk_bytes: CHUNK_BYTES,
            chunks_max: CHUNKS_MAX,
            priority: Priority::OnDemand,
            ..StreamOptions::default()
        }
    }

    fn layer(&self) -> Digest {
        *self.blob.digest()
    }

    fn check_stop(&self) -> Result<(), CacheError> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(CacheError::Stopped { layer: self.layer() }),
            false => Ok(()),
        }
    }
}

/// A layer that is there.
#[derive(Clone)]
pub struct Whole {
    /// Its bytes, and its zTOC where there is one.
    pub toc: WholeToc,
    /// Digest of its tar; the promised one if there was a promise.
    pub diff_id: Digest,
    /// Whether the blob was read for it.
    pub origin: Origin,
}

/// What a whole layer is from now on.
#[derive(Clone)]
pub enum WholeToc {
    /// A layer with spans like any other, all of them there and verified.
    Lazy {
        /// The layer; it knows the digest of its zTOC.
        layer: Arc<Layer>,
        /// The encoded zTOC.
        ztoc: Arc<[u8]>,
    },
    /// No zTOC can express it.
    Never {
        /// Its bytes.
        content: Arc<LocalLayer>,
        /// Its entries in archive order.
        records: Arc<[Record]>,
        /// Why it has no zTOC.
        reason: String,
    },
}

/// Where a whole layer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The blob was read.
    Blob,
    /// An earlier pass had left it on the disk.
    Disk,
}

impl Whole {
    /// Its bytes.
    pub fn content(&self) -> Arc<dyn Content> {
        match &self.toc {
            WholeToc::Lazy { layer, .. } => Arc::clone(layer) as Arc<dyn Content>,
            WholeToc::Never { content, .. } => Arc::clone(content) as Arc<dyn Content>,
        }
    }
}

/// How often a wait looks whether it is still wanted.
const STOP_POLL: Duration = Duration::from_millis(50);

/// See [`Cache::whole`].
pub(crate) fn obtain(cache: &Cache, spec: WholeSpec<'_>) -> Result<Whole, CacheError> {
    let path = cache.directory().layer(&spec.layer());
    let result = obtain_in(cache, &spec);
    if result.is_err() && ![LAYER, CONDEMNED, BLOB].iter().any(|name| path.join(name).exists()) {
        // Nothing of the layer is here: nor should its directory be.
        remove_directory(&path);
    }
    result
}

/// Remove a directory of ours, unless somebody else is at it.
fn remove_directory(path: &Path) {
    for _ in 0..REMOVE_TRIES {
        match claim::try_remove(path) {
            Ok(true) => return,
            Ok(false) => std::thread::sleep(REMOVE_DELAY),
            Err(error) => {
                return tracing::warn!(path = %path.display(), %error, "an empty directory stays");
            }
        }
    }
}

/// Together 25 ms: a program that this process is just starting holds our locks until it runs.
const REMOVE_TRIES: u32 = 5;
const REMOVE_DELAY: Duration = Duration::from_millis(5);

fn obtain_in(cache: &Cache, spec: &WholeSpec<'_>) -> Result<Whole, CacheError> {
    let path = cache.directory().layer(&spec.layer());
    let storage = |doing| CacheError::storage(doing, &path);
    let claim = Claim::open(&path).map_err(storage("opening the layer's directory"))?;
    let pass = wait_for_pass(&claim, spec)?;
    let claim = match kept::find(cache, claim, spec)? {
        kept::Search::Found(whole) => return Ok(whole),
        kept::Search::Nothing(claim) => claim,
    };
    if let Some(fill) = take_over(&claim).map_err(storage("locking the layer"))? {
        return Pass { cache, spec, claim, fill, role: Role::Owner }.run();
    }
    // Whoever has it open by another zTOC fills it for as long as he likes.
    drop((pass, claim));
    tracing::info!(path = %path.display(), "the layer is being filled: using a private copy");
    let claim = cache.directory().private().map_err(storage("making a private copy beside"))?;
    let fill = claim.try_fill().map_err(storage("locking a private copy beside"))?;
    let Some(fill) = fill else { unreachable!("a private directory is ours alone") };
    let private = claim.path().to_path_buf();
    let result = Pass { cache, spec, claim, fill, role: Role::Private }.run();
    if result.is_err() {
        remove_directory(&private);
    }
    result
}

/// Wait until nobody else gets the layer, as long as there is progress.
fn wait_for_pass(claim: &Claim, spec: &WholeSpec<'_>) -> Result<PassLock, CacheError> {
    let path = claim.file(PART);
    let (mut seen, mut since) = (None, Instant::now());
    loop {
        let lock = claim.try_pass().map_err(CacheError::storage("locking", claim.path()))?;
        if let Some(lock) = lock {
            return Ok(lock);
        }
        spec.check_stop()?;
        let len = std::fs::metadata(&path).ok().map(|part| part.len());
        if len != seen {
            (seen, since) = (len, Instant::now());
        }
        if since.elapsed() > spec.stream.patience {
            return Err(CacheError::InUse { layer: spec.layer() });
        }
        std::thread::sleep(STOP_POLL);
    }
}

/// One pass, in a directory that is ours to fill.
struct Pass<'a> {
    cache: &'a Cache,
    spec: &'a WholeSpec<'a>,
    claim: Claim,
    fill: FillLock,
    role: Role,
}

impl Pass<'_> {
    fn run(self) -> Result<Whole, CacheError> {
        let path = self.claim.file(PART);
        let made = remove_if_there(&path).and_then(|()| make_part(&path));
        let part = made.map_err(CacheError::storage("making", &path))?;
        let blob_path = self.claim.file(BLOB);
        let spec = self.spec;
        let result = self.pass(&part, &path, &blob_path).and_then(|passed| {
            let pass::Passed { built, download } = passed;
            // Both wait for the disk.
            std::thread::scope(|scope| {
                let keep = || download.map_or(Ok(()), |it| keep_blob(spec, it, &blob_path));
                let kept = scope.spawn(keep);
                let whole = self.keep(built, part);
                kept.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                whole
            })
        });
        if let Err(error) = &result {
            let mut left = vec![path];
            if !source::is_resumable(error) {
                left.extend([Download::journal_path(&blob_path), blob_path]);
            }
            for path in left {
                if let Err(error) = remove_if_there(&path) {
                    tracing::warn!(path = %path.display(), %error, "left-over of a pass stays");
                }
            }
        }
        result
    }

    /// Read the blob; once more from elsewhere if what came is not the blob.
    fn pass(&self, part: &File, path: &Path, blob_path: &Path) -> Result<pass::Passed, CacheError> {
        let (spec, works) = (self.spec, self.cache.works());
        match pass::run(spec, works, &self.claim, part, path) {
            Err(pass::Fault::Blob(error)) if spec.local.is_none() => {
                tracing::warn!(%error, "the blob is read again");
                spec.blob.distrust();
                let clean = || -> std::io::Result<()> {
                    part.set_len(0)?;
                    remove_if_there(&Download::journal_path(blob_path))?;
                    remove_if_there(blob_path)
                };
                clean().map_err(CacheError::storage("starting again in", self.claim.path()))?;
                Ok(pass::run(spec, works, &self.claim, part, path)?)
            }
            result => Ok(result?),
        }
    }

    fn keep(self, built: Built, part: File) -> Result<Whole, CacheError> {
        let Self { cache, spec, claim, fill, role } = self;
        let (diff_id, origin) = (built.diff_id, Origin::Blob);
        let uncompressed_len = built.uncompressed_len;
        let ztoc = match (built.toc, spec.program) {
            (Toc::Lazy(ztoc), None) if spec.ztoc => Ok(ztoc),
            (Toc::Lazy(ztoc), None) => Err((ztoc.records, "no zTOC was wanted".to_owned())),
            (Toc::Lazy(ztoc), Some(program)) => Err((ztoc.records, program.no_ztoc())),
            (Toc::Whole { records, reason }, _) => Err((records, reason.to_string())),
        };
        let ztoc = match ztoc {
            Ok(ztoc) => ztoc,
            Err((records, reason)) => {
                let found = kept::Found::Never { reason: reason.clone(), uncompressed_len };
                let content = local::keep(spec.layer(), claim, role, part, diff_id, &found)?;
                drop(fill);
                let (content, records) = (Arc::new(content), records.into());
                let toc = WholeToc::Never { content, records, reason };
                return Ok(Whole { toc, diff_id, origin });
            }
        };
        let encoded = ztoc.encode();
        // Large, and told by the encoded form from now on.
        drop::<Ztoc>(ztoc);
        let encoded: Arc<[u8]> = encoded.into();
        let ztoc_digest = Digest::of(&encoded);
        if role == Role::Owner {
            kept::note(&claim, diff_id, &kept::Found::Lazy { ztoc: ztoc_digest })
                .map_err(CacheError::storage("noting what was found in", claim.path()))?;
        }
        let layer_spec = LayerSpec {
            diff_id: Some(diff_id),
            blob: Arc::clone(&spec.blob),
            ztoc_digest,
            ztoc: Arc::clone(&encoded),
        };
        let sums = built.span_sums;
        let filled =
            Filled { claim, fill, role, part, uncompressed_len, sums, durable: spec.durable };
        let layer = open_filled(cache.works(), layer_spec, filled)?;
        cache.share(&layer);
        let toc = WholeToc::Lazy { layer, ztoc: encoded };
        Ok(Whole { toc, diff_id, origin })
    }
}

/// Hand a blob whose digest matched to whoever keeps blobs.
fn keep_blob(spec: &WholeSpec<'_>, download: Download, path: &Path) -> Result<(), CacheError> {
    let durable = if spec.keep.is_some() { Durable::Yes } else { Durable::No };
    download.finish(durable).map_err(|error| source::failed(spec, error))?;
    if let Some(keep) = spec.keep {
        keep(path);
    }
    remove_if_there(path).map_err(CacheError::storage("removing", path))
}

/// Whether an interrupted download of a layer waits for somebody to go on with it.
pub(crate) fn is_expected(layer_directory: &Path) -> bool {
    directory::has_fresh_download(layer_directory)
}

fn make_part(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options().read(true).write(true).create_new(true).mode(0o600).open(path)
}
