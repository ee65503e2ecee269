//! Images as users name them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::reference::{Reference, ReferenceError};

/// An image as a user names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ImageRef {
    /// `[host/]repository[:tag][@digest]`.
    Registry(Reference),
    /// `oci:DIR[:TAG]`.
    Directory {
        /// Layout directory.
        path: PathBuf,
        /// Which of its images; `None`: the only one.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:TAG]`.
    Archive {
        /// Tar of a layout.
        path: PathBuf,
        /// Which of its images; `None`: the only one.
        tag: Option<String>,
    },
}

/// Why a text names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageRefError {
    /// A registry's.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A layout's.
    #[error("{text:?} is not {form}")]
    Layout {
        /// Input.
        text: String,
        /// What it should look like.
        form: &'static str,
    },
}

impl FromStr for ImageRef {
    type Err = ImageRefError;

    fn from_str(text: &str) -> Result<Self, ImageRefError> {
        // As skopeo has it: the tag follows the first colon, so no path may hold one.
        let split = |rest: &str, form: &'static str| {
            let (path, tag) = match rest.split_once(':') {
                Some((path, tag)) => (path, Some(tag.to_owned())),
                None => (rest, None),
            };
            if path.is_empty() || tag.as_ref().is_some_and(String::is_empty) {
                return Err(ImageRefError::Layout { text: text.to_owned(), form });
            }
            Ok((PathBuf::from(path), tag))
        };
        if let Some(rest) = text.strip_prefix("oci:") {
            let (path, tag) = split(rest, "oci:DIR[:TAG]")?;
            return Ok(Self::Directory { path, tag });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (path, tag) = split(rest, "oci-archive:FILE[:TAG]")?;
            return Ok(Self::Archive { path, tag });
        }
        let text = text.strip_prefix("docker://").unwrap_or(text);
        Ok(Self::Registry(text.parse()?))
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, path, tag) = match self {
            Self::Registry(reference) => return reference.fmt(f),
            Self::Directory { path, tag } => ("oci", path, tag),
            Self::Archive { path, tag } => ("oci-archive", path, tag),
        };
        write!(f, "{kind}:{}", path.display())?;
        tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
    }
}
