//! Content: blobs in memory or in files, and each repository's manifests and tags.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use spanfs_layer::Digest;

/// Bytes of a blob.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Memory(Bytes),
    /// Opened once; read by position.
    File(Arc<File>, u64),
}

impl Content {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self::File(Arc::new(file), len))
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, len) => *len,
        }
    }
}

/// A manifest as it was pushed.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
    pub(crate) outline: Outline,
}

/// The parts of a manifest or index that a registry looks at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Outline {
    pub(crate) media_type: Option<String>,
    pub(crate) artifact_type: Option<String>,
    pub(crate) config: Option<Descriptor>,
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default)]
    pub(crate) manifests: Vec<Descriptor>,
    pub(crate) subject: Option<Descriptor>,
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
pub(crate) struct Repository {
    pub(crate) manifests: BTreeMap<Digest, Manifest>,
    pub(crate) tags: BTreeMap<String, Digest>,
    blobs: BTreeSet<Digest>,
}

#[derive(Debug)]
pub(crate) struct Store {
    /// Root of an OCI layout that pushed blobs go to; else they stay in memory.
    directory: Option<PathBuf>,
    blobs: HashMap<Digest, Content>,
    pub(crate) repositories: BTreeMap<String, Repository>,
}

impl Store {
    pub(crate) fn new(directory: Option<PathBuf>) -> Self {
        Self { directory, blobs: HashMap::new(), repositories: BTreeMap::new() }
    }

    /// Where the blob belongs in the directory, if there is one.
    pub(crate) fn path_of(&self, digest: &Digest) -> Option<PathBuf> {
        let directory = self.directory.as_ref()?;
        let algorithm = digest.algorithm().name();
        Some(directory.join("blobs").join(algorithm).join(digest.hex().to_string()))
    }

    pub(crate) fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    pub(crate) fn put_blob(&mut self, repository: &str, digest: Digest, content: Content) {
        self.blobs.entry(digest).or_insert(content);
        self.repository(repository).blobs.insert(digest);
    }

    /// Make a blob that another repository has visible in this one.
    pub(crate) fn link_blob(&mut self, from: &str, to: &str, digest: Digest) -> bool {
        let known = self.blob(from, &digest).is_some();
        if known {
            self.repository(to).blobs.insert(digest);
        }
        known
    }

    pub(crate) fn remove_blob(&mut self, digest: &Digest) -> bool {
        self.repositories.values_mut().for_each(|repository| {
            repository.blobs.remove(digest);
        });
        self.blobs.remove(digest).is_some()
    }

    pub(crate) fn blob(&self, repository: &str, digest: &Digest) -> Option<Content> {
        let repository = self.repositories.get(repository)?;
        if let Some(manifest) = repository.manifests.get(digest) {
            return Some(Content::Memory(manifest.bytes.clone()));
        }
        repository.blobs.get(digest).and_then(|digest| self.blobs.get(digest)).cloned()
    }

    /// A blob whatever repository it is in, as the blob store behind redirects sees it.
    pub(crate) fn any_blob(&self, digest: &Digest) -> Option<Content> {
        self.blobs.get(digest).cloned()
    }

    pub(crate) fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    pub(crate) fn put_manifest(
        &mut self,
        repository: &str,
        tag: Option<&str>,
        media_type: String,
        bytes: Bytes,
    ) -> Result<Digest, serde_json::Error> {
        let outline: Outline = serde_json::from_slice(&bytes)?;
        let digest = Digest::of(&bytes);
        let repository = self.repository(repository);
        repository.manifests.insert(digest, Manifest { media_type, bytes, outline });
        if let Some(tag) = tag {
            repository.tags.insert(tag.to_owned(), digest);
        }
        Ok(digest)
    }
}
