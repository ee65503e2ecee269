//! What the labels of an extraction say about the layer that is wanted.
//!
//! Sources: containerd's `AppendInfoHandlerWrapper` and unpacker, nerdctl's wrapper for SOCI. They
//! come over containerd's socket and name what is fetched, so each is checked before it is used.

use spanfs_fetch::{Reference, ReferenceError};
use spanfs_layer::Digest;

use crate::state::Labels;

const IMAGE: &str = "containerd.io/snapshot/cri.image-ref";
const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
const LAYER: &str = "containerd.io/snapshot/cri.layer-digest";
const INDEX: &str = "containerd.io/snapshot/remote/soci.index.digest";
const SIZE: &str = "containerd.io/snapshot/remote/soci.size";

/// On layers whose content comes on demand.
pub const REMOTE: (&str, &str) = ("containerd.io/snapshot/remote", "remote snapshot");
/// On all layers of ours of an image that has an index.
pub const INDEXED: (&str, &str) = ("containerd.io/snapshot/remote/has.soci.index.digest", "true");
/// containerd's namespace of whoever asked for the layer.
pub const NAMESPACE: &str = "containerd.io/snapshot/remote/namespace";

/// The layer that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The image, as whoever pulls it names it.
    pub image: Reference,
    /// Its manifest for this platform.
    pub manifest: Digest,
    /// The layer's blob.
    pub layer: Digest,
    /// The SOCI index to use, if somebody chose one.
    pub index: Option<Digest>,
    /// Bytes of the blob, if somebody told.
    pub size: Option<u64>,
    /// containerd's namespace of whoever asks; the labels don't tell.
    pub namespace: Option<String>,
}

/// Labels that name no layer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Whoever pulls is not set up to tell.
    #[error("no label {0}; is disable_snapshot_annotations = false set in containerd's config?")]
    Missing(&'static str),
    /// A value that is none.
    #[error("label {label}: {value:?} is no digest")]
    Digest {
        /// Which.
        label: &'static str,
        /// What it says.
        value: String,
    },
    /// An image that is none.
    #[error("label {IMAGE}")]
    Image(#[from] ReferenceError),
}

impl Request {
    /// Read the labels.
    pub fn parse(labels: &Labels) -> Result<Self, RequestError> {
        let digest = |label: &'static str| match labels.get(label) {
            None => Ok(None),
            Some(value) => value
                .parse()
                .map(Some)
                .map_err(|_| RequestError::Digest { label, value: value.to_owned() }),
        };
        let needed = |label| digest(label)?.ok_or(RequestError::Missing(label));
        Ok(Self {
            image: labels.get(IMAGE).ok_or(RequestError::Missing(IMAGE))?.parse()?,
            manifest: needed(MANIFEST)?,
            layer: needed(LAYER)?,
            index: digest(INDEX)?,
            // A size that is none is nothing told: the manifest tells it too.
            size: labels.get(SIZE).and_then(|size| size.parse().ok()),
            namespace: None,
        })
    }
}

impl Request {
    /// The namespace; containerd's own default if nobody named one.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(NAMESPACE_DEFAULT)
    }
}

/// containerd's own default.
pub(super) const NAMESPACE_DEFAULT: &str = "default";

/// The manifest of the image that a snapshot's layer was pulled for.
pub fn manifest(labels: &Labels) -> Option<Digest> {
    labels.get(MANIFEST)?.parse().ok()
}

/// containerd's namespace that a call is made for: from its header, else the first part of the key,
/// for containerd 1.6 sends no header to us.
pub fn namespace<'a>(header: Option<&'a str>, key: &'a str) -> Option<&'a str> {
    header.or_else(|| key.split_once('/').map(|(first, _)| first)).filter(|name| is_namespace(name))
}

/// containerd's `identifiers.Validate`.
fn is_namespace(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    name.len() <= 76
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const D1: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
    const D2: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

    fn labels(more: &[(&str, &str)]) -> Labels {
        let base = [(IMAGE, "127.0.0.1:5000/a/b:1"), (MANIFEST, D1), (LAYER, D2)];
        base.iter().chain(more).copied().collect()
    }

    #[test]
    fn all_labels_are_read() {
        let request = Request::parse(&labels(&[(INDEX, D1), (SIZE, "77")])).unwrap();
        assert_eq!(request.image.to_string(), "127.0.0.1:5000/a/b:1");
        assert_eq!(request.manifest, D1.parse().unwrap());
        assert_eq!(request.layer, D2.parse().unwrap());
        assert_eq!((request.index, request.size), (Some(D1.parse().unwrap()), Some(77)));
        // nerdctl sends an empty one where the user chose none.
        let request = Request::parse(&labels(&[(INDEX, "")])).unwrap();
        assert_eq!((request.index, request.size), (None, None));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let check = |more: &[(&str, &str)], expected: &str| {
            let error = Request::parse(&labels(more)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&[(LAYER, "")], LAYER);
        check(&[(MANIFEST, "")], "disable_snapshot_annotations");
        check(&[(LAYER, "../../etc")], "is no digest");
        check(&[(INDEX, "sha256:12")], INDEX);
        check(&[(IMAGE, "https://x/y")], IMAGE);
    }

    #[test]
    fn namespaces() {
        for (header, key, expected) in [
            (Some("k8s.io"), "default/1/x", Some("k8s.io")),
            (None, "default/1/extract-1 sha256:00", Some("default")),
            (None, "no-slash", None),
            (None, "/1/x", None),
            (Some("a b"), "default/1/x", None),
            (Some("../x"), "default/1/x", None),
        ] {
            assert_eq!(namespace(header, key), expected, "{header:?} {key}");
        }
    }
}
