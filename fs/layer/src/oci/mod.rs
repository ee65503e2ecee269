//! OCI image documents: manifests, indexes, image configs and the descriptors between them.
//!
//! Reading is lenient, as registries hold every dialect: Docker's media types, `null` for empty
//! lists, fields of later specifications. Those unknown fields are kept, so that a document that is
//! converted loses nothing. Writing is canonical: the bytes that Go's `encoding/json` gives.

mod canonical;
mod config;
mod media;
mod platform;
#[cfg(test)]
mod tests;

pub use config::{ContainerConfig, ImageConfig};
pub use media::{Compression as LayerCompression, LayerType, media_type};
pub use platform::{Platform, PlatformError};

pub(crate) use canonical::Writer;

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::Digest;

/// Annotations, rising by key.
pub type Annotations = BTreeMap<String, String>;

/// Reference to content: what it is, its digest and its size.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Descriptor {
    /// Media type of the content.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Bytes of the content.
    pub size: u64,
    /// Other places to get it from.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub urls: Vec<String>,
    /// Annotations.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub annotations: Annotations,
    /// The content itself in base64.
    #[serde(default)]
    pub data: Option<String>,
    /// Machine that the content is for.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// Type of an artifact; empty for images.
    #[serde(rename = "artifactType", default, deserialize_with = "null_is_empty")]
    pub artifact_type: String,
    /// Fields that we don't know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Descriptor {
    /// Descriptor of `content`.
    pub fn of(media_type: &str, content: &[u8]) -> Self {
        Self::new(media_type, Digest::of(content), content.len() as u64)
    }

    /// Descriptor with nothing but its three mandatory fields.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: Annotations::new(),
            data: None,
            platform: None,
            artifact_type: String::new(),
            other: Map::new(),
        }
    }

    /// What kind of layer it is, by its media type.
    pub fn layer_type(&self) -> LayerType {
        LayerType::of(&self.media_type)
    }
}

/// Image manifest: a config and layers; also every artifact, such as a SOCI index.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Manifest {
    /// Always 2.
    #[serde(rename = "schemaVersion", default)]
    pub schema_version: u32,
    /// Media type of the manifest itself; old ones lack it.
    #[serde(rename = "mediaType", default, deserialize_with = "null_is_empty")]
    pub media_type: String,
    /// Type of an artifact; empty for images.
    #[serde(rename = "artifactType", default, deserialize_with = "null_is_empty")]
    pub artifact_type: String,
    /// Config.
    pub config: Descriptor,
    /// Layers, lowest first.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub layers: Vec<Descriptor>,
    /// Manifest that this one says something about.
    #[serde(default)]
    pub subject: Option<Descriptor>,
    /// Annotations.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub annotations: Annotations,
    /// Fields that we don't know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Image index: manifests for several platforms; also the answer of the referrers API.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Index {
    /// Always 2.
    #[serde(rename = "schemaVersion", default)]
    pub schema_version: u32,
    /// Media type of the index itself; old ones lack it.
    #[serde(rename = "mediaType", default, deserialize_with = "null_is_empty")]
    pub media_type: String,
    /// Type of an artifact; mostly empty.
    #[serde(rename = "artifactType", default, deserialize_with = "null_is_empty")]
    pub artifact_type: String,
    /// Manifests.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub manifests: Vec<Descriptor>,
    /// Manifest that this one says something about.
    #[serde(default)]
    pub subject: Option<Descriptor>,
    /// Annotations.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub annotations: Annotations,
    /// Fields that we don't know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// What a reference leads to.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "one for each image, taken apart at once")]
pub enum Document {
    /// Manifests for several platforms.
    Index(Index),
    /// One image or artifact.
    Manifest(Manifest),
}

/// Why bytes are not an image document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OciError {
    /// Not JSON, or fields of wrong types.
    #[error("{what} can't be read: {reason}")]
    Json {
        /// What was expected.
        what: &'static str,
        /// What the JSON reader says.
        reason: String,
    },
    /// Manifest and index at once, or neither.
    #[error("document is neither clearly a manifest nor clearly an index: media type {found:?}")]
    Ambiguous {
        /// Its media type.
        found: String,
    },
    /// A media type that stands for something else.
    #[error("{what} has media type {found:?}, expected {expected:?}")]
    MediaType {
        /// What was expected.
        what: &'static str,
        /// Media type that it must have.
        expected: &'static str,
        /// Media type that it has.
        found: String,
    },
}

impl Manifest {
    /// Read a manifest.
    pub fn parse(json: &[u8]) -> Result<Self, OciError> {
        parse("image manifest", json)
    }
}

impl Index {
    /// Read an index.
    pub fn parse(json: &[u8]) -> Result<Self, OciError> {
        parse("image index", json)
    }

    /// The image for `wanted`: the best match, in the index's order among equals.
    ///
    /// Attestations and other artifacts are never chosen. An index with a single entry needs no
    /// platform there.
    pub fn select(&self, wanted: &Platform) -> Option<&Descriptor> {
        let images = || self.manifests.iter().filter(|entry| entry.artifact_type.is_empty());
        let fit = |entry: &&Descriptor| {
            entry.platform.as_ref().and_then(|platform| wanted.preference(platform))
        };
        let best = images().filter(|entry| fit(entry).is_some()).min_by_key(fit);
        best.or_else(|| {
            let mut images = images();
            let only = images.next().filter(|entry| entry.platform.is_none());
            only.filter(|_| images.next().is_none())
        })
    }
}

impl Document {
    /// Read what a reference leads to; `media_type` as the server gives it, or empty.
    ///
    /// A document that could be read as both is refused: two readers must not see two images.
    pub fn parse(media_type: &str, json: &[u8]) -> Result<Self, OciError> {
        #[derive(Deserialize)]
        struct Probe {
            #[serde(rename = "mediaType", default, deserialize_with = "null_is_empty")]
            media_type: String,
            manifests: Option<Value>,
            layers: Option<Value>,
            config: Option<Value>,
        }
        let probe: Probe = parse("image document", json)?;
        let found = if probe.media_type.is_empty() { media_type } else { &probe.media_type };
        let looks_like_manifest = probe.layers.is_some() || probe.config.is_some();
        match (probe.manifests.is_some(), looks_like_manifest) {
            (true, false) if !media_type::is_manifest(found) => {
                Ok(Self::Index(Index::parse(json)?))
            }
            (false, true) if !media_type::is_index(found) => {
                Ok(Self::Manifest(Manifest::parse(json)?))
            }
            _ => Err(OciError::Ambiguous { found: found.into() }),
        }
    }
}

pub(crate) fn parse<T: DeserializeOwned>(what: &'static str, json: &[u8]) -> Result<T, OciError> {
    serde_json::from_slice(json).map_err(|error| OciError::Json { what, reason: error.to_string() })
}

/// Go writes `null` for empty lists and maps.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
