//! zTOCs that we keep beside the cache's layers.
//!
//! ```text
//! ROOT/ztocs/HEX            a zTOC, by its own digest; checked whenever it is read
//! ROOT/ztocs/of-layer/HEX   digest of the zTOC that was built for that layer
//! ```

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spanfs_layer::Digest;

use super::ImageError;

/// Directory of small files, each replaced as a whole.
pub(crate) struct Shelf {
    ztocs: PathBuf,
}

impl Shelf {
    pub(crate) fn open(root: &Path) -> Result<Self, ImageError> {
        let ztocs = root.join("ztocs");
        let path = ztocs.join("of-layer");
        fs::create_dir_all(&path).map_err(|source| ImageError::Disk { path, source })?;
        Ok(Self { ztocs })
    }

    /// A zTOC that is here and sound.
    pub(crate) fn ztoc(&self, digest: &Digest) -> Option<Arc<[u8]>> {
        let bytes = fs::read(self.ztocs.join(digest.hex().to_string())).ok()?;
        let sound = Digest::of(&bytes) == *digest;
        if !sound {
            tracing::warn!(%digest, "a kept zTOC is damaged and not used");
        }
        sound.then(|| bytes.into())
    }

    /// The zTOC that an earlier pass over a layer has left.
    pub(crate) fn ztoc_of_layer(&self, layer: &Digest) -> Option<(Digest, Arc<[u8]>)> {
        let text = fs::read_to_string(self.of_layer(layer)).ok()?;
        let digest = text.trim().parse().ok()?;
        Some((digest, self.ztoc(&digest)?))
    }

    /// Keep a zTOC. A disk that refuses costs the next start, not this one.
    pub(crate) fn keep(&self, digest: &Digest, bytes: &[u8]) {
        let path = self.ztocs.join(digest.hex().to_string());
        if let Err(error) = replace(&path, bytes) {
            tracing::warn!(%digest, %error, "the zTOC is not kept");
        }
    }

    /// Remember which zTOC belongs to a layer.
    pub(crate) fn note(&self, layer: &Digest, ztoc: &Digest) {
        if let Err(error) = replace(&self.of_layer(layer), ztoc.to_string().as_bytes()) {
            tracing::warn!(%layer, %error, "the layer's zTOC is not remembered");
        }
    }

    fn of_layer(&self, layer: &Digest) -> PathBuf {
        self.ztocs.join("of-layer").join(layer.hex().to_string())
    }
}

/// Write a file so that whoever opens it sees all of it, or what was there before, also after a
/// power cut.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let mut fresh = tempfile::NamedTempFile::new_in(parent)?;
    fresh.write_all(bytes)?;
    fresh.as_file().sync_data()?;
    fresh.persist(path).map(drop).map_err(|error| error.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_ztocs_are_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(directory.path()).unwrap();
        let (ztoc, layer) = (Digest::of(b"ztoc"), Digest::of(b"layer"));
        assert!(shelf.ztoc_of_layer(&layer).is_none());
        shelf.keep(&ztoc, b"ztoc");
        shelf.note(&layer, &ztoc);
        assert_eq!(shelf.ztoc_of_layer(&layer).unwrap(), (ztoc, b"ztoc".as_slice().into()));
        fs::write(directory.path().join("ztocs").join(ztoc.hex().to_string()), b"zt0c").unwrap();
        assert!(shelf.ztoc(&ztoc).is_none());
    }
}
