//! Images by name, wherever they are: a registry or a layout on disk.

mod name;
mod nearby;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use spanfs_layer::oci::{Descriptor, Document, Index, Manifest, OciError, Platform, media_type};
use spanfs_layer::{Digest, oci::ImageConfig};
use tokio::runtime::Handle;

use crate::blob::{Blob, Class};
use crate::content::Content;
use crate::hosts::HostsError;
use crate::layout::{Layout, LayoutError, LayoutWriter};
use crate::local::ReadPool;
use crate::registry::{RawManifest, Registry, RegistryError, Repository, Upload};
use crate::target::Locate;
pub use name::{ImageRef, ImageRefError};
pub use nearby::{Nearby, NearbyFound};

/// Configs are small, but history and labels can be long.
const CONFIG_LEN_MAX: u64 = 8 << 20;
/// Indexes within indexes.
const DEPTH_MAX: usize = 4;

/// Why an image can't be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// Registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Its configuration.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// Layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A document of the image.
    #[error("{what}: {source}")]
    Document {
        /// Which.
        what: String,
        /// Cause.
        #[source]
        source: OciError,
    },
    /// There is no image for the platform.
    #[error("{image} has no image for {wanted}; it has {available}")]
    NoPlatform {
        /// As named.
        image: String,
        /// What was asked for.
        wanted: Box<Platform>,
        /// What there is.
        available: String,
    },
    /// Sizes or counts that contradict each other.
    #[error("{what}: expected {expected}, found {found}")]
    Corrupt {
        /// Which document or blob.
        what: String,
        /// Promise.
        expected: String,
        /// Its counterpart.
        found: String,
    },
    /// It can't be written to.
    #[error("{0}: an archive can't be written to; use oci:DIR")]
    ReadOnly(String),
    /// The control plane's runtime.
    #[error("the control plane has ended")]
    Ended,
}

impl SourceError {
    /// What a caller can do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Registry(error) => error.class(),
            Self::Layout(error) => error.class(),
            Self::Document { .. } | Self::Corrupt { .. } => Class::Corrupt,
            Self::NoPlatform { .. } => Class::Gone,
            Self::Hosts(_) | Self::ReadOnly(_) => Class::Refused,
            Self::Ended => Class::Cancelled,
        }
    }
}

/// Makes a blob of a place where its bytes are: the engine's `open`.
pub type BlobOpener = Arc<dyn Fn(Digest, u64, Arc<dyn Locate>) -> Arc<dyn Blob> + Send + Sync>;

/// What sources are made of.
#[derive(Clone)]
pub struct SourceOptions {
    /// Client of the registries.
    pub registry: Registry,
    /// Opens a registry's blobs.
    pub opener: BlobOpener,
    /// Reads local blobs.
    pub pool: ReadPool,
    /// Where locators work.
    pub runtime: Handle,
}

/// Where one image is, with all that is needed to read it. Cheap to clone.
#[derive(Clone)]
pub struct Source {
    image: ImageRef,
    place: Place,
    nearby: Option<Nearby>,
}

#[derive(Clone)]
enum Place {
    Registry { repository: Repository, opener: BlobOpener, runtime: Handle },
    Layout(Layout),
}

/// One image, all its documents read and checked.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// Of its manifest.
    pub descriptor: Descriptor,
    /// Its manifest, exactly as it is.
    pub manifest_bytes: Bytes,
    /// Its manifest, read.
    pub manifest: Manifest,
    /// Its config, exactly as it is.
    pub config_bytes: Bytes,
    /// Its config, read.
    pub config: ImageConfig,
    /// The index that it was chosen from, as it is and read.
    pub index: Option<(RawManifest, Index)>,
}

/// One image of a platform, all but its config.
#[derive(Clone, Debug)]
pub struct ChosenImage {
    /// See [`ResolvedImage::descriptor`].
    pub descriptor: Descriptor,
    /// See [`ResolvedImage::manifest_bytes`].
    pub manifest_bytes: Bytes,
    /// See [`ResolvedImage::manifest`].
    pub manifest: Manifest,
    /// See [`ResolvedImage::index`].
    pub index: Option<(RawManifest, Index)>,
}

impl ChosenImage {
    /// The image with its config, which must fit its manifest.
    pub fn with_config(
        self,
        (config_bytes, config): (Bytes, ImageConfig),
        image: &ImageRef,
    ) -> Result<ResolvedImage, SourceError> {
        let Self { descriptor, manifest_bytes, manifest, index } = self;
        let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids().len());
        if layers != diff_ids {
            let what = format!("config {} of {image}", manifest.config.digest);
            let expected = format!("a diffID for each of {layers} layers");
            return Err(SourceError::Corrupt { what, expected, found: diff_ids.to_string() });
        }
        Ok(ResolvedImage { descriptor, manifest_bytes, manifest, config_bytes, config, index })
    }
}

impl ResolvedImage {
    /// Descriptors of its layers, the lowest first.
    pub fn layers(&self) -> &[Descriptor] {
        &self.manifest.layers
    }
}

impl Source {
    /// Find the place of an image. Blocks on the disk for a moment; asks no registry yet.
    pub fn open(image: &ImageRef, options: &SourceOptions) -> Result<Self, SourceError> {
        let place = match image {
            ImageRef::Registry(reference) => Place::Registry {
                repository: options.registry.repository(reference)?,
                opener: options.opener.clone(),
                runtime: options.runtime.clone(),
            },
            ImageRef::Directory { path, .. } => {
                Place::Layout(Layout::directory(path, &options.pool)?)
            }
            ImageRef::Archive { path, .. } => Place::Layout(Layout::archive(path, &options.pool)?),
        };
        Ok(Self { image: image.clone(), place, nearby: None })
    }

    /// The same, whose documents are looked for nearby before a registry is asked.
    pub fn near(self, nearby: Option<Nearby>) -> Self {
        Self { nearby, ..self }
    }

    /// As it was named.
    pub fn image(&self) -> &ImageRef {
        &self.image
    }

    /// What the name means: a manifest or an index.
    pub async fn named(&self) -> Result<RawManifest, SourceError> {
        match (&self.place, &self.image) {
            (Place::Registry { repository, .. }, ImageRef::Registry(reference)) => {
                let object = reference.object();
                match object.parse() {
                    Ok(digest) => self.manifest(&digest).await,
                    Err(_) => Ok(repository.manifest(&object).await?),
                }
            }
            (
                Place::Layout(layout),
                ImageRef::Directory { tag, .. } | ImageRef::Archive { tag, .. },
            ) => {
                let (layout, tag) = (layout.clone(), tag.clone());
                blocking(move || {
                    let descriptor = layout.find(tag.as_deref())?;
                    let mut raw = layout.manifest(&descriptor.digest)?;
                    if raw.media_type.is_empty() {
                        raw.media_type = descriptor.media_type;
                    }
                    Ok(raw)
                })
                .await
            }
            _ => unreachable!("place and name are made together"),
        }
    }

    /// A manifest or an index by its digest.
    pub async fn manifest(&self, digest: &Digest) -> Result<RawManifest, SourceError> {
        let digest = *digest;
        match &self.place {
            Place::Registry { repository, .. } => {
                match nearby::find(self.nearby.as_ref(), &digest).await {
                    Some(bytes) => Ok(RawManifest::named(bytes, digest)),
                    None => Ok(repository.manifest(&digest.to_string()).await?),
                }
            }
            Place::Layout(layout) => {
                let layout = layout.clone();
                blocking(move || Ok(layout.manifest(&digest)?)).await
            }
        }
    }

    /// The image for a platform, with its manifest and config.
    pub async fn resolve(&self, platform: &Platform) -> Result<ResolvedImage, SourceError> {
        let chosen = self.choose(platform).await?;
        let config = self.config(&chosen.manifest).await?;
        chosen.with_config(config, &self.image)
    }

    /// The manifest for a platform; its config is a matter of another round trip, [`Self::config`].
    pub async fn choose(&self, platform: &Platform) -> Result<ChosenImage, SourceError> {
        let mut raw = self.named().await?;
        let mut index = None;
        for _ in 0..DEPTH_MAX {
            let what = format!("manifest {} of {}", raw.digest, self.image);
            let document = Document::parse(&raw.media_type, &raw.bytes)
                .map_err(|source| SourceError::Document { what, source })?;
            match document {
                Document::Manifest(manifest) => {
                    let media_type = match raw.media_type.as_str() {
                        "" => media_type::MANIFEST,
                        told => told,
                    };
                    let descriptor =
                        Descriptor::new(media_type, raw.digest, raw.bytes.len() as u64);
                    let manifest_bytes = raw.bytes;
                    return Ok(ChosenImage { descriptor, manifest_bytes, manifest, index });
                }
                Document::Index(found) => {
                    let chosen = found.select(platform).cloned();
                    let chosen = chosen.ok_or_else(|| self.no_platform(platform, &found))?;
                    let mut next = self.manifest(&chosen.digest).await?;
                    if next.media_type.is_empty() {
                        next.media_type = chosen.media_type;
                    }
                    index = Some((std::mem::replace(&mut raw, next), found));
                }
            }
        }
        Err(SourceError::Corrupt {
            what: self.image.to_string(),
            expected: format!("at most {DEPTH_MAX} indexes within each other"),
            found: "more".to_owned(),
        })
    }

    /// The config that a manifest names, as it is and read.
    pub async fn config(&self, manifest: &Manifest) -> Result<(Bytes, ImageConfig), SourceError> {
        let bytes = self.blob_bytes(&manifest.config, CONFIG_LEN_MAX).await?;
        let what = || format!("config {} of {}", manifest.config.digest, self.image);
        let config = ImageConfig::parse(&bytes)
            .map_err(|source| SourceError::Document { what: what(), source })?;
        Ok((bytes, config))
    }

    fn no_platform(&self, wanted: &Platform, index: &Index) -> SourceError {
        let known: Vec<String> = index
            .manifests
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .filter(|platform| !platform.is_unknown())
            .map(ToString::to_string)
            .collect();
        let available = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        SourceError::NoPlatform {
            image: self.image.to_string(),
            wanted: Box::new(wanted.clone()),
            available,
        }
    }

    /// A small blob, whole, of exactly the descriptor's size and at most `len_max` bytes.
    pub async fn blob_bytes(
        &self,
        descriptor: &Descriptor,
        len_max: u64,
    ) -> Result<Bytes, SourceError> {
        let (digest, size) = (descriptor.digest, descriptor.size);
        let corrupt = |expected: String, found: String| SourceError::Corrupt {
            what: format!("blob {digest} of {}", self.image),
            expected,
            found,
        };
        if size > len_max {
            return Err(corrupt(format!("at most {len_max} bytes"), format!("{size} bytes")));
        }
        let bytes = match &self.place {
            Place::Registry { repository, .. } => {
                match nearby::find(self.nearby.as_ref(), &digest).await {
                    Some(bytes) => bytes,
                    None => repository.blob_bytes(&digest, size).await?,
                }
            }
            Place::Layout(layout) => {
                let layout = layout.clone();
                blocking(move || Ok(layout.blob_bytes(&digest, size)?)).await?
            }
        };
        match bytes.len() as u64 == size {
            true => Ok(bytes),
            false => Err(corrupt(format!("{size} bytes"), format!("{} bytes", bytes.len()))),
        }
    }

    /// A blob of any size, by ranges. Asks no registry yet.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<Arc<dyn Blob>, SourceError> {
        let (digest, size) = (descriptor.digest, descriptor.size);
        match &self.place {
            Place::Registry { repository, opener, runtime } => {
                Ok(opener(digest, size, repository.locate(&digest, runtime)))
            }
            Place::Layout(layout) => Ok(layout.blob(&digest, size)?),
        }
    }

    /// Descriptors of the manifests whose subject is `digest`.
    pub async fn referrers(
        &self,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, SourceError> {
        match &self.place {
            Place::Registry { repository, .. } => {
                Ok(repository.referrers(digest, artifact_type).await?)
            }
            Place::Layout(layout) => {
                let (layout, digest) = (layout.clone(), *digest);
                let artifact_type = artifact_type.map(str::to_owned);
                blocking(move || Ok(layout.referrers(&digest, artifact_type.as_deref())?)).await
            }
        }
    }

    /// Add a blob where the image is.
    pub async fn push_blob(&self, digest: &Digest, content: &Content) -> Result<(), SourceError> {
        match &self.place {
            Place::Registry { repository, .. } => {
                let upload = Upload::suiting(content.len());
                Ok(repository.push_blob(digest, content, upload).await?)
            }
            Place::Layout(_) => {
                let (path, digest, content) = (self.writable()?, *digest, content.clone());
                blocking(
                    move || Ok(LayoutWriter::open(&path)?.put_blob(&digest, content.reader())?),
                )
                .await
            }
        }
    }

    /// Add a manifest or an index where the image is: under a tag, or by its digest alone.
    pub async fn push_manifest(
        &self,
        tag: Option<&str>,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Descriptor, SourceError> {
        let descriptor = Descriptor::of(media_type, &bytes);
        match &self.place {
            Place::Registry { repository, .. } => {
                let object = tag.map_or_else(|| descriptor.digest.to_string(), str::to_owned);
                repository.push_manifest(&object, media_type, bytes).await?;
            }
            Place::Layout(_) => {
                let (path, entry) = (self.writable()?, descriptor.clone());
                let tag = tag.map(str::to_owned);
                blocking(move || {
                    let writer = LayoutWriter::open(&path)?;
                    writer.put_bytes(&bytes)?;
                    Ok(writer.list(&entry, tag.as_deref())?)
                })
                .await?;
            }
        }
        Ok(descriptor)
    }

    fn writable(&self) -> Result<PathBuf, SourceError> {
        match &self.image {
            ImageRef::Directory { path, .. } => Ok(path.clone()),
            _ => Err(SourceError::ReadOnly(self.image.to_string())),
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(SourceError::Ended))
}

#[cfg(test)]
mod tests;
