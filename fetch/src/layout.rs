//! OCI image layouts on disk: a directory, or a tar of one, read in place.
//!
//! Source: OCI image specification, `image-layout.md`. All calls block on the disk; what they read into
//! memory is small. Layers are read through [`Layout::blob`].

mod archive;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use spanfs_layer::oci::{Descriptor, Index, media_type};
use spanfs_layer::{Digest, Hasher};

use crate::Class;
use crate::blob::Blob;
use crate::local::ReadPool;
use crate::registry::RawManifest;
pub use write::LayoutWriter;

/// Annotation that names an image of a layout.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// What containerd's exports call it, as a whole reference.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Same limit as for manifests from a registry.
const MANIFEST_LEN_MAX: u64 = 8 << 20;
/// Manifests that are read to find referrers.
const REFERRERS_READ_MAX: usize = 4096;

/// Why a layout could not be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LayoutError {
    /// Disk.
    #[error("{attempt} {path}: {reason}")]
    Io {
        /// Reading, writing, …
        attempt: &'static str,
        /// File.
        path: PathBuf,
        /// Cause.
        reason: String,
    },
    /// Something else.
    #[error("{path} is no OCI image layout: {reason}")]
    NotALayout {
        /// Directory or archive.
        path: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
    /// Nothing under that name.
    #[error("{path} has no image {wanted:?}; it has {available}")]
    NoImage {
        /// Directory or archive.
        path: PathBuf,
        /// Tag or digest.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// No name was given, and there are several.
    #[error("{path} has several images, name one of {available}")]
    Ambiguous {
        /// Directory or archive.
        path: PathBuf,
        /// What there is.
        available: String,
    },
    /// A blob is not there.
    #[error("{path} has no blob {digest}")]
    NoBlob {
        /// Directory or archive.
        path: PathBuf,
        /// Which.
        digest: Digest,
    },
    /// A blob is not what its name promises.
    #[error("blob {digest} of {path}: expected {expected}, found {found}")]
    Corrupt {
        /// Directory or archive.
        path: PathBuf,
        /// Which.
        digest: Box<Digest>,
        /// Length or digest.
        expected: String,
        /// Its counterpart.
        found: String,
    },
}

impl LayoutError {
    /// What a caller can do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Io { .. } => Class::Retry,
            Self::NotALayout { .. } | Self::Ambiguous { .. } => Class::Refused,
            Self::NoImage { .. } | Self::NoBlob { .. } => Class::Gone,
            Self::Corrupt { .. } => Class::Corrupt,
        }
    }
}

/// A layout, open for reading. Cheap to clone.
#[derive(Clone)]
pub struct Layout(Arc<Opened>);

struct Opened {
    path: PathBuf,
    files: Files,
    pool: ReadPool,
}

enum Files {
    Directory,
    /// Where each member's content stands in the tar, by its path without `./`.
    Archive {
        file: Arc<File>,
        members: HashMap<String, Extent>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    offset: u64,
    len: u64,
}

impl Layout {
    /// Open a directory.
    pub fn directory(path: &Path, pool: &ReadPool) -> Result<Self, LayoutError> {
        Self::checked(Opened { path: path.to_owned(), files: Files::Directory, pool: pool.clone() })
    }

    /// Open a tar without unpacking it.
    pub fn archive(path: &Path, pool: &ReadPool) -> Result<Self, LayoutError> {
        let file = Arc::new(File::open(path).map_err(|error| io("opening", path, &error))?);
        let members = archive::members(&file, path)?;
        let files = Files::Archive { file, members };
        Self::checked(Opened { path: path.to_owned(), files, pool: pool.clone() })
    }

    fn checked(opened: Opened) -> Result<Self, LayoutError> {
        #[derive(serde::Deserialize)]
        struct Marker {
            #[serde(rename = "imageLayoutVersion")]
            version: String,
        }
        let wrong = |reason: String| LayoutError::NotALayout { path: opened.path.clone(), reason };
        let text = opened.document("oci-layout")?;
        let marker: Marker = serde_json::from_slice(&text)
            .map_err(|error| wrong(format!("its oci-layout can't be read: {error}")))?;
        if !marker.version.starts_with("1.") {
            return Err(wrong(format!("expected version 1, found {:?}", marker.version)));
        }
        Ok(Self(Arc::new(opened)))
    }

    /// Its `index.json`.
    pub fn index(&self) -> Result<Index, LayoutError> {
        let text = self.0.document("index.json")?;
        Index::parse(&text).map_err(|error| LayoutError::NotALayout {
            path: self.0.path.clone(),
            reason: error.to_string(),
        })
    }

    /// The image of a name (tag, whole reference, or digest), or the only one.
    pub fn find(&self, wanted: Option<&str>) -> Result<Descriptor, LayoutError> {
        let entries = self.index()?.manifests;
        let name = |it: &Descriptor, key: &str| it.annotations.get(key).cloned();
        let matches = |it: &&Descriptor| match wanted {
            // A referrer without a name is no image.
            None => name(it, REF_NAME).is_some() || it.artifact_type.is_empty(),
            Some(wanted) => {
                name(it, REF_NAME).as_deref() == Some(wanted)
                    || name(it, CONTAINERD_NAME).as_deref() == Some(wanted)
                    || it.digest.to_string() == wanted
            }
        };
        let found: Vec<&Descriptor> = entries.iter().filter(matches).collect();
        let label = |it: &Descriptor| name(it, REF_NAME).unwrap_or_else(|| it.digest.to_string());
        let available: Vec<String> = entries.iter().take(32).map(label).collect();
        let available = if available.is_empty() { "none".to_owned() } else { available.join(", ") };
        let path = self.0.path.clone();
        match (found.as_slice(), wanted) {
            ([first, rest @ ..], _) if rest.iter().all(|it| it.digest == first.digest) => {
                Ok((*first).clone())
            }
            ([], wanted) => {
                let wanted = wanted.unwrap_or_default().to_owned();
                Err(LayoutError::NoImage { path, wanted, available })
            }
            _ => Err(LayoutError::Ambiguous { path, available }),
        }
    }

    /// A manifest or an index, whole and checked.
    pub fn manifest(&self, digest: &Digest) -> Result<RawManifest, LayoutError> {
        let bytes = self.blob_bytes(digest, MANIFEST_LEN_MAX)?;
        #[derive(serde::Deserialize)]
        struct Head {
            #[serde(rename = "mediaType", default)]
            media_type: String,
        }
        let head: Result<Head, _> = serde_json::from_slice(&bytes);
        let media_type = head.map(|head| head.media_type).unwrap_or_default();
        Ok(RawManifest { bytes, media_type, digest: *digest })
    }

    /// A small blob, whole, at most `len_max` bytes long, checked against its digest.
    pub fn blob_bytes(&self, digest: &Digest, len_max: u64) -> Result<Bytes, LayoutError> {
        let (file, extent) = self.0.open(digest)?;
        let corrupt = |expected: String, found: String| LayoutError::Corrupt {
            path: self.0.path.clone(),
            digest: Box::new(*digest),
            expected,
            found,
        };
        if extent.len > len_max {
            let expected = format!("at most {len_max} bytes");
            return Err(corrupt(expected, format!("{} bytes", extent.len)));
        }
        let bytes = read(&file, extent, &self.0.path)?;
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        let found = hasher.finish();
        match found == *digest {
            true => Ok(Bytes::from(bytes)),
            false => Err(corrupt(digest.to_string(), found.to_string())),
        }
    }

    /// A blob of any size, by ranges. Its length is checked now, its content by who uses it.
    pub fn blob(&self, digest: &Digest, size: u64) -> Result<Arc<dyn Blob>, LayoutError> {
        let (file, extent) = self.0.open(digest)?;
        if extent.len != size {
            return Err(LayoutError::Corrupt {
                path: self.0.path.clone(),
                digest: Box::new(*digest),
                expected: format!("{size} bytes"),
                found: format!("{} bytes", extent.len),
            });
        }
        Ok(self.0.pool.blob(file, extent.offset, *digest, size))
    }

    /// The content of a blob, to be sent elsewhere.
    pub fn content(&self, digest: &Digest) -> Result<crate::Content, LayoutError> {
        let (file, extent) = self.0.open(digest)?;
        Ok(crate::Content::File { file, offset: extent.offset, len: extent.len })
    }

    /// Descriptors of the manifests in `index.json` whose subject is `digest`.
    pub fn referrers(
        &self,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, LayoutError> {
        let mut found = Vec::new();
        let manifests = self.index()?.manifests;
        let documents = |it: &&Descriptor| {
            media_type::is_manifest(&it.media_type) || media_type::is_index(&it.media_type)
        };
        for entry in manifests.iter().filter(documents).take(REFERRERS_READ_MAX) {
            let raw = self.manifest(&entry.digest)?;
            let Some((subject, referrer)) = crate::registry::subject(&entry.media_type, &raw.bytes)
            else {
                continue;
            };
            let wanted = artifact_type.is_none_or(|wanted| referrer.artifact_type == wanted);
            if subject == *digest && wanted {
                found.push(referrer);
            }
        }
        Ok(found)
    }
}

impl Opened {
    /// A small file of the layout, whole.
    fn document(&self, name: &str) -> Result<Vec<u8>, LayoutError> {
        let missing = || LayoutError::NotALayout {
            path: self.path.clone(),
            reason: format!("it has no {name}"),
        };
        let (file, extent) = self.member(name)?.ok_or_else(missing)?;
        if extent.len > MANIFEST_LEN_MAX {
            let reason =
                format!("{name} has {} bytes, at most {MANIFEST_LEN_MAX} are allowed", extent.len);
            return Err(LayoutError::NotALayout { path: self.path.clone(), reason });
        }
        read(&file, extent, &self.path)
    }

    fn open(&self, digest: &Digest) -> Result<(Arc<File>, Extent), LayoutError> {
        let name = blob_path(digest);
        let missing = || LayoutError::NoBlob { path: self.path.clone(), digest: *digest };
        self.member(&name)?.ok_or_else(missing)
    }

    fn member(&self, name: &str) -> Result<Option<(Arc<File>, Extent)>, LayoutError> {
        match &self.files {
            Files::Archive { file, members } => {
                Ok(members.get(name).map(|extent| (file.clone(), *extent)))
            }
            Files::Directory => {
                let path = self.path.join(name);
                let file = match File::open(&path) {
                    Ok(file) => file,
                    Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(io("opening", &path, &error)),
                };
                let len = file.metadata().map_err(|error| io("reading", &path, &error))?.len();
                Ok(Some((Arc::new(file), Extent { offset: 0, len })))
            }
        }
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

fn read(file: &File, extent: Extent, path: &Path) -> Result<Vec<u8>, LayoutError> {
    let mut bytes = vec![0; usize::try_from(extent.len).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, extent.offset).map_err(|error| io("reading", path, &error))?;
    Ok(bytes)
}

fn io(attempt: &'static str, path: &Path, error: &std::io::Error) -> LayoutError {
    LayoutError::Io { attempt, path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests;
