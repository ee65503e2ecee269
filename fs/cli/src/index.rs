//! zTOCs of an image's layers, and the SOCI index that ties them to it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use spanfs_cache::build::{BuildError, BuildOptions, LayerBuilder, Toc};
use spanfs_fetch::{Blob, Class, Content, FetchError, ImageRef, Priority, Source as Place};
use spanfs_layer::Digest;
use spanfs_layer::oci::{Descriptor, Index, Manifest, media_type};
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

/// One image of a platform, its layers read.
pub struct IndexedImage {
    /// The image.
    pub image: Image,
    /// What became of its layers, the lowest first.
    pub outcomes: Vec<Outcome>,
}

/// What indexing images of one name adds to their repository.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// Blobs: zTOCs and the indexes' config.
    pub blobs: Vec<(Digest, Vec<u8>)>,
    /// Manifests that others name by digest, in the order to push them.
    pub manifests: Vec<(Descriptor, Vec<u8>)>,
    /// What a tag is to name, for version 2: the converted image.
    pub root: Option<(Descriptor, Vec<u8>)>,
    /// The SOCI index of each image, `None` where no layer of it got a zTOC.
    pub indexes: Vec<Option<Descriptor>>,
}

impl Artifacts {
    fn new() -> Self {
        let blobs = vec![(Digest::of(soci::CONFIG), soci::CONFIG.to_vec())];
        Self { blobs, manifests: Vec::new(), root: None, indexes: Vec::new() }
    }

    fn push(&mut self, index: &[u8], version: soci::Version, ztocs: Vec<(Digest, Vec<u8>)>) {
        let mut descriptor = Descriptor::of(media_type::MANIFEST, index);
        descriptor.artifact_type = version.artifact_type().to_owned();
        self.blobs.extend(ztocs);
        self.manifests.push((descriptor.clone(), index.to_vec()));
        self.indexes.push(Some(descriptor));
    }
}

/// Indexes of version 1, one an image: each refers to its image, which stays as it is.
pub fn version_1(images: &[IndexedImage], options: &IndexOptions) -> Result<Artifacts, IndexError> {
    let mut artifacts = Artifacts::new();
    for indexed in images {
        let (entries, ztocs) = entries(indexed, options);
        let parts = IndexParts { ztocs: &entries, prefetch: &[], build_tool: BUILD_TOOL };
        let subject = &indexed.image.documents.descriptor;
        let bytes = SociIndex::v1(&parts, subject)?.to_canonical();
        artifacts.push(&bytes, soci::Version::V1, ztocs);
    }
    Ok(artifacts)
}

/// Indexes of version 2: an image index whose images name their SOCI indexes. All images are of the
/// same name. One without zTOCs stays as it is, unless there is no other.
pub fn version_2(images: &[IndexedImage], options: &IndexOptions) -> Result<Artifacts, IndexError> {
    let Some(first) = images.first() else { return Ok(Artifacts::new()) };
    let documents = &first.image.documents;
    let around: Index = match &documents.index {
        Some((_, index)) => index.clone(),
        None => soci::index_of_one(&documents.descriptor, documents.config.platform.clone()),
    };
    let mut artifacts = Artifacts::new();
    let mut made = Vec::new();
    let mut refused = None;
    for indexed in images {
        let (entries, ztocs) = entries(indexed, options);
        let parts = IndexParts { ztocs: &entries, prefetch: &[], build_tool: BUILD_TOOL };
        match SociIndex::v2(&parts) {
            Ok(index) => {
                let bytes = index.to_canonical();
                artifacts.push(&bytes, soci::Version::V2, ztocs);
                made.push((&indexed.image.documents, bytes));
            }
            Err(error) => {
                artifacts.indexes.push(None);
                refused = Some(error);
            }
        }
    }
    if let (true, Some(error)) = (made.is_empty(), refused) {
        return Err(error.into());
    }
    let indexed = made.iter().map(|(documents, bytes)| Indexed {
        image: documents.descriptor.digest,
        manifest: &documents.manifest_bytes,
        platform: documents.config.platform.clone(),
        soci_index: bytes,
    });
    let converted = soci::convert(&around, &indexed.collect::<Vec<_>>())?;
    let manifests = converted.manifests.into_iter();
    artifacts
        .manifests
        .extend(manifests.map(|bytes| (Descriptor::of(media_type::MANIFEST, &bytes), bytes)));
    artifacts.root = Some((Descriptor::of(media_type::INDEX, &converted.index), converted.index));
    Ok(artifacts)
}

type Entries<'a> = (Vec<ZtocEntry<'a>>, Vec<(Digest, Vec<u8>)>);

fn entries<'a>(indexed: &'a IndexedImage, options: &IndexOptions) -> Entries<'a> {
    let mut entries = Vec::new();
    let mut ztocs = Vec::new();
    for (layer, outcome) in indexed.image.documents.layers().iter().zip(&indexed.outcomes) {
        if let Outcome::Built(ztoc) = outcome {
            entries.push(ZtocEntry {
                digest: ztoc.digest,
                size: ztoc.bytes.len() as u64,
                layer,
                span_size: options.span_size,
                disable_xattrs: false,
            });
            ztocs.push((ztoc.digest, ztoc.bytes.clone()));
        }
    }
    (entries, ztocs)
}

/// Write what indexing gave to `target`, with the images themselves where that is another place.
pub fn publish(
    images: &Images,
    source: &Place,
    indexed: &[IndexedImage],
    artifacts: &Artifacts,
    target: &Place,
) -> Result<(), ImageError> {
    if store_of(target.image()) != store_of(source.image()) {
        for indexed in indexed {
            copy_blobs(images, source, &indexed.image.documents.manifest, target)?;
        }
        copy_others(images, source, artifacts, target)?;
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

/// What the converted image index lists as it was: images of platforms that were not asked for, and
/// attestations. A registry takes no index whose entries it does not have.
fn copy_others(
    images: &Images,
    source: &Place,
    artifacts: &Artifacts,
    target: &Place,
) -> Result<(), ImageError> {
    let Some((root, bytes)) = &artifacts.root else { return Ok(()) };
    let corrupt = |digest: &Digest, error: &dyn std::fmt::Display| {
        ImageError::Corrupt(format!("manifest {digest}: {error}"))
    };
    let index = Index::parse(bytes).map_err(|error| corrupt(&root.digest, &error))?;
    let ours = |it: &Digest| artifacts.manifests.iter().any(|(known, _)| known.digest == *it);
    for entry in index.manifests.iter().filter(|entry| !ours(&entry.digest)) {
        let raw = match images.runtime().block_on(source.manifest(&entry.digest)) {
            // Images are copied without the platforms that somebody did not want, too.
            Err(error) if error.class() == Class::Gone => {
                tracing::warn!(manifest = %entry.digest, "listed, but not there: left out");
                continue;
            }
            found => found?,
        };
        let manifest =
            Manifest::parse(&raw.bytes).map_err(|error| corrupt(&entry.digest, &error))?;
        copy_blobs(images, source, &manifest, target)?;
        let push = target.push_manifest(None, &entry.media_type, raw.bytes);
        images.runtime().block_on(push)?;
    }
    Ok(())
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
fn copy_blobs(
    images: &Images,
    source: &Place,
    manifest: &Manifest,
    target: &Place,
) -> Result<(), ImageError> {
    let disk = |source| ImageError::Disk { path: std::env::temp_dir(), source };
    for descriptor in std::iter::once(&manifest.config).chain(&manifest.layers) {
        let blob = source.blob(descriptor)?;
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
