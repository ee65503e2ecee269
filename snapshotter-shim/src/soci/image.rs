//! The documents of an image, wherever its blobs are.

use spanfs_layer::oci::{
    Descriptor, Document, ImageConfig, Index, Manifest, OciError, Platform, media_type,
};

use super::SociError;
use super::platforms::Platforms;
use super::store::{DOCUMENT_LEN_MAX, Store};

/// An image by its root: an index, or a single manifest.
#[derive(Clone, Debug)]
pub struct Image {
    /// What its name stands for.
    pub target: Descriptor,
    /// The index, where it is one.
    pub index: Option<Index>,
}

/// The image of one platform.
#[derive(Clone, Debug)]
pub struct PlatformImage {
    /// Of its manifest.
    pub descriptor: Descriptor,
    /// Its platform.
    pub platform: Platform,
    /// Its manifest.
    pub manifest: Manifest,
    /// Bytes of its manifest.
    pub bytes: Vec<u8>,
}

impl Image {
    /// Read the root of an image.
    pub async fn read(store: &Store, target: &Descriptor) -> Result<Self, SociError> {
        let bytes = store.bytes(&target.digest, DOCUMENT_LEN_MAX).await?;
        let read = |source: OciError| SociError::Document {
            what: format!("reading {}", target.digest),
            source,
        };
        let index = match Document::parse(&target.media_type, &bytes).map_err(read)? {
            Document::Index(index) => Some(index),
            Document::Manifest(_) => None,
        };
        Ok(Self { target: target.clone(), index })
    }

    /// The images that `wanted` asks for. Without a wish: of an index the one for this machine, and a
    /// single manifest whatever it is for.
    pub async fn select(
        &self,
        store: &Store,
        wanted: &Platforms,
    ) -> Result<Vec<PlatformImage>, SociError> {
        let entries = match &self.index {
            None => {
                let only = self.read_manifest(store, &self.target, None).await?;
                return match wanted {
                    Platforms::These(these) => {
                        match these.iter().find(|it| !it.matches(&only.platform)) {
                            Some(missing) => Err(self.no_platform(missing)),
                            None => Ok(vec![only]),
                        }
                    }
                    _ => Ok(vec![only]),
                };
            }
            Some(index) => match wanted {
                Platforms::All => images(index).collect(),
                Platforms::Default => {
                    let host = Platform::host();
                    vec![index.select(&host).ok_or_else(|| self.no_platform(&host))?]
                }
                Platforms::These(these) => {
                    let find = |wanted: &Platform| {
                        let fits = |it: &&Descriptor| {
                            it.platform.as_ref().is_some_and(|platform| platform.matches(wanted))
                        };
                        images(index).find(fits).ok_or_else(|| self.no_platform(wanted))
                    };
                    these.iter().map(find).collect::<Result<Vec<_>, _>>()?
                }
            },
        };
        let mut found: Vec<PlatformImage> = Vec::new();
        for entry in entries {
            if found.iter().all(|it| it.descriptor.digest != entry.digest) {
                found.push(self.read_manifest(store, entry, entry.platform.clone()).await?);
            }
        }
        Ok(found)
    }

    async fn read_manifest(
        &self,
        store: &Store,
        descriptor: &Descriptor,
        platform: Option<Platform>,
    ) -> Result<PlatformImage, SociError> {
        let failed = |what: String| move |source| SociError::Document { what, source };
        let digest = descriptor.digest;
        let bytes = store.bytes(&digest, DOCUMENT_LEN_MAX).await?;
        let manifest =
            Manifest::parse(&bytes).map_err(failed(format!("reading manifest {digest}")))?;
        let platform = match platform {
            Some(platform) => platform,
            None => {
                let config = manifest.config.digest;
                let json = store.bytes(&config, DOCUMENT_LEN_MAX).await?;
                let read = ImageConfig::parse(&json);
                read.map_err(failed(format!("reading image config {config}")))?.platform
            }
        };
        Ok(PlatformImage { descriptor: descriptor.clone(), platform, manifest, bytes })
    }

    fn no_platform(&self, wanted: &Platform) -> SociError {
        SociError::said(format!(
            "image manifest for platform {wanted}: no match for platform in manifest {}: not found",
            self.target.digest
        ))
    }
}

/// Entries of an index that are images: neither attestations nor SOCI indexes.
fn images(index: &Index) -> impl Iterator<Item = &Descriptor> {
    index.manifests.iter().filter(|entry| {
        let known = entry.platform.as_ref().is_some_and(|platform| !platform.is_unknown());
        let is_manifest = media_type::is_manifest(&entry.media_type);
        known && is_manifest && entry.artifact_type.is_empty()
    })
}
