//! Whether and how we can have a layer that containerd wants.

use std::sync::Arc;

use spanfs::image::decide::{self, Decision};
use spanfs_layer::Digest;

use super::catalog::{Known, KnownLayer};
use super::request::Request;
use super::{Layers, Live};

/// What becomes of a layer that was asked for.
pub enum Answer {
    /// We can have it.
    Ours(Box<Wanted>),
    /// containerd has to unpack it, for this reason.
    Defer(String),
    /// Nobody can have it.
    Fail(String),
}

/// A layer that we can have.
pub struct Wanted {
    pub(super) known: Arc<Known>,
    pub(super) position: usize,
    pub(super) decision: Decision,
    pub(super) request: Request,
    /// It and those above it, as far as they are fetched whole because they can't be lazy.
    pub(super) whole: Vec<usize>,
}

impl Wanted {
    /// Digest of its blob.
    pub fn layer(&self) -> Digest {
        self.request.layer
    }

    /// Whether containerd is not to try where we fail.
    pub fn is_parallel(&self) -> bool {
        self.decision == Decision::Parallel
    }
}

impl Layers {
    /// Whether and how we can have a layer. Asks the registry, once for all layers of an image.
    pub fn find(&self, request: &Request) -> Answer {
        let Live { lazy_len_min, modes, .. } = self.live.read().clone();
        let is_parallel = modes.parallel.is_some();
        let known = match self.catalog.find(request, &modes) {
            Ok(known) => known,
            Err(reason) if is_parallel => return Answer::Fail(reason),
            Err(reason) => return Answer::Defer(reason),
        };
        let named = known.layers.iter().position(|it| it.descriptor.digest == request.layer);
        let Some(position) = named else {
            let (layer, manifest) = (request.layer, request.manifest);
            return Answer::Defer(format!("layer {layer} is not in the manifest {manifest}"));
        };
        let Some(layer) = known.layers.get(position) else { unreachable!("it was found there") };
        let decide = |layer: &KnownLayer| {
            let facts = decide::Facts {
                is_indexed: known.index.is_ok(),
                has_ztoc: layer.ztoc().is_some(),
                size: layer.descriptor.size,
                lazy_len_min,
            };
            decide::decide(modes.parallel_mode(), facts)
        };
        match (decide(layer), &known.index) {
            (Decision::Defer, Err(reason)) => Answer::Defer(reason.clone()),
            (Decision::Defer, Ok(_)) => unreachable!("an index is used"),
            (decision, _) => {
                let shown = self.registry.wanted().layers;
                let is_whole = |layer: &KnownLayer| {
                    let is_new = !shown.contains(&layer.descriptor.digest);
                    is_new && matches!(decide(layer), Decision::Whole { .. })
                };
                let layers = known.layers.iter().enumerate().skip(position);
                let whole =
                    layers.filter(|(_, layer)| is_whole(layer)).map(|(number, _)| number).collect();
                let request = request.clone();
                Answer::Ours(Box::new(Wanted { known, position, decision, request, whole }))
            }
        }
    }
}
