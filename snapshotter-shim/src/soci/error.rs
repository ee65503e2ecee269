//! Why a command failed, in words that scripts of the peer know.

use std::io;
use std::path::{Path, PathBuf};

use spanfs_fetch::{HostsError, LayoutError, RegistryError};
use spanfs_layer::oci::OciError;
use spanfs_layer::soci::{ConvertError, NoZtocs};

use super::artifacts::ArtifactsError;
use crate::containerd::ClientError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum SociError {
    /// What the peer says in this case, word by word, or in its manner.
    #[error("{0}")]
    Said(String),
    /// containerd.
    #[error("{}", containerd(.0))]
    Containerd(#[from] ClientError),
    /// A signal ended the command.
    #[error("interrupted by signal {0}")]
    Signal(i32),
    /// A file. The text is in Go's form, as the peer's.
    #[error("{attempt} {}: {}", path.display(), go_text(source))]
    Disk {
        /// `open`, `mkdir`, ...
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The record of artifacts.
    #[error(transparent)]
    Artifacts(#[from] ArtifactsError),
    /// A document of an image.
    #[error("{what}: {source}")]
    Document {
        /// Which.
        what: String,
        /// What is wrong with it.
        #[source]
        source: OciError,
    },
    /// Nothing to index.
    #[error(transparent)]
    NoZtocs(#[from] NoZtocs),
    /// The image index can't be rewritten.
    #[error(transparent)]
    Convert(Box<ConvertError>),
    /// A layout on disk.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The registry.
    #[error("{attempt}: {source}")]
    Registry {
        /// What was attempted.
        attempt: &'static str,
        /// What it said.
        #[source]
        source: RegistryError,
    },
    /// The registry's configuration.
    #[error(transparent)]
    Hosts(#[from] HostsError),
}

impl SociError {
    pub(super) fn said(text: impl Into<String>) -> Self {
        Self::Said(text.into())
    }

    pub(super) fn disk(attempt: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Disk { attempt, path: path.to_owned(), source }
    }
}

impl From<ConvertError> for SociError {
    fn from(error: ConvertError) -> Self {
        Self::Convert(Box::new(error))
    }
}

/// The whole command's time is up.
pub(super) const DEADLINE: &str = "context deadline exceeded";

fn containerd(error: &ClientError) -> String {
    match error {
        ClientError::Connect { address, reason } => {
            tracing::debug!(address, reason, "containerd can't be reached");
            // This is all that the peer says; the debug log tells more.
            format!("{DEADLINE} while waiting for connections to become ready: {DEADLINE}")
        }
        error => error.to_string(),
    }
}

/// Go's text of an error: lower case, without a number.
pub(super) fn go_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if error.raw_os_error().is_some() => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}
