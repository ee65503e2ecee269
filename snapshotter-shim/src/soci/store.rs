//! Where blobs are: containerd's content store, or an OCI layout on disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use spanfs_fetch::{Content, Layout, LayoutError, LayoutWriter, ReadPool};
use spanfs_layer::Digest;
use spanfs_layer::oci::Descriptor;

use super::SociError;
use crate::containerd::{Client, GC_REF_CONTENT, StreamReader};

/// Manifests, indexes and configs; larger ones are refused.
pub const DOCUMENT_LEN_MAX: u64 = 8 << 20;
/// The format's own limit.
pub const ZTOC_LEN_MAX: u64 = 2 << 30;

/// A place of blobs.
#[derive(Clone)]
pub enum Store {
    /// containerd's, in one namespace.
    Containerd(Client),
    /// A layout.
    Layout(LayoutStore),
}

/// A blob for threads that block.
pub type BlobReader = Box<dyn Read + Send>;

/// A blob as a store lists it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// When it was written.
    pub created: SystemTime,
}

impl Store {
    /// Whether a blob is there.
    pub async fn has(&self, digest: &Digest) -> Result<bool, SociError> {
        match self {
            Self::Containerd(client) => Ok(client.content().info(digest).await?.is_some()),
            Self::Layout(layout) => layout.has(digest),
        }
    }

    /// A blob, whole and checked.
    pub async fn bytes(&self, digest: &Digest, len_max: u64) -> Result<Vec<u8>, SociError> {
        match self {
            Self::Containerd(client) => Ok(client.content().bytes(digest, len_max).await?),
            Self::Layout(layout) => Ok(layout.open()?.blob_bytes(digest, len_max)?.to_vec()),
        }
    }

    /// Part of a blob, not checked.
    pub async fn range(&self, digest: &Digest, range: Range<u64>) -> Result<Vec<u8>, SociError> {
        match self {
            Self::Containerd(client) => Ok(client.content().range(digest, range).await?),
            Self::Layout(layout) => {
                let content = layout.open()?.content(digest)?.slice(range.start, range.end);
                let mut bytes = Vec::new();
                let read = FileRange::of(content).read_to_end(&mut bytes);
                read.map_err(|error| SociError::disk("read", &layout.path, error))?;
                Ok(bytes)
            }
        }
    }

    /// A blob from its first byte on, not checked.
    pub async fn reader(&self, blob: &Descriptor) -> Result<BlobReader, SociError> {
        match self {
            Self::Containerd(client) => {
                let reader: StreamReader = client.content().reader(blob).await?;
                Ok(Box::new(reader))
            }
            Self::Layout(layout) => {
                Ok(Box::new(FileRange::of(layout.open()?.content(&blob.digest)?)))
            }
        }
    }

    /// Keep a blob, with labels where there are any.
    pub async fn put(
        &self,
        bytes: &[u8],
        labels: &BTreeMap<String, String>,
    ) -> Result<Digest, SociError> {
        match self {
            Self::Containerd(client) => Ok(client.content().put(bytes, labels).await?.0),
            Self::Layout(layout) => Ok(layout.writer()?.put_bytes(bytes)?),
        }
    }

    /// Keep a SOCI index: it keeps what it names, and layouts list it.
    pub async fn put_index(
        &self,
        bytes: &[u8],
        index: &Descriptor,
        named: &[Descriptor],
        config: &Digest,
    ) -> Result<(), SociError> {
        self.put(bytes, &references("ztoc", named.iter(), Some(config))).await?;
        if let Self::Layout(layout) = self {
            let listed = Descriptor::new(&index.media_type, index.digest, index.size);
            layout.writer()?.list(&listed, None)?;
        }
        Ok(())
    }

    /// Delete a blob that is a manifest.
    pub async fn delete(&self, digest: &Digest) -> Result<(), SociError> {
        match self {
            Self::Containerd(client) => client.content().delete(digest).await.map(drop)?,
            Self::Layout(layout) => {
                if layout.is_there() {
                    layout.writer()?.remove(digest)?;
                }
            }
        }
        Ok(())
    }

    /// All blobs.
    pub async fn list(&self) -> Result<Vec<Listed>, SociError> {
        match self {
            Self::Containerd(client) => {
                let found = client.content().list(&[]).await?.into_iter();
                let listed = |it: crate::containerd::ContentInfo| Listed {
                    digest: it.digest,
                    size: it.size,
                    created: it.created,
                };
                Ok(found.map(listed).collect())
            }
            Self::Layout(layout) => layout.blobs(),
        }
    }
}

/// Labels by which a document keeps what it names.
pub fn references<'a>(
    name: &str,
    named: impl Iterator<Item = &'a Descriptor>,
    config: Option<&Digest>,
) -> BTreeMap<String, String> {
    let config = config.map(|it| (format!("{GC_REF_CONTENT}.config"), it.to_string()));
    let named = named.enumerate();
    let named =
        named.map(|(n, it)| (format!("{GC_REF_CONTENT}.{name}.{n}"), it.digest.to_string()));
    config.into_iter().chain(named).collect()
}

/// A layout, which need not be there before something is put into it.
#[derive(Clone)]
pub struct LayoutStore {
    path: PathBuf,
    pool: ReadPool,
    /// The tar of a layout, which is only read.
    archive: Option<Layout>,
    /// See [`LayoutWriter::scratch`].
    is_scratch: bool,
}

impl LayoutStore {
    /// A directory.
    pub fn directory(path: &Path) -> Result<Self, SociError> {
        // Small documents are read on the calling thread; the pool is for those who read ranges.
        let pool = ReadPool::start(1).map_err(|error| SociError::disk("read", path, error))?;
        Ok(Self { path: path.to_owned(), pool, archive: None, is_scratch: false })
    }

    /// A directory that is of no use before all of it is there.
    pub fn scratch(path: &Path) -> Result<Self, SociError> {
        Ok(Self { is_scratch: true, ..Self::directory(path)? })
    }

    /// An uncompressed tar of a layout.
    pub fn archive(path: &Path) -> Result<Self, SociError> {
        let store = Self::directory(path)?;
        let archive = Some(Layout::archive(path, &store.pool)?);
        Ok(Self { archive, ..store })
    }

    /// The layout, for reading.
    pub fn open(&self) -> Result<Layout, SociError> {
        match &self.archive {
            Some(archive) => Ok(archive.clone()),
            None => Ok(Layout::directory(&self.path, &self.pool)?),
        }
    }

    /// The layout, for writing.
    pub fn writer(&self) -> Result<LayoutWriter, SociError> {
        let open = if self.is_scratch { LayoutWriter::scratch } else { LayoutWriter::open };
        Ok(open(&self.path)?)
    }

    fn is_there(&self) -> bool {
        self.path.join("oci-layout").exists()
    }

    fn has(&self, digest: &Digest) -> Result<bool, SociError> {
        if self.archive.is_none() && !self.is_there() {
            return Ok(false);
        }
        match self.open()?.content(digest) {
            Ok(_) => Ok(true),
            Err(LayoutError::NoBlob { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Blobs of a directory.
    pub fn blobs(&self) -> Result<Vec<Listed>, SociError> {
        let mut found = Vec::new();
        for algorithm in ["sha256", "sha512"] {
            let directory = self.path.join("blobs").join(algorithm);
            let entries = match directory.read_dir() {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(SociError::disk("open", &directory, error)),
            };
            for entry in entries {
                let entry = entry.map_err(|error| SociError::disk("open", &directory, error))?;
                let name = entry.file_name();
                let Ok(digest) = format!("{algorithm}:{}", name.to_string_lossy()).parse() else {
                    continue; // being written, or nobody's business
                };
                let data = entry.metadata();
                let data = data.map_err(|error| SociError::disk("stat", &entry.path(), error))?;
                let created = data.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.push(Listed { digest, size: data.len(), created });
            }
        }
        Ok(found)
    }
}

/// Bytes of a file from one place to another.
struct FileRange {
    file: Option<Arc<File>>,
    at: u64,
    end: u64,
}

impl FileRange {
    fn of(content: Content) -> Self {
        match content {
            Content::File { file, offset, len } => {
                Self { file: Some(file), at: offset, end: offset.saturating_add(len) }
            }
            // Layouts give files alone.
            Content::Bytes(_) => Self { file: None, at: 0, end: 0 },
        }
    }
}

impl Read for FileRange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(file) = &self.file else { return Ok(0) };
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let room = buffer.len().min(left);
        let count = file.read_at(&mut buffer[..room], self.at)?;
        if count == 0 && room > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        Ok(count)
    }
}
