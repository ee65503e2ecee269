//! Where everything stands below the cache's root.
//!
//! ```text
//! ROOT/version                          "spanfs cache 1"
//! ROOT/layers/ALGORITHM/HEX/            one layer, by the digest of its blob
//!     use, fill, pass                   locks, see `claim`
//!     layer                             the layer file (sparse)
//!     journal                           the span journal, see `journal`
//!     ztoc                              the zTOC; windows are read from here
//!     spans                             its spans without their windows, see `span_file`
//!     tail                              bytes of the blob behind the archive, if any
//!     index                             EROFS metadata over the layer file
//!     part                              a layer file in the making, by a pass over the whole blob
//!     blob, blob.journal                its blob on the way, see `spanfs_fetch::buffer`
//!     compressed                        its blob span by span, see `layer::blob`
//!     whole                             JSON: what such a pass found, see `whole::kept`
//!     condemned                         JSON: the zTOC's digest, why it is not served any more
//! ROOT/private/PID-NUMBER/              the same for a process that came second; removed at its end
//! ROOT/traces/ALGORITHM/HEX.jsonl       spans that starts of an image touched, by its config digest
//! ROOT/ztocs/, ROOT/indexes/            what those above us keep; counted with the rest, see `beside`
//! ```

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use spanfs_fetch::buffer::Download;
use spanfs_layer::Digest;

use super::beside::{self, Beside};
use super::claim::{self, Claim, make_directory};
use crate::CacheError;
use crate::layer::open::{CONDEMNED, LAYER, remove_if_there};

/// First line of the version file. Changing it makes older caches unreadable.
const VERSION: &str = "spanfs cache 1";

/// The root of a cache.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    root: PathBuf,
}

/// A layer that stands in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) digest: Digest,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) last_used: SystemTime,
}

impl Directory {
    /// Open or make the cache at `root`.
    pub(crate) fn open(root: &Path) -> Result<Self, CacheError> {
        make_directory(root).map_err(CacheError::storage("making the cache directory", root))?;
        let path = root.join("version");
        let found = read_version(&path).map_err(CacheError::storage("reading", &path))?;
        match found.filter(|found| !found.is_empty()) {
            // Nobody was there, or a power cut came before the first line was on the disk.
            None => fs::write(&path, format!("{VERSION}\n"))
                .map_err(CacheError::storage("writing", &path))?,
            Some(found) if found.trim_end() == VERSION => {}
            Some(found) => {
                let found = found.lines().next().unwrap_or_default().to_owned();
                return Err(CacheError::OtherFormat { path, found, expected: VERSION });
            }
        }
        Ok(Self { root: root.to_path_buf() })
    }

    /// Directory of a layer.
    pub(crate) fn layer(&self, digest: &Digest) -> PathBuf {
        let layers = self.root.join("layers").join(digest.algorithm().name());
        layers.join(digest.hex().to_string())
    }

    /// Remove traces of images that are not wanted, the oldest first, until only `left_max` of those
    /// are left: an image that comes back starts by what was learnt of it.
    pub(crate) fn sweep_traces(&self, is_wanted: impl Fn(&Digest) -> bool, left_max: usize) {
        let mut unwanted = Vec::new();
        for algorithm in fs::read_dir(self.root.join("traces")).into_iter().flatten().flatten() {
            for entry in fs::read_dir(algorithm.path()).into_iter().flatten().flatten() {
                let (prefix, name) = (algorithm.file_name(), entry.file_name());
                let hex = name.to_str().and_then(|name| name.strip_suffix(".jsonl"));
                let digest =
                    hex.zip(prefix.to_str()).map(|(hex, it)| format!("{it}:{hex}").parse());
                // What has another name is being written.
                if let Some(Ok(digest)) = digest
                    && !is_wanted(&digest)
                {
                    let modified = entry.metadata().and_then(|meta| meta.modified());
                    unwanted.push((modified.unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
                }
            }
        }
        unwanted.sort();
        for (_, path) in unwanted.iter().rev().skip(left_max) {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "an old trace stays");
            }
        }
    }

    /// File with the trace of an image.
    pub(crate) fn trace(&self, config: &Digest) -> PathBuf {
        let traces = self.root.join("traces").join(config.algorithm().name());
        traces.join(format!("{}.jsonl", config.hex()))
    }

    /// A new directory that is ours alone.
    pub(crate) fn private(&self) -> io::Result<Claim> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Claim::open(&self.root.join("private").join(format!("{}-{number}", std::process::id())))
    }

    /// Remove private directories whose process is gone.
    pub(crate) fn sweep_private(&self) {
        for path in paths(&self.root.join("private")) {
            if let Err(error) = claim::try_remove(&path) {
                tracing::warn!(path = %path.display(), %error, "left-over private copy stays");
            }
        }
    }

    /// Remove what passes over whole layers left that came to no end.
    pub(crate) fn sweep_parts(&self) {
        let layers = paths(&self.root.join("layers")).into_iter().flat_map(|it| paths(&it));
        let is_left = |path: &PathBuf| [PART, BLOB].iter().any(|name| path.join(name).exists());
        for path in layers.filter(is_left) {
            if let Err(error) = sweep_part(&path) {
                tracing::warn!(path = %path.display(), %error, "left-over of a pass stays");
            }
        }
    }

    /// What is kept beside the layers.
    pub(crate) fn beside(&self) -> Vec<Beside> {
        beside::find(&self.root)
    }

    /// All layers, in no particular order.
    pub(crate) fn layers(&self) -> Vec<Entry> {
        let algorithms = paths(&self.root.join("layers"));
        algorithms.iter().flat_map(|algorithm| paths(algorithm)).filter_map(entry).collect()
    }
}

/// Name of a layer file in the making.
pub(crate) const PART: &str = "part";
/// Name of a blob on its way.
pub(crate) const BLOB: &str = "blob";

/// So long an interrupted download waits for somebody to go on with it: whoever pulls tries again
/// after minutes at the most.
const DOWNLOAD_KEPT: Duration = Duration::from_secs(3600);

/// Whether a download was interrupted here that somebody may go on with.
pub(crate) fn has_fresh_download(layer: &Path) -> bool {
    let journal = Download::journal_path(&layer.join(BLOB));
    let modified = fs::metadata(journal).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < DOWNLOAD_KEPT))
}

fn sweep_part(path: &Path) -> io::Result<()> {
    {
        let claim = Claim::open(path)?;
        // Whoever has the lock is at it.
        let Some(_pass) = claim.try_pass()? else { return Ok(()) };
        remove_if_there(&claim.file(PART))?;
        if has_fresh_download(path) {
            return Ok(());
        }
        let blob = claim.file(BLOB);
        remove_if_there(&Download::journal_path(&blob))?;
        remove_if_there(&blob)?;
    }
    // Without the layer nothing of it is of use.
    let is_layer = [LAYER, CONDEMNED].iter().any(|name| path.join(name).exists());
    if is_layer { Ok(()) } else { claim::try_remove(path).map(drop) }
}

/// At most this much of a version file is read: it may be anything.
const VERSION_LEN_MAX: u64 = 256;

fn read_version(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(VERSION_LEN_MAX).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn paths(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn entry(path: PathBuf) -> Option<Entry> {
    let algorithm = path.parent()?.file_name()?.to_str()?;
    let digest = format!("{algorithm}:{}", path.file_name()?.to_str()?).parse().ok()?;
    let last_used = claim::last_used(&path).unwrap_or(SystemTime::UNIX_EPOCH);
    Some(Entry { digest, bytes: allocated_bytes(&path), path, last_used })
}

/// Bytes on disk of the files of one directory.
pub(crate) fn allocated_bytes(directory: &Path) -> u64 {
    let blocks = |path: &PathBuf| fs::symlink_metadata(path).map_or(0, |it| it.blocks());
    paths(directory).iter().map(|path| blocks(path) * 512).sum()
}
