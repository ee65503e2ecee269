//! SOCI indexes: which zTOC belongs to which layer of an image.
//!
//! An index is an OCI manifest whose config's media type names its version. Version 1 points to its
//! image by `subject` and is found through the referrers API; version 2 is named by an annotation
//! of the image's manifest, which [`convert()`] writes.

mod convert;
mod prefetch;
mod rule;
#[cfg(test)]
mod tests;

pub use convert::{ConvertError, Converted, Indexed, convert, index_of_one};
pub use prefetch::{Prefetch, PrefetchError, PrefetchLayer, SpanRun, prefetch_files};
pub use rule::{ZtocRule, needs_no_xattrs};

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde_json::Map;

use crate::Digest;
use crate::oci::{Annotations, Descriptor, Index, Manifest, OciError, media_type};

/// Media type of a zTOC.
pub const ZTOC_MEDIA_TYPE: &str = "application/octet-stream";
/// Media type of a prefetch artifact.
pub const PREFETCH_MEDIA_TYPE: &str = "application/vnd.amazon.soci.prefetch.v1+json";
/// Content of the config of every index.
pub const CONFIG: &[u8] = b"{}";

const BUILD_TOOL: &str = "com.amazon.soci.build-tool-identifier";
const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";
const LAYER_MEDIA_TYPE: &str = "com.amazon.soci.image-layer-mediaType";
const SPAN_SIZE: &str = "com.amazon.soci.span-size";
const DISABLE_XATTRS: &str = "com.amazon.soci.disable-xattrs";
const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";
const IMAGE_MANIFEST_DIGEST: &str = "com.amazon.soci.image-manifest-digest";

/// Version of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Beside its image, found through the referrers API.
    V1,
    /// Within its image's index.
    V2,
}

impl Version {
    /// Media type of the config, which is the type of the artifact as well.
    pub fn artifact_type(self) -> &'static str {
        match self {
            Self::V1 => "application/vnd.amazon.soci.index.v1+json",
            Self::V2 => "application/vnd.amazon.soci.index.v2+json",
        }
    }

    fn of(media_type: &str) -> Option<Self> {
        [Self::V1, Self::V2].into_iter().find(|version| version.artifact_type() == media_type)
    }
}

/// A decoded index.
#[derive(Clone, Debug, PartialEq)]
pub struct SociIndex {
    /// Its version.
    pub version: Version,
    /// The manifest that it is written as.
    pub manifest: Manifest,
}

/// Why bytes are not an index.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Not even a manifest.
    #[error("invalid soci index")]
    Manifest(#[from] OciError),
    /// A manifest of something else.
    #[error("unknown index version: {found}")]
    UnknownVersion {
        /// Media type of its config.
        found: String,
    },
}

impl SociIndex {
    /// Read an index. Keep the bytes: their digest is what others know it by.
    pub fn parse(json: &[u8]) -> Result<Self, IndexError> {
        let manifest = Manifest::parse(json)?;
        let version = Version::of(&manifest.config.media_type);
        let found = &manifest.config.media_type;
        let version = version.ok_or(IndexError::UnknownVersion { found: found.clone() })?;
        Ok(Self { version, manifest })
    }

    /// The zTOC of a layer; of several the last one.
    pub fn ztoc(&self, layer: &Digest) -> Option<&Descriptor> {
        self.of_layer(ZTOC_MEDIA_TYPE, layer).next_back()
    }

    /// The prefetch artifact of a layer; of several the first one.
    pub fn prefetch(&self, layer: &Digest) -> Option<&Descriptor> {
        self.of_layer(PREFETCH_MEDIA_TYPE, layer).next()
    }

    fn of_layer(
        &self,
        media_type: &str,
        layer: &Digest,
    ) -> impl DoubleEndedIterator<Item = &Descriptor> {
        let layer = layer.to_string();
        self.manifest.layers.iter().filter(move |entry| {
            entry.media_type == media_type && entry.annotations.get(LAYER_DIGEST) == Some(&layer)
        })
    }

    /// True if an entry of [`Self::ztoc`] says that its layer has neither xattrs nor opaque marks.
    pub fn disables_xattrs(ztoc: &Descriptor) -> bool {
        let value = ztoc.annotations.get(DISABLE_XATTRS);
        value.is_some_and(|value| {
            matches!(value.as_str(), "1" | "t" | "T" | "TRUE" | "true" | "True")
        })
    }
}

/// A zTOC for an index.
#[derive(Clone, Debug)]
pub struct ZtocEntry<'a> {
    /// Digest of the encoded zTOC.
    pub digest: Digest,
    /// Bytes of the encoded zTOC.
    pub size: u64,
    /// Its layer.
    pub layer: &'a Descriptor,
    /// Span size that it was built with.
    pub span_size: u64,
    /// See [`needs_no_xattrs`]; only where asked for, as it hides mount points' xattrs.
    pub disable_xattrs: bool,
}

/// What an index is built from.
#[derive(Clone, Debug)]
pub struct IndexParts<'a> {
    /// zTOCs in the order of the image's layers.
    pub ztocs: &'a [ZtocEntry<'a>],
    /// Prefetch artifacts and their layers, in the order of the image's layers.
    pub prefetch: &'a [(Digest, Prefetch)],
    /// Free text naming the builder.
    pub build_tool: &'a str,
}

/// All layers were skipped, so that there is nothing to index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no ztocs created, all layers either skipped or produced errors")]
pub struct NoZtocs;

impl SociIndex {
    /// Index of version 1 for the image whose manifest is `image`.
    pub fn v1(parts: &IndexParts<'_>, image: &Descriptor) -> Result<Self, NoZtocs> {
        let mut index = Self::build(Version::V1, parts)?;
        index.manifest.subject = Some(Descriptor::new(&image.media_type, image.digest, image.size));
        Ok(index)
    }

    /// Index of version 2.
    pub fn v2(parts: &IndexParts<'_>) -> Result<Self, NoZtocs> {
        Self::build(Version::V2, parts)
    }

    fn build(version: Version, parts: &IndexParts<'_>) -> Result<Self, NoZtocs> {
        let ztocs = parts.ztocs.iter().map(ztoc_descriptor);
        let prefetch = parts.prefetch.iter().map(|(layer, artifact)| {
            let mut entry = Descriptor::of(PREFETCH_MEDIA_TYPE, &artifact.encode());
            entry.annotations.insert(LAYER_DIGEST.into(), layer.to_string());
            entry
        });
        let layers: Vec<Descriptor> = ztocs.chain(prefetch).collect();
        if layers.is_empty() {
            return Err(NoZtocs);
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_type::MANIFEST.into(),
            artifact_type: String::new(),
            config: Descriptor::of(version.artifact_type(), CONFIG),
            layers,
            subject: None,
            annotations: Annotations::from([(BUILD_TOOL.into(), parts.build_tool.into())]),
            other: Map::new(),
        };
        Ok(Self { version, manifest })
    }

    /// The canonical bytes, the only ones that a peer can store.
    pub fn to_canonical(&self) -> Vec<u8> {
        self.manifest.to_canonical()
    }
}

fn ztoc_descriptor(entry: &ZtocEntry<'_>) -> Descriptor {
    let mut descriptor = Descriptor::new(ZTOC_MEDIA_TYPE, entry.digest, entry.size);
    let annotations = &mut descriptor.annotations;
    annotations.insert(LAYER_DIGEST.into(), entry.layer.digest.to_string());
    annotations.insert(LAYER_MEDIA_TYPE.into(), entry.layer.media_type.clone());
    annotations.insert(SPAN_SIZE.into(), entry.span_size.to_string());
    if entry.disable_xattrs {
        annotations.insert(DISABLE_XATTRS.into(), "true".into());
    }
    descriptor
}

/// Index of version 2 that an image's manifest names; text, as it may be no digest.
pub fn index_digest(image: &Manifest) -> Option<&str> {
    image.annotations.get(INDEX_DIGEST).map(String::as_str).filter(|digest| !digest.is_empty())
}

/// Layer that an entry of an index belongs to; text, as it may be no digest.
pub fn layer_digest(entry: &Descriptor) -> Option<&str> {
    entry.annotations.get(LAYER_DIGEST).map(String::as_str)
}

/// Span size that a zTOC was built with, as its entry says; releases before 0.12 did not.
pub fn span_size(entry: &Descriptor) -> Option<u64> {
    entry.annotations.get(SPAN_SIZE)?.parse().ok()
}

/// Image manifest that the entry of a SOCI index in an image index belongs to.
pub fn image_manifest_digest(entry: &Descriptor) -> Option<&str> {
    entry.annotations.get(IMAGE_MANIFEST_DIGEST).map(String::as_str)
}

/// Index of version 1 among an image's referrers: the first one.
pub fn first_v1_referrer(referrers: &Index) -> Option<&Descriptor> {
    let artifact_type = Version::V1.artifact_type();
    referrers.manifests.iter().find(|entry| entry.artifact_type == artifact_type)
}
