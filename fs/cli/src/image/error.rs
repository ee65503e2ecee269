//! Why an image can't be had.

use std::path::PathBuf;

use spanfs_cache::CacheError;
use spanfs_fetch::{Class, EngineError, FetchError, LayoutError, OptionsError, SourceError};
use spanfs_layer::Digest;

/// Why an image can't be had, or not as it was promised.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A name or a setting that can't mean anything.
    #[error("{what} is not usable: {reason}")]
    Usage {
        /// What was given.
        what: String,
        /// Why it can't be used.
        reason: String,
    },
    /// Threads, rings, clients.
    #[error("starting to fetch")]
    Start(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A registry or a layout.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A file or directory of ours.
    #[error("cannot use {}", path.display())]
    Disk {
        /// File or directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Something that the image names, or the image itself, is not there.
    #[error("{0}")]
    NotFound(String),
    /// Content that contradicts what names it.
    #[error("{0}")]
    Corrupt(String),
    /// A layer's bytes could not be had.
    #[error("fetching layer {layer}")]
    Fetch {
        /// Layer.
        layer: Digest,
        /// What the source said.
        #[source]
        source: FetchError,
    },
    /// A zTOC's bytes could not be had.
    #[error("fetching zTOC {ztoc}")]
    FetchZtoc {
        /// zTOC.
        ztoc: Digest,
        /// What the source said.
        #[source]
        source: FetchError,
    },
    /// The cache.
    #[error(transparent)]
    Cache(CacheError),
    /// Nobody wants it any more.
    #[error("stopped")]
    Stopped,
}

impl ImageError {
    /// What a caller can do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Source(error) => error.class(),
            Self::Fetch { source, .. } | Self::FetchZtoc { source, .. } => source.class(),
            Self::NotFound(_) => Class::Gone,
            Self::Disk { source, .. } => match source.kind() {
                std::io::ErrorKind::PermissionDenied => Class::Refused,
                _ => Class::Retry,
            },
            Self::Corrupt(_) => Class::Corrupt,
            Self::Cache(error) => error.class(),
            Self::Start(_) => Class::Retry,
            Self::Usage { .. } => Class::Refused,
            Self::Stopped => Class::Cancelled,
        }
    }

    /// True where the caller's own words were wrong.
    pub fn is_usage(&self) -> bool {
        let ambiguous = |error: &SourceError| {
            matches!(error, SourceError::Layout(LayoutError::Ambiguous { .. }))
        };
        match self {
            Self::Usage { .. } => true,
            Self::Source(error) => ambiguous(error),
            _ => false,
        }
    }

    pub(crate) fn usage(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Usage { what: what.into(), reason: reason.to_string() }
    }
}

impl From<CacheError> for ImageError {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Stopped { .. } => Self::Stopped,
            error => Self::Cache(error),
        }
    }
}

impl From<EngineError> for ImageError {
    fn from(error: EngineError) -> Self {
        Self::Start(Box::new(error))
    }
}

impl From<OptionsError> for ImageError {
    fn from(error: OptionsError) -> Self {
        Self::usage("a setting of the registry client", error)
    }
}
