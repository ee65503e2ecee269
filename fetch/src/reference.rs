//! Names of images as Docker writes them: `[host[:port]/]repository[:tag][@digest]`.
//!
//! Source: the grammar of the distribution project's `reference` package, with its normalising of
//! short names to Docker Hub.

use std::fmt;
use std::str::FromStr;

use spanfs_layer::{Digest, DigestError};

/// Host that a name without one means.
const HUB: &str = "docker.io";
/// Tag that a name without tag and digest means.
const TAG_DEFAULT: &str = "latest";
/// Limit of the reference grammar on host and repository together.
const NAME_LEN_MAX: usize = 255;
/// Limit of the reference grammar.
const TAG_LEN_MAX: usize = 128;

/// Where an image is: complete, normalised, valid by construction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("image reference is empty")]
    Empty,
    /// A URL.
    #[error(
        "image reference {text:?} begins with a scheme: write host/repository without {scheme:?}"
    )]
    Scheme {
        /// Input.
        text: String,
        /// For example `https://`.
        scheme: String,
    },
    /// 64 hexadecimal digits.
    #[error("{text:?} is a bare hash: write repository@sha256:{text}")]
    BareHash {
        /// Input.
        text: String,
    },
    /// Host part.
    #[error(
        "host {host:?} of the image reference is not a name, address or [IPv6] with optional port"
    )]
    Host {
        /// What stands before the first slash.
        host: String,
    },
    /// Repository part.
    #[error(
        "repository {repository:?} of the image reference: {component:?} is not lower-case letters \
         and digits, separated by one '.', one or two '_', or '-'"
    )]
    Repository {
        /// Whole path.
        repository: String,
        /// Offending component.
        component: String,
    },
    /// Tag part.
    #[error(
        "tag {tag:?} of the image reference is not 1 to 128 of [A-Za-z0-9_.-], beginning with none of .-"
    )]
    Tag {
        /// What stands behind the colon.
        tag: String,
    },
    /// Digest part.
    #[error("digest {digest:?} of the image reference is not valid")]
    Digest {
        /// What stands behind the `@`.
        digest: String,
        /// Cause.
        #[source]
        source: DigestError,
    },
    /// Host and repository.
    #[error("image name has {found} characters, at most {NAME_LEN_MAX} are allowed")]
    TooLong {
        /// Length of host and repository.
        found: usize,
    },
}

impl Reference {
    /// Registry as named: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Path in the registry: `library/alpine`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag; `latest` if neither tag nor digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Digest; where there is one it decides and the tag is only a remark.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same repository at a digest.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// The same repository at a tag.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        check_tag(tag)?;
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// What stands behind `/manifests/` in a request for it.
    pub fn object(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => TAG_DEFAULT.to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if let Some(at) = text.find("://") {
            let scheme = text.get(..at + 3).unwrap_or_default().to_owned();
            return Err(ReferenceError::Scheme { text: text.to_owned(), scheme });
        }
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::BareHash { text: text.to_owned() });
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(parse_digest(digest)?)),
            None => (text, None),
        };
        let (host, rest) = split_host(name);
        check_host(host)?;
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        tag.map_or(Ok(()), check_tag)?;
        let repository = match host {
            HUB if !path.contains('/') && !path.is_empty() => format!("library/{path}"),
            _ => path.to_owned(),
        };
        check_repository(&repository)?;
        let found = host.len() + 1 + repository.len();
        if found > NAME_LEN_MAX {
            return Err(ReferenceError::TooLong { found });
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(TAG_DEFAULT),
            _ => tag,
        };
        let tag = tag.map(str::to_owned);
        Ok(Self { host: host.to_owned(), repository, tag, digest })
    }
}

fn parse_digest(digest: &str) -> Result<Digest, ReferenceError> {
    digest.parse().map_err(|source| ReferenceError::Digest { digest: digest.to_owned(), source })
}

/// The first component is a host only if it can't be a repository's: it has a dot, a colon or a capital,
/// or is `localhost`.
fn split_host(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io", rest)) => (HUB, rest),
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        _ => (HUB, name),
    }
}

fn looks_like_host(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_host(host: &str) -> Result<(), ReferenceError> {
    let bad = || ReferenceError::Host { host: host.to_owned() };
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let (address, after) = rest.split_once(']').ok_or_else(bad)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
        ("", after)
    } else {
        let colon = host.find(':').unwrap_or(host.len());
        host.split_at_checked(colon).ok_or_else(bad)?
    };
    let label_ok = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !label.is_empty()
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !host.starts_with('[') && !name.split('.').all(label_ok) {
        return Err(bad());
    }
    if port.is_empty() {
        return Ok(());
    }
    let digits = port.strip_prefix(':').ok_or_else(bad)?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if plain && digits.parse::<u16>().is_ok() { Ok(()) } else { Err(bad()) }
}

fn check_repository(repository: &str) -> Result<(), ReferenceError> {
    match repository.split('/').find(|component| !component_ok(component)) {
        None => Ok(()),
        Some(component) => Err(ReferenceError::Repository {
            repository: repository.to_owned(),
            component: component.to_owned(),
        }),
    }
}

fn component_ok(component: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separator =
        |run: &str| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|b| b == b'-');
    component.starts_with(alphanumeric)
        && component.ends_with(alphanumeric)
        && component.split(alphanumeric).all(separator)
}

fn check_tag(tag: &str) -> Result<(), ReferenceError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let ok = tag.len() <= TAG_LEN_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if ok { Ok(()) } else { Err(ReferenceError::Tag { tag: tag.to_owned() }) }
}

#[cfg(test)]
mod tests;
