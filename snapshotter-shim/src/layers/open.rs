//! Layers in the cache, opened on any thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use spanfs::image::{How, ImageError, Images, LayerSource, OpenLayer, Pull, Ztoc};
use spanfs_cache::Cache;
use spanfs_fetch::Source;
use spanfs_layer::Digest;
use spanfs_layer::oci::Descriptor;

use super::catalog::{Known, KnownLayer};
use super::pull::{OfImage, Puller, Task, blob_name};
use super::{LayerError, Request};

/// What opens layers.
#[derive(Clone)]
pub(super) struct Opener {
    pub(super) images: Arc<Images>,
    pub(super) cache: Arc<Cache>,
    /// The cache's; zTOCs stand there as well.
    pub(super) directory: PathBuf,
    /// Ends whole passes.
    pub(super) stop: Arc<AtomicBool>,
    pub(super) puller: Arc<Puller>,
}

impl Opener {
    /// A layer whose content comes on demand, and the digest of the zTOC that says how.
    pub(super) fn lazy(
        &self,
        known: &Known,
        layer: &KnownLayer,
    ) -> Result<(OpenLayer, Digest), LayerError> {
        let Some(ztoc) = layer.ztoc() else { unreachable!("by it the layer was found lazy") };
        let digest = ztoc.digest;
        let open = self.open(&known.source, &layer.descriptor, layer.diff_id, Some(ztoc))?;
        Ok((open, digest))
    }

    /// A layer that is fetched whole first.
    pub(super) fn whole(
        &self,
        known: &Known,
        layer: &KnownLayer,
        request: &Request,
    ) -> Result<OpenLayer, ImageError> {
        self.pull(&Task {
            source: known.source.clone(),
            name: blob_name(&layer.descriptor, layer.diff_id, request),
            is_parallel: false,
            of_image: OfImage::unlimited(),
            places: Vec::new(),
            stop: Arc::clone(&self.stop),
        })
    }

    /// Span by span where there is a zTOC, else whole.
    pub(super) fn open(
        &self,
        source: &Source,
        descriptor: &Descriptor,
        diff_id: Digest,
        ztoc: Option<Ztoc>,
    ) -> Result<OpenLayer, ImageError> {
        self.open_with(source, descriptor, diff_id, ztoc, &self.stop, Pull::default())
    }

    /// The same; a whole one is fetched as `pull` says.
    pub(super) fn open_with(
        &self,
        source: &Source,
        descriptor: &Descriptor,
        diff_id: Digest,
        ztoc: Option<Ztoc>,
        stop: &AtomicBool,
        pull: Pull<'_>,
    ) -> Result<OpenLayer, ImageError> {
        let (cache, directory) = (&*self.cache, &*self.directory);
        let to = LayerSource { cache, directory, stop, progress: &|_, _| {}, pull };
        let open = self.images.open_layer(source, descriptor, diff_id, ztoc, &to)?;
        if let How::Never(reason) = &open.how {
            tracing::info!(layerDigest = %descriptor.digest, reason, "layer can't be lazy");
        }
        Ok(open)
    }
}
