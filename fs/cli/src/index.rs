//! zTOCs of an image's layers, and the SOCI index that ties them to it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use spanfs_cache::build::{BuildError, BuildOptions, LayerBuilder, Toc};
use spanfs_fetch::{Blob, Class, Content, FetchError, ImageRef, Priority, Source as Place};
use spanfs_layer::Digest;
use spanfs_layer::oci::{Descriptor, Index, media_type};
use spanfs_layer::soci::{self, IndexParts, Indexed, SociIndex, ZtocEntry, ZtocRule};

use crate::image::{Image, ImageError, Images, ReadError, read_whole};
use crate::side_by_side::side_by_side;

/// Name that our indexes give as their builder.
const BUILD_TOOL: &str = concat!("spanfs ", env!("CARGO_PKG_VERSION"));

/// How layers are indexed.
#[derive(Clone, Debug)]
pub struct IndexOptions {
    /// Uncompressed bytes of a span.
    pub span_size: u64,
    /// Smaller layers get no zTOC.
    pub layer_bytes_min: u64,
    /// Layers worked on side by side, at least 1.
    pub threads: usize,
}

/// A layer to be indexed.
#[derive(Clone)]
pub struct Source {
    /// As its manifest gives it.
    pub descriptor: Descriptor,
    /// Digest that its tar must have.
    pub diff_id: Option<Digest>,
    /// Its bytes.
    pub blob: Arc<dyn Blob>,
}

/// What became of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It can be had span by span.
    Built(BuiltZtoc),
    /// It stays without zTOC, for this reason.
    Skipped(String),
}

/// A zTOC that was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltZtoc {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// Restart points.
    pub span_count: usize,
    /// Entries of the tar.
    pub entry_count: usize,
}

/// Why an image can't be indexed.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// A layer could not be had.
    #[error("reading layer {layer}")]
    Fetch {
        /// Layer.
        layer: Digest,
        /// What the source said.
        #[source]
        source: FetchError,
    },
    /// A layer that is no layer.
    #[error("indexing layer {layer}")]
    Build {
        /// Layer.
        layer: Digest,
        /// What is wrong with it.
        #[source]
        source: BuildError,
    },
    /// A layer or its tar with another digest than promised.
    #[error("layer {layer} is corrupt: {what} is {found}, expected {expected}")]
    Digest {
        /// Layer.
        layer: Digest,
        /// `digest of the blob` or `diffID`.
        what: &'static str,
        /// As read.
        found: Digest,
        /// As promised.
        expected: Digest,
    },
    /// The manifest lists something that is no layer.
    #[error("{digest} of type {media_type:?} is no layer")]
    NotLayer {
        /// What is listed.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// Every layer was skipped.
    #[error(transparent)]
    NoZtocs(#[from] soci::NoZtocs),
    /// The image index could not be converted.
    #[error(transparent)]
    Convert(#[from] soci::ConvertError),
    /// Nobody wants it any more.
    #[error("stopped")]
    Stopped,
}

impl IndexError {
    /// What a caller can do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Fetch { source, .. } => source.class(),
            Self::Build { .. } | Self::Digest { .. } => Class::Corrupt,
            Self::Stopped => Class::Cancelled,
            _ => Class::Refused,
        }
    }
}

/// Build the zTOCs of `layers`, several side by side; outcomes in the order of the layers.
/// `progress` gets the number of a layer and how many of its bytes were read.
pub fn build(
    layers: &[Source],
    options: &IndexOptions,
    stop: &AtomicBool,
    progress: &(dyn Fn(usize, u64) + Sync),
) -> Result<Vec<Outcome>, IndexError> {
    let outcomes = side_by_side(layers, options.threads, |number, layer| {
        build_one(layer, options, stop, &|done| progress(number, done))
    });
    outcomes.into_iter().collect()
}

fn build_one(
    source: &Source,
    options: &IndexOptions,
    stop: &AtomicBool,
    progress: &dyn Fn(u64),
) -> Result<Outcome, IndexError> {
    let descriptor = &source.descriptor;
    let layer = descriptor.digest;
    match ZtocRule::of(descriptor, options.layer_bytes_min) {
        ZtocRule::Build(_) => {}
        ZtocRule::Skip(reason) => return Ok(Outcome::Skipped(reason)),
        ZtocRule::Ignore => return Ok(Outcome::Skipped("no layer".to_owned())),
        ZtocRule::NotLayer => {
            let media_type = descriptor.media_type.clone();
            return Err(IndexError::NotLayer { digest: layer, media_type });
        }
    }
    let failed = |source| IndexError::Build { layer, source };
    let build = BuildOptions {
        span_size: options.span_size,
        build_tool: BUILD_TOOL.into(),
        ..BuildOptions::default()
    };
    let mut builder = LayerBuilder::new(build, |_, _: &[u8]| Ok(())).map_err(failed)?;
    let mut done = 0;
    let read = read_whole(&*source.blob, Priority::OnDemand, stop, |bytes| {
        done += bytes.len() as u64;
        progress(done);
        builder.feed(bytes)
    });
    read.map_err(|error| match error {
        ReadError::Fetch(source) => IndexError::Fetch { layer, source },
        ReadError::Consume(source) => failed(source),
        ReadError::Stopped => IndexError::Stopped,
    })?;
    let built = builder.finish().map_err(failed)?;
    check(layer, "digest of the blob", built.blob_digest, Some(layer))?;
    check(layer, "diffID", built.diff_id, source.diff_id)?;
    Ok(match built.toc {
        Toc::Lazy(ztoc) => {
            let bytes = ztoc.encode();
            Outcome::Built(BuiltZtoc {
                digest: Digest::of(&bytes),
                bytes,
                span_count: ztoc.span_digests.len(),
                entry_count: ztoc.records.len(),
            })
        }
        Toc::Whole { reason, .. } => Outcome::Skipped(reason.to_string()),
    })
}

fn check(
    layer: Digest,
    what: &'static str,
    found: Digest,
    expected: Option<Digest>,
) -> Result<(), IndexError> {
    match expected {
        // A digest of another algorithm can't be compared with ours.
        Some(expected) if expected.algorithm() == found.algorithm() && expected != found => {
            Err(IndexError::Digest { layer, what, found, expected })
        }
        _ => Ok(()),
    }
}

/// What indexing an image adds to its repository.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// Blobs: zTOCs and the index's config.
    pub blobs: Vec<(Digest, Vec<u8>)>,
    /// Manifests that others name by digest, in the order to push them.
    pub manifests: Vec<(Descriptor, Vec<u8>)>,
    /// What a tag is to name, for version 2: the converted image.
    pub root: Option<(Descriptor, Vec<u8>)>,
    /// The SOCI index, one of `manifests`.
    pub index: Descriptor,
}

/// Index of version 1: refers to the image, which stays as it is.
pub fn version_1(
    image: &Image,
    outcomes: &[Outcome],
    options: &IndexOptions,
) -> Result<Artifacts, IndexError> {
    let (entries, blobs) = entries(image, outcomes, options);
    let parts = IndexParts { ztocs: &entries, prefetch: &[], build_tool: BUILD_TOOL };
    let bytes = SociIndex::v1(&parts, &image.documents.descriptor)?.to_canonical();
    let index = artifact(&bytes, soci::Version::V1);
    Ok(Artifacts { blobs, manifests: vec![(index.clone(), bytes)], root: None, index })
}

/// Index of version 2: an image index whose image names its SOCI index.
pub fn version_2(
    image: &Image,
    outcomes: &[Outcome],
    options: &IndexOptions,
) -> Result<Artifacts, IndexError> {
    let (entries, blobs) = entries(image, outcomes, options);
    let parts = IndexParts { ztocs: &entries, prefetch: &[], build_tool: BUILD_TOOL };
    let bytes = SociIndex::v2(&parts)?.to_canonical();
    let index = artifact(&bytes, soci::Version::V2);
    let platform = image.documents.config.platform.clone();
    let documents = &image.documents;
    let around: Index = match &documents.index {
        Some((_, index)) => index.clone(),
        None => soci::index_of_one(&documents.descriptor, platform.clone()),
    };
    let indexed = Indexed {
        image: documents.descriptor.digest,
        manifest: &documents.manifest_bytes,
        platform,
        soci_index: &bytes,
    };
    let converted = soci::convert(&around, &[indexed])?;
    let mut manifests = vec![(index.clone(), bytes.clone())];
    let images = converted.manifests.into_iter();
    manifests.extend(images.map(|bytes| (Descriptor::of(media_type::MANIFEST, &bytes), bytes)));
    let root = Descriptor::of(media_type::INDEX, &converted.index);
    Ok(Artifacts { blobs, manifests, root: Some((root, converted.index)), index })
}

fn artifact(bytes: &[u8], version: soci::Version) -> Descriptor {
    let mut descriptor = Descriptor::of(media_type::MANIFEST, bytes);
    descriptor.artifact_type = version.artifact_type().to_owned();
    descriptor
}

fn entries<'a>(
    image: &'a Image,
    outcomes: &[Outcome],
    options: &IndexOptions,
) -> (Vec<ZtocEntry<'a>>, Vec<(Digest, Vec<u8>)>) {
    let mut entries = Vec::new();
    let mut blobs = vec![(Digest::of(soci::CONFIG), soci::CONFIG.to_vec())];
    for (layer, outcome) in image.documents.layers().iter().zip(outcomes) {
        if let Outcome::Built(ztoc) = outcome {
            entries.push(ZtocEntry {
                digest: ztoc.digest,
                size: ztoc.bytes.len() as u64,
                layer,
                span_size: options.span_size,
                disable_xattrs: false,
            });
            blobs.push((ztoc.digest, ztoc.bytes.clone()));
        }
    }
    (entries, blobs)
}

/// Write what indexing gave to `target`, with the image itself where that is another place.
pub fn publish(
    images: &Images,
    image: &Image,
    artifacts: &Artifacts,
    target: &Place,
) -> Result<(), ImageError> {
    if store_of(target.image()) != store_of(image.source.image()) {
        copy_blobs(images, image, target)?;
    }
    let push = async {
        for (digest, bytes) in &artifacts.blobs {
            target.push_blob(digest, &Content::Bytes(bytes.clone().into())).await?;
        }
        for (descriptor, bytes) in &artifacts.manifests {
            let bytes = bytes.clone().into();
            target.push_manifest(None, &descriptor.media_type, bytes).await?;
        }
        if let Some((root, bytes)) = &artifacts.root {
            let tag = tag_of(target.image());
            target.push_manifest(tag.as_deref(), &root.media_type, bytes.clone().into()).await?;
        }
        Ok(())
    };
    images.runtime().block_on(push)
}

/// What keeps an image's blobs: they are there already for another image of the same store.
fn store_of(name: &ImageRef) -> String {
    match name {
        ImageRef::Registry(reference) => {
            format!("{}/{}", reference.host(), reference.repository())
        }
        ImageRef::Directory { path, .. } | ImageRef::Archive { path, .. } => {
            format!("{}:", path.display())
        }
    }
}

fn tag_of(name: &ImageRef) -> Option<String> {
    match name {
        ImageRef::Registry(reference) => reference.tag().map(str::to_owned),
        ImageRef::Directory { tag, .. } | ImageRef::Archive { tag, .. } => tag.clone(),
    }
}

/// Config and layers, one after the other through a file without name.
fn copy_blobs(images: &Images, image: &Image, target: &Place) -> Result<(), ImageError> {
    let documents = &image.documents;
    let disk = |source| ImageError::Disk { path: std::env::temp_dir(), source };
    for descriptor in std::iter::once(&documents.manifest.config).chain(documents.layers()) {
        let blob = image.source.blob(descriptor)?;
        let mut file = tempfile::tempfile().map_err(disk)?;
        let stop = AtomicBool::new(false);
        let read = read_whole(&*blob, Priority::OnDemand, &stop, |bytes| {
            std::io::Write::write_all(&mut file, bytes)
        });
        read.map_err(|error| match error {
            ReadError::Fetch(source) => ImageError::Fetch { layer: descriptor.digest, source },
            ReadError::Consume(error) => disk(error),
            ReadError::Stopped => ImageError::Stopped,
        })?;
        let content = Content::File { file: Arc::new(file), offset: 0, len: descriptor.size };
        images.runtime().block_on(target.push_blob(&descriptor.digest, &content))?;
    }
    Ok(())
}
