//! Whether and how we can have a layer that containerd wants.

use std::collections::HashSet;
use std::sync::Arc;

use spanfs::image::decide::{self, Decision, Parallel};
use spanfs_layer::Digest;

use super::catalog::{AtIndex, Known, KnownLayer};
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
        let shown = self.registry.wanted().layers;
        let by = Arc::new(By { mode: modes.parallel_mode(), lazy_len_min, shown });
        let known = match self.catalog.find(request, &modes, self.begin_whole(&by, request)) {
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
        match (by.decide(&known, layer), &known.index) {
            (Decision::Defer, Err(reason)) => Answer::Defer(reason.clone()),
            (Decision::Defer, Ok(_)) => unreachable!("an index is used"),
            (decision, _) => {
                let whole = by.whole(&known, position);
                let request = request.clone();
                Answer::Ours(Box::new(Wanted { known, position, decision, request, whole }))
            }
        }
    }

    /// Layers that can't be lazy are on their way while the zTOCs of the others are.
    fn begin_whole(&self, by: &Arc<By>, request: &Request) -> AtIndex {
        let (opener, wholes) = (self.opener.clone(), Arc::clone(&self.wholes));
        let (by, request) = (Arc::clone(by), request.clone());
        Box::new(move |known| {
            let asked = |layer: &KnownLayer| layer.descriptor.digest == request.layer;
            if let Some(position) = known.layers.iter().position(asked) {
                wholes.begin(&opener, known, &request, &by.whole(known, position));
            }
        })
    }
}

/// By what layers are judged.
struct By {
    mode: Parallel,
    lazy_len_min: u64,
    /// Layers that are there.
    shown: HashSet<Digest>,
}

impl By {
    fn decide(&self, known: &Known, layer: &KnownLayer) -> Decision {
        let facts = decide::Facts {
            is_indexed: known.index.is_ok(),
            has_ztoc: layer.has_ztoc,
            size: layer.descriptor.size,
            lazy_len_min: self.lazy_len_min,
        };
        decide::decide(self.mode, facts)
    }

    /// From a layer upwards, those to be fetched whole because they can't be lazy.
    fn whole(&self, known: &Known, position: usize) -> Vec<usize> {
        let is_whole = |layer: &KnownLayer| {
            let is_new = !self.shown.contains(&layer.descriptor.digest);
            is_new && matches!(self.decide(known, layer), Decision::Whole { .. })
        };
        let layers = known.layers.iter().enumerate().skip(position);
        layers.filter(|(_, layer)| is_whole(layer)).map(|(number, _)| number).collect()
    }
}
