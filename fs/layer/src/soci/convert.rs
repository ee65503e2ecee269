//! Conversion: an image index in which every image names its SOCI index of version 2.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde_json::Map;

use super::{IMAGE_MANIFEST_DIGEST, INDEX_DIGEST, Version};
use crate::Digest;
use crate::oci::{Annotations, Descriptor, Index, Manifest, OciError, Platform, media_type};

/// An image that was indexed.
#[derive(Clone, Debug)]
pub struct Indexed<'a> {
    /// Digest of its manifest, as the source index lists it.
    pub image: Digest,
    /// Bytes of its manifest.
    pub manifest: &'a [u8],
    /// Its platform.
    pub platform: Platform,
    /// Canonical bytes of its SOCI index of version 2.
    pub soci_index: &'a [u8],
}

/// A converted image: what is new in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// Bytes of the new image index.
    pub index: Vec<u8>,
    /// Bytes of the images' new manifests, in the order of [`Indexed`].
    pub manifests: Vec<Vec<u8>>,
}

/// Why an image can't be converted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// An image's manifest can't be read.
    #[error("converting the image with manifest {image}")]
    Manifest {
        /// Digest of the manifest.
        image: Digest,
        /// Why.
        source: OciError,
    },
    /// An image that the index does not list.
    #[error("image index does not list the manifest {image}")]
    NotListed {
        /// Digest of the manifest.
        image: Digest,
    },
}

/// An index around a single image, whose platform its config tells.
pub fn index_of_one(image: &Descriptor, platform: Platform) -> Index {
    let mut entry = Descriptor::new(&image.media_type, image.digest, image.size);
    entry.platform = Some(platform);
    Index {
        schema_version: 2,
        media_type: media_type::INDEX.into(),
        artifact_type: String::new(),
        manifests: Vec::from([entry]),
        subject: None,
        annotations: Annotations::new(),
        other: Map::new(),
    }
}

/// Convert an image index. Converting the result again with the same SOCI indexes gives the same.
///
/// Only images that were indexed are rewritten. All else is kept as it is: other platforms'
/// images, attestations, and SOCI indexes of platforms that were not indexed now; peers rewrite
/// these as if they were images, which breaks what refers to them.
pub fn convert(source: &Index, indexed: &[Indexed<'_>]) -> Result<Converted, ConvertError> {
    let mut index = source.clone();
    index.media_type = media_type::INDEX.into();
    let mut manifests = Vec::with_capacity(indexed.len());
    let mut added = Vec::with_capacity(indexed.len());
    for image in indexed {
        let soci_digest = Digest::of(image.soci_index);
        let (manifest, annotations) = rewrite(image, &soci_digest)?;
        let digest = Digest::of(&manifest);
        let is_image =
            |entry: &&mut Descriptor| entry.digest == image.image && !is_soci_index(entry);
        let mut listed = index.manifests.iter_mut().filter(is_image).peekable();
        if listed.peek().is_none() {
            return Err(ConvertError::NotListed { image: image.image });
        }
        for entry in listed {
            entry.media_type = media_type::MANIFEST.into();
            entry.digest = digest;
            entry.size = manifest.len() as u64;
            entry.annotations.clone_from(&annotations);
        }
        manifests.push(manifest);
        added.push(soci_descriptor(image, &digest));
    }
    for entry in added {
        place(&mut index.manifests, entry);
    }
    Ok(Converted { index: index.to_canonical(), manifests })
}

fn rewrite(
    image: &Indexed<'_>,
    soci_digest: &Digest,
) -> Result<(Vec<u8>, Annotations), ConvertError> {
    let failed = |source| ConvertError::Manifest { image: image.image, source };
    let mut manifest = Manifest::parse(image.manifest).map_err(failed)?;
    manifest.media_type = media_type::MANIFEST.into();
    manifest.config.media_type = media_type::CONFIG.into();
    manifest.annotations.insert(INDEX_DIGEST.into(), soci_digest.to_string());
    Ok((manifest.to_canonical(), manifest.annotations))
}

fn soci_descriptor(image: &Indexed<'_>, manifest: &Digest) -> Descriptor {
    let mut entry = Descriptor::of(media_type::MANIFEST, image.soci_index);
    entry.artifact_type = Version::V2.artifact_type().into();
    entry.platform = Some(image.platform.clone());
    entry.annotations.insert(IMAGE_MANIFEST_DIGEST.into(), manifest.to_string());
    entry
}

/// Put a SOCI index where the one for its platform stands, else last.
fn place(manifests: &mut Vec<Descriptor>, new: Descriptor) {
    let platform = |entry: &Descriptor| entry.platform.clone().unwrap_or_default();
    let wanted = platform(&new);
    let old =
        manifests.iter_mut().find(|entry| is_soci_index(entry) && platform(entry).matches(&wanted));
    match old {
        Some(old) => *old = new,
        None => manifests.push(new),
    }
}

fn is_soci_index(entry: &Descriptor) -> bool {
    entry.artifact_type == Version::V2.artifact_type()
}
