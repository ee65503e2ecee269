//! What can go wrong with the cache as a whole; what goes wrong with a read is [`crate::ReadError`].

use std::io;
use std::path::{Path, PathBuf};

use spanfs_fetch::{Class, FetchError};
use spanfs_layer::Digest;

use crate::build::BuildError;

/// Why a cache or a layer can't be opened, indexed, verified or removed.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The disk refused.
    #[error("{doing} {path}")]
    Storage {
        /// What was attempted.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The directory holds a cache of another format.
    #[error(
        "{path} holds a cache of format {found:?}, expected {expected:?}: use another directory"
    )]
    OtherFormat {
        /// The version file.
        path: PathBuf,
        /// Its first line.
        found: String,
        /// What we write.
        expected: &'static str,
    },
    /// A thread could not be started.
    #[error("starting the cache's threads")]
    Threads(#[source] io::Error),
    /// The zTOC does not belong to this layer, or is no zTOC.
    #[error("zTOC of layer {layer}: {reason}")]
    BadZtoc {
        /// Layer.
        layer: Digest,
        /// Expected and found.
        reason: String,
    },
    /// The layer's bytes were not what its digests promise; it is not served any more.
    #[error("layer {layer} is not served: {reason}")]
    Condemned {
        /// Layer.
        layer: Digest,
        /// Expected and found.
        reason: String,
    },
    /// The blob could not be had.
    #[error("fetching layer {layer}")]
    Unavailable {
        /// Layer.
        layer: Digest,
        /// What the source said.
        #[source]
        source: Box<FetchError>,
    },
    /// The blob is no layer.
    #[error("unpacking layer {layer}")]
    Build {
        /// Layer.
        layer: Digest,
        /// What is wrong.
        #[source]
        source: BuildError,
    },
    /// The program that decompresses layers failed.
    #[error("decompressing layer {layer} by {program}: {reason}")]
    Decompressor {
        /// Layer.
        layer: Digest,
        /// Its file.
        program: PathBuf,
        /// How, and what it said.
        reason: String,
    },
    /// Nobody wants it any more.
    #[error("getting layer {layer} was stopped")]
    Stopped {
        /// Layer.
        layer: Digest,
    },
    /// Somebody uses it.
    #[error("layer {layer} is in use")]
    InUse {
        /// Layer.
        layer: Digest,
    },
}

impl CacheError {
    /// What a caller can do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Unavailable { source, .. } => source.class(),
            Self::BadZtoc { .. } | Self::Condemned { .. } | Self::Build { .. } => Class::Corrupt,
            Self::Stopped { .. } => Class::Cancelled,
            Self::OtherFormat { .. } | Self::Decompressor { .. } => Class::Refused,
            Self::Storage { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Class::Refused
            }
            Self::Storage { .. } | Self::Threads(_) | Self::InUse { .. } => Class::Retry,
        }
    }

    /// For `map_err`.
    pub(crate) fn storage(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Storage { doing, path, source }
    }
}
