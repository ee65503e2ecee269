//! Finding the SOCI index of an image.
//!
//! Version 2 is named by the image's own manifest; version 1 refers to it, and is found through the
//! referrers API or, where a registry has none, under the fall-back tag.

use spanfs_fetch::Source;
use spanfs_layer::Digest;
use spanfs_layer::oci::Manifest;
use spanfs_layer::soci::{SociIndex, Version, index_digest};

use super::{Image, ImageError, Images};

/// What was found about the image's SOCI index.
#[derive(Clone, Debug)]
pub enum Discovery {
    /// An index.
    Found {
        /// Its digest.
        digest: Digest,
        /// The index.
        index: Box<SociIndex>,
        /// By what it was found, for people: `digest`, `annotation` or `referrers`.
        by: &'static str,
    },
    /// None, and why. The image is served all the same, whole layer by whole layer.
    None {
        /// For people.
        reason: String,
    },
}

impl Discovery {
    /// The index, if there is one.
    pub fn index(&self) -> Option<&SociIndex> {
        match self {
            Self::Found { index, .. } => Some(index),
            Self::None { .. } => None,
        }
    }
}

/// Where an image's SOCI index is looked for, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    /// An index that somebody named: it, and no other.
    pub digest: Option<Digest>,
    /// In the image's own manifest.
    pub annotation: bool,
    /// Among what refers to the image.
    pub referrers: bool,
}

impl Default for Search {
    /// Everywhere.
    fn default() -> Self {
        Self { digest: None, annotation: true, referrers: true }
    }
}

impl Images {
    /// Look for the image's SOCI index. A broken one is as good as none: the reason tells.
    pub fn discover(&self, image: &Image) -> Discovery {
        self.discover_by(image, &Search::default())
    }

    /// The same, looking only there.
    pub fn discover_by(&self, image: &Image, search: &Search) -> Discovery {
        let documents = &image.documents;
        let (manifest, digest) = (&documents.manifest, &documents.descriptor.digest);
        self.runtime.block_on(discover(&image.source, manifest, digest, search))
    }
}

/// Look for the SOCI index of an image by its manifest of that digest.
pub(super) async fn discover(
    source: &Source,
    manifest: &Manifest,
    digest: &Digest,
    search: &Search,
) -> Discovery {
    let found = find(source, manifest, digest, search).await;
    found.unwrap_or_else(|error| {
        // Slower than it could be, and nobody would know why.
        tracing::warn!(%error, "the SOCI index can't be used, so layers are fetched whole");
        Discovery::None { reason: format!("the SOCI index can't be used: {error}") }
    })
}

async fn find(
    source: &Source,
    manifest: &Manifest,
    digest: &Digest,
    search: &Search,
) -> Result<Discovery, ImageError> {
    if let Some(digest) = search.digest {
        return read(source, digest, "digest").await;
    }
    if let Some(text) = index_digest(manifest).filter(|_| search.annotation) {
        let digest = text.parse().map_err(|error| {
            ImageError::Corrupt(format!("the manifest names the SOCI index {text:?}: {error}"))
        })?;
        return read(source, digest, "annotation").await;
    }
    if !search.referrers {
        return Ok(Discovery::None { reason: "the image names no index".to_owned() });
    }
    let artifact_type = Version::V1.artifact_type();
    let referrers = source.referrers(digest, Some(artifact_type)).await?;
    match referrers.first() {
        Some(found) => read(source, found.digest, "referrers").await,
        None => Ok(Discovery::None { reason: "nobody has indexed this image".to_owned() }),
    }
}

async fn read(source: &Source, digest: Digest, by: &'static str) -> Result<Discovery, ImageError> {
    let raw = source.manifest(&digest).await?;
    let index = SociIndex::parse(&raw.bytes)
        .map_err(|error| ImageError::Corrupt(format!("SOCI index {digest}: {error}")))?;
    Ok(Discovery::Found { digest, index: Box::new(index), by })
}
