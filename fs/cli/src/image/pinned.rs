//! An image as an earlier process found it: what its name means may have changed since, and its
//! registry may be gone, but its mount is to be gone on with.

use std::str;

use serde::{Deserialize, Serialize};
use spanfs_fetch::{ImageRef, ResolvedImage};
use spanfs_layer::Digest;
use spanfs_layer::oci::{Descriptor, ImageConfig, Manifest};
use spanfs_layer::soci::SociIndex;

use super::early::Early;
use super::{Discovery, Image, ImageError, Images};

/// Older ones are read as well; a newer one is refused.
const FORMAT: u32 = 1;

/// Documents of an image, as they are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pinned {
    format: u32,
    image: String,
    media_type: String,
    digest: Digest,
    manifest: String,
    config: String,
    soci_index: Option<(Digest, String)>,
}

impl Pinned {
    /// Of an image called `name`; none if a document is no text.
    pub fn of(name: &str, image: &Image, discovery: &Discovery) -> Option<Self> {
        let documents = &image.documents;
        let text = |bytes: &[u8]| str::from_utf8(bytes).ok().map(str::to_owned);
        let soci_index = match discovery {
            Discovery::Found { digest, index, .. } => Some((*digest, text(&index.to_canonical())?)),
            Discovery::None { .. } => None,
        };
        Some(Self {
            format: FORMAT,
            image: name.to_owned(),
            media_type: documents.descriptor.media_type.clone(),
            digest: documents.descriptor.digest,
            manifest: text(&documents.manifest_bytes)?,
            config: text(&documents.config_bytes)?,
            soci_index,
        })
    }

    /// The image again, without asking anybody.
    pub fn open(&self, images: &Images) -> Result<(Image, Discovery), ImageError> {
        let broken = |what: &str, error: &dyn std::fmt::Display| {
            ImageError::Corrupt(format!("what is kept of the image's {what}: {error}"))
        };
        if self.format > FORMAT {
            let reason = format!("format {}, this version reads {FORMAT}", self.format);
            return Err(broken("documents", &reason));
        }
        let name: ImageRef = self.image.parse().map_err(|error| broken("name", &error))?;
        let manifest = Manifest::parse(self.manifest.as_bytes());
        let config = ImageConfig::parse(self.config.as_bytes());
        let documents = ResolvedImage {
            descriptor: Descriptor::new(&self.media_type, self.digest, self.manifest.len() as u64),
            manifest: manifest.map_err(|error| broken("manifest", &error))?,
            manifest_bytes: self.manifest.clone().into_bytes().into(),
            config: config.map_err(|error| broken("config", &error))?,
            config_bytes: self.config.clone().into_bytes().into(),
            index: None,
        };
        let discovery = match &self.soci_index {
            None => Discovery::None { reason: "there was none".to_owned() },
            Some((digest, json)) => {
                let index = SociIndex::parse(json.as_bytes());
                let index = Box::new(index.map_err(|error| broken("SOCI index", &error))?);
                Discovery::Found { digest: *digest, index, by: "an earlier process" }
            }
        };
        let source = images.source(&name)?;
        Ok((Image { source, documents, early: Early::default() }, discovery))
    }
}
