//! zTOCs that we keep beside the cache's layers.
//!
//! ```text
//! ROOT/ztocs/HEX            a zTOC, by its own digest; checked whenever it is read
//! ROOT/ztocs/of-layer/HEX   digest of the zTOC that was built for that layer
//! ```

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spanfs_layer::Digest;

use super::ImageError;

/// Directory of small files, each replaced as a whole.
#[derive(Clone)]
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

    /// Whether a zTOC is here, sound or not.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    /// A zTOC is in use, so that the cache's quota leaves it.
    pub(crate) fn touch(&self, digest: &Digest) {
        touch(&self.path(digest));
    }

    /// Bytes of a zTOC that is here, sound or not.
    pub(crate) fn len(&self, digest: &Digest) -> Option<u64> {
        Some(fs::metadata(self.path(digest)).ok()?.len())
    }

    /// A zTOC that is here and sound.
    pub(crate) fn ztoc(&self, digest: &Digest) -> Option<Arc<[u8]>> {
        let bytes = read(&self.path(digest)).ok()?;
        self.touch(digest);
        let sound = Digest::of(&bytes) == *digest;
        if !sound {
            tracing::warn!(%digest, "a kept zTOC is damaged and not used");
        }
        sound.then_some(bytes)
    }

    /// Digest of the zTOC that an earlier pass over a layer has left.
    pub(crate) fn digest_of_layer(&self, layer: &Digest) -> Option<Digest> {
        let note = self.of_layer(layer);
        let digest = fs::read_to_string(&note).ok()?.trim().parse().ok();
        touch(&note);
        digest
    }

    /// That zTOC itself.
    pub(crate) fn ztoc_of_layer(&self, layer: &Digest) -> Option<(Digest, Arc<[u8]>)> {
        let digest = self.digest_of_layer(layer)?;
        Some((digest, self.ztoc(&digest)?))
    }

    /// Keep a zTOC. A disk that refuses costs the next start, not this one.
    pub(crate) fn keep(&self, digest: &Digest, bytes: &[u8]) {
        if let Err(error) = replace(&self.path(digest), bytes) {
            tracing::warn!(%digest, %error, "the zTOC is not kept");
        }
    }

    /// Keep a zTOC that is to leave the memory at once; true if it can be read here. Not brought to the
    /// disk for good: a power cut may damage it, which its next reader notices.
    pub(crate) fn put(&self, digest: &Digest, bytes: &[u8]) -> bool {
        let put = put(&self.path(digest), bytes);
        put.inspect_err(|error| tracing::warn!(%digest, %error, "the zTOC is not kept")).is_ok()
    }

    /// Bring what was put here to the disk for good.
    pub(crate) fn seal(&self, digest: &Digest) {
        match File::open(self.path(digest)).and_then(|file| file.sync_data()) {
            // It is not wanted any more.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%digest, %error, "the zTOC may not outlive a power cut"),
            Ok(()) => {}
        }
    }

    /// Remember which zTOC belongs to a layer, but for a power cut.
    pub(crate) fn note(&self, layer: &Digest, ztoc: &Digest) {
        if let Err(error) = put(&self.of_layer(layer), ztoc.to_string().as_bytes()) {
            tracing::warn!(%layer, %error, "the layer's zTOC is not remembered");
        }
    }

    /// Remove what nobody wants any more. What can't be removed stays for the next time.
    pub(crate) fn sweep(&self, is_wanted: impl Fn(&Digest) -> bool) {
        // What has another name is being written.
        let wanted_name = |name: &str| {
            let digest =
                ["sha256", "sha512"].iter().find_map(|it| format!("{it}:{name}").parse().ok());
            digest.is_none_or(|digest: Digest| is_wanted(&digest))
        };
        let wanted_note = |path: &Path| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.trim().parse().is_ok_and(|digest: Digest| is_wanted(&digest))
        };
        for (directory, are_notes) in [(self.ztocs.clone(), false), (self.notes(), true)] {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = entry.path();
                let is_wanted = match are_notes {
                    true => wanted_note(&path),
                    false => entry.file_name().to_str().is_some_and(wanted_name),
                };
                if is_wanted || path.is_dir() {
                    continue;
                }
                if let Err(error) = fs::remove_file(&path) {
                    tracing::warn!(path = %path.display(), %error, "a left-over zTOC stays");
                }
            }
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.ztocs.join(digest.hex().to_string())
    }

    fn notes(&self) -> PathBuf {
        self.ztocs.join("of-layer")
    }

    fn of_layer(&self, layer: &Digest) -> PathBuf {
        self.notes().join(layer.hex().to_string())
    }
}

/// All of a file, in the memory in which it stays.
fn read(path: &Path) -> io::Result<Arc<[u8]>> {
    let mut file = File::open(path)?;
    let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, len).collect();
    file.read_exact(Arc::get_mut(&mut bytes).unwrap_or_default())?;
    Ok(bytes)
}

/// Say that a file was used just now.
pub(crate) fn touch(path: &Path) {
    let now = std::time::SystemTime::now();
    let touched = File::options().append(true).open(path).and_then(|it| it.set_modified(now));
    if let Err(error) = touched {
        tracing::debug!(path = %path.display(), %error, "not noted as used");
    }
}

/// Write a file so that whoever opens it sees all of it, or what was there before, also after a
/// power cut.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = written(path, bytes)?;
    fresh.as_file().sync_data()?;
    fresh.persist(path).map(drop).map_err(|error| error.error)
}

/// The same, but for the power cut.
fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    written(path, bytes)?.persist(path).map(drop).map_err(|error| error.error)
}

fn written(path: &Path, bytes: &[u8]) -> io::Result<tempfile::NamedTempFile> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let mut fresh = tempfile::NamedTempFile::new_in(parent)?;
    fresh.write_all(bytes)?;
    Ok(fresh)
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

    #[test]
    fn a_sweep_leaves_what_is_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(directory.path()).unwrap();
        let [kept, gone] = [Digest::of(b"kept"), Digest::of(b"gone")];
        for (ztoc, bytes) in [(kept, b"kept"), (gone, b"gone")] {
            shelf.keep(&ztoc, bytes);
            shelf.note(&Digest::of(&[bytes.as_slice(), b" layer"].concat()), &ztoc);
        }
        shelf.sweep(|digest| *digest == kept);
        assert!(shelf.ztoc_of_layer(&Digest::of(b"kept layer")).is_some());
        assert!(shelf.ztoc(&gone).is_none());
        assert_eq!(fs::read_dir(shelf.notes()).unwrap().count(), 1);
    }
}
