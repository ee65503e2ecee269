//! Where blobs that came whole are kept: in containerd's content store, or in a layout of our own.
//!
//! ```text
//! find ─▶ a blob that need not be fetched
//! put  ─▶ containerd: has it? ─▶ adopt ─▶ link the file into its store ─▶ stream the file
//!         layout:     link the file ─▶ copy it
//! ```
//!
//! What is put was checked against its digest before. Everything blocks, with deadlines; call it from
//! threads of its own.

mod containerd;
mod remote;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use spanfs_fetch::{Blob, Layout, LayoutError, LayoutWriter, Nearby, READERS_DEFAULT, ReadPool};
use spanfs_layer::Digest;
use spanfs_layer::oci::Descriptor;
use tokio::runtime::Handle;

use crate::config::{self, Settings};
use crate::containerd::ClientError;
use containerd::Containerd;

/// A blob and whose it is.
#[derive(Clone, Debug)]
pub struct BlobName {
    /// What the manifest says of it.
    pub descriptor: Descriptor,
    /// Digest of its tar.
    pub diff_id: Digest,
    /// Manifest that names it: containerd has that.
    pub manifest: Digest,
    /// Registry that it is from.
    pub host: String,
    /// Repository in that registry.
    pub repository: String,
    /// containerd's namespace of who wants it.
    pub namespace: String,
    /// Kept as long as the manifest, also where containerd discards layers that are unpacked.
    pub is_held: bool,
}

/// Why a blob is not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// containerd.
    #[error("keeping blob {digest} in containerd")]
    Containerd {
        /// Blob.
        digest: Digest,
        /// Its answer.
        #[source]
        source: ClientError,
    },
    /// Our own layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A file.
    #[error("keeping blob {digest}: cannot read {}", path.display())]
    File {
        /// Blob.
        digest: Digest,
        /// Where it was to be read.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Whether a blob is kept now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is.
    Yes,
    /// It is not there, and no file of it was given.
    Missing,
}

/// The store of the settings.
pub struct ContentStore {
    place: Place,
    pool: ReadPool,
}

enum Place {
    Containerd(Containerd),
    /// Locked while it is opened: who comes second must not see half of one that is being made.
    Layout(Mutex<PathBuf>),
}

impl ContentStore {
    /// The store that the settings choose; `root` is the daemon's. Asks nobody yet.
    pub fn open(settings: &Settings, root: &Path, runtime: &Handle) -> io::Result<Self> {
        let pool = ReadPool::start(READERS_DEFAULT)?;
        let place = match settings.content_store {
            config::ContentStore::Soci => Place::Layout(Mutex::new(root.join("content"))),
            config::ContentStore::Containerd => {
                let containerd = Containerd::new(&settings.containerd, runtime);
                Place::Containerd(containerd.map_err(io::Error::other)?)
            }
        };
        Ok(Self { place, pool })
    }

    /// A blob that is there. It is to be read once and soon: it may be collected.
    pub fn find(&self, name: &BlobName) -> Option<Arc<dyn Blob>> {
        let Descriptor { digest, size, .. } = &name.descriptor;
        match &self.place {
            Place::Containerd(containerd) => containerd.find(name, &self.pool),
            Place::Layout(path) => {
                let layout = Layout::directory(&path.lock(), &self.pool).ok()?;
                layout.blob(digest, *size).ok()
            }
        }
    }

    /// What finds documents of images: containerd has them before it asks for a layer.
    pub fn nearby(&self, namespace: &str) -> Option<Nearby> {
        match &self.place {
            Place::Containerd(containerd) => containerd.nearby(namespace),
            Place::Layout(_) => None,
        }
    }

    /// Keep a blob, whose checked bytes are in `file`. Without file, see whether it is kept.
    pub fn put(&self, name: &BlobName, file: Option<&Path>) -> Result<Kept, KeepError> {
        let digest = name.descriptor.digest;
        match &self.place {
            Place::Containerd(containerd) => containerd.put(name, file),
            Place::Layout(path) => {
                let writer = LayoutWriter::open(&path.lock())?;
                match file {
                    _ if writer.has(&digest) => Ok(Kept::Yes),
                    None => Ok(Kept::Missing),
                    Some(file) => {
                        writer.link_blob(&digest, file)?;
                        Ok(Kept::Yes)
                    }
                }
            }
        }
    }

    /// No snapshot needs the layer any more. containerd's garbage collector sees to its own store.
    pub fn forget(&self, layer: &Digest) {
        let Place::Layout(path) = &self.place else { return };
        let path = path.lock();
        if !path.join("oci-layout").exists() {
            return;
        }
        let removed = LayoutWriter::open(&path).and_then(|writer| writer.remove_blob(layer));
        if let Err(error) = removed {
            tracing::warn!(%layer, %error, "a blob stays in the content store");
        }
    }
}
