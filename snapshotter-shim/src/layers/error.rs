//! What can go wrong with a layer.

use std::path::{Path, PathBuf};

use spanfs::image::ImageError;
use spanfs::mounted::ShowError;
use spanfs_cache::CacheError;
use spanfs_fetch::{Class, ImageRefError};
use spanfs_mount::MountError;
use spanfs_mount::front::files::UnpackError;

use crate::content_store::KeepError;

/// Why a layer can't be shown, or layers can't be at all.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A file or directory of ours.
    #[error("cannot use {}", path.display())]
    Disk {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The image, or a layer of it.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The index, or the mount.
    #[error(transparent)]
    Show(#[from] ShowError),
    /// The mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The files.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The content store.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// A note names no image.
    #[error(transparent)]
    Name(#[from] ImageRefError),
    /// The layer is not what its image promises.
    #[error("{0}")]
    Corrupt(String),
    /// What an earlier process showed can't come back.
    #[error(
        "{count} layers can't be restored, the first that of snapshot {id}: {reason}; with \
         snapshotter.allow_invalid_mounts_on_restart = true the start goes on without them, and \
         their snapshots can be removed"
    )]
    Lost {
        /// The first one's snapshot.
        id: u64,
        /// Why.
        reason: String,
        /// All of them.
        count: usize,
    },
    /// It was asked for together with others, and that failed.
    #[error("{0}")]
    Whole(String),
}

impl LayerError {
    /// What a caller can do about what an image's place said; none for all else.
    pub(super) fn class(&self) -> Option<Class> {
        match self {
            Self::Image(error) | Self::Show(ShowError::Image(error)) => Some(error.class()),
            _ => None,
        }
    }

    /// For what is done with `path`.
    pub(super) fn disk(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        |source| Self::Disk { path, source }
    }
}
