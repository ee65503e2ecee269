//! Writing a layout: every file appears whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use spanfs_layer::oci::{Descriptor, Index, media_type};
use spanfs_layer::{Digest, Hasher};

use super::{LayoutError, MANIFEST_LEN_MAX, REF_NAME, blob_path, io};

const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const PIECE_LEN: usize = 1 << 20;

/// A layout directory, open for writing. Several may write one directory, also from several processes.
#[derive(Clone, Debug)]
pub struct LayoutWriter {
    path: PathBuf,
    /// Files reach the disk before they get their names.
    durable: bool,
}

impl LayoutWriter {
    /// Open a layout, or make one of an absent or empty directory.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        Self::with(path, true)
    }

    /// As [`Self::open`], for a layout that is of no use before all of it is there: nothing waits for the
    /// disk.
    pub fn scratch(path: &Path) -> Result<Self, LayoutError> {
        Self::with(path, false)
    }

    fn with(path: &Path, durable: bool) -> Result<Self, LayoutError> {
        let blobs = path.join("blobs/sha256");
        let marker = path.join("oci-layout");
        if !marker.exists() && path.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
            let reason = "it is not empty, and has no oci-layout".to_owned();
            return Err(LayoutError::NotALayout { path: path.to_owned(), reason });
        }
        std::fs::create_dir_all(&blobs).map_err(|error| io("making", &blobs, &error))?;
        let writer = Self { path: path.to_owned(), durable };
        if !marker.exists() {
            writer.put(&marker, &mut &MARKER[..])?;
        }
        let index = path.join("index.json");
        if !index.exists() {
            writer.put(&index, &mut empty_index().to_canonical().as_slice())?;
        }
        Ok(writer)
    }

    /// Add a blob from memory.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Digest, LayoutError> {
        let digest = Digest::of(bytes);
        self.put_blob(&digest, bytes)?;
        Ok(digest)
    }

    /// Add a blob that must have a digest; nothing is kept of one that does not.
    pub fn put_blob(&self, digest: &Digest, content: impl Read) -> Result<(), LayoutError> {
        let path = self.path.join(blob_path(digest));
        if path.exists() {
            return Ok(());
        }
        let parent = path.parent().unwrap_or(&self.path);
        std::fs::create_dir_all(parent).map_err(|error| io("making", parent, &error))?;
        let mut hashing = Hashing { inner: content, hasher: Hasher::new(digest.algorithm()) };
        let temporary = self.fill(&path, &mut hashing)?;
        let found = hashing.hasher.finish();
        if found != *digest {
            return Err(LayoutError::Corrupt {
                path: self.path.clone(),
                digest: Box::new(*digest),
                expected: digest.to_string(),
                found: found.to_string(),
            });
        }
        temporary.rename(&path, self.durable)
    }

    /// Whether a blob is there.
    pub fn has(&self, digest: &Digest) -> bool {
        self.path.join(blob_path(digest)).exists()
    }

    /// Add a blob whose file was checked against its digest: without a copy where that can be.
    pub fn link_blob(&self, digest: &Digest, file: &Path) -> Result<(), LayoutError> {
        let path = self.path.join(blob_path(digest));
        let parent = path.parent().unwrap_or(&self.path);
        std::fs::create_dir_all(parent).map_err(|error| io("making", parent, &error))?;
        match std::fs::hard_link(file, &path) {
            Ok(()) => sync_directory(parent),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) if error.kind() == ErrorKind::CrossesDevices => {
                let content = File::open(file).map_err(|error| io("opening", file, &error))?;
                self.put_blob(digest, content)
            }
            Err(error) => Err(io("linking", &path, &error)),
        }
    }

    /// Delete a blob, unless it is not there.
    pub fn remove_blob(&self, digest: &Digest) -> Result<(), LayoutError> {
        let path = self.path.join(blob_path(digest));
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(io("removing", &path, &error)),
            _ => Ok(()),
        }
    }

    /// List a manifest in `index.json`, under a name or without one. A name moves from where it was.
    pub fn list(&self, descriptor: &Descriptor, name: Option<&str>) -> Result<(), LayoutError> {
        self.edit(|index| {
            let named = |it: &Descriptor| it.annotations.get(REF_NAME).map(String::as_str) == name;
            index.manifests.retain(|it| match name {
                Some(_) => !named(it),
                None => !(named(it) && it.digest == descriptor.digest),
            });
            let mut entry = descriptor.clone();
            entry.annotations.remove(REF_NAME);
            if let Some(name) = name {
                entry.annotations.insert(REF_NAME.to_owned(), name.to_owned());
            }
            index.manifests.push(entry);
        })
    }

    /// Take a manifest out of `index.json`, under whatever names, and delete it. What it names stays.
    pub fn remove(&self, digest: &Digest) -> Result<(), LayoutError> {
        self.edit(|index| index.manifests.retain(|it| it.digest != *digest))?;
        self.remove_blob(digest)
    }

    /// Replace `index.json`, against all others who do so.
    fn edit(&self, change: impl FnOnce(&mut Index)) -> Result<(), LayoutError> {
        let lock_path = self.path.join("oci-layout");
        let lock = File::open(&lock_path).map_err(|error| io("opening", &lock_path, &error))?;
        // Held while the index is read and replaced; ends with the file.
        lock.lock().map_err(|error| io("locking", &lock_path, &error))?;
        let path = self.path.join("index.json");
        let file = File::open(&path).map_err(|error| io("opening", &path, &error))?;
        let mut text = Vec::new();
        file.take(MANIFEST_LEN_MAX)
            .read_to_end(&mut text)
            .map_err(|error| io("reading", &path, &error))?;
        let mut index = Index::parse(&text).map_err(|error| LayoutError::NotALayout {
            path: self.path.clone(),
            reason: error.to_string(),
        })?;
        change(&mut index);
        self.put(&path, &mut index.to_canonical().as_slice())
    }

    fn put(&self, path: &Path, content: &mut dyn Read) -> Result<(), LayoutError> {
        self.fill(path, content)?.rename(path, self.durable)
    }

    /// A file beside `path` with all of `content`.
    fn fill(&self, path: &Path, content: &mut dyn Read) -> Result<Temporary, LayoutError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!(".new-{}-{number}", std::process::id());
        let beside = path.with_file_name(name);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&beside)
            .map_err(|error| io("creating", &beside, &error))?;
        let temporary = Temporary { path: beside, kept: false };
        let mut piece = vec![0; PIECE_LEN];
        loop {
            let count = match content.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(io("reading the content of", path, &error)),
            };
            let data = piece.get(..count).unwrap_or_default();
            file.write_all(data).map_err(|error| io("writing", path, &error))?;
        }
        if self.durable {
            file.sync_all().map_err(|error| io("writing", path, &error))?;
        }
        Ok(temporary)
    }
}

/// Removed with its drop, unless it was given its name.
struct Temporary {
    path: PathBuf,
    kept: bool,
}

impl Temporary {
    fn rename(mut self, to: &Path, durable: bool) -> Result<(), LayoutError> {
        std::fs::rename(&self.path, to).map_err(|error| io("naming", to, &error))?;
        self.kept = true;
        match durable {
            true => sync_directory(to.parent().unwrap_or(to)),
            false => Ok(()),
        }
    }
}

fn sync_directory(path: &Path) -> Result<(), LayoutError> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|error| io("syncing", path, &error))
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

fn empty_index() -> Index {
    Index {
        schema_version: 2,
        media_type: media_type::INDEX.to_owned(),
        artifact_type: String::new(),
        manifests: Vec::new(),
        subject: None,
        annotations: Default::default(),
        other: Default::default(),
    }
}
