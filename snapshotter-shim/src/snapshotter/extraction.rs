//! Extractions that ask for an image's layer: it is shown instead, and containerd told that it exists.

use super::birth::Birth;
use super::{Failure, Snapshotter};
use crate::daemon::log::chain as chain_of;
use crate::layers::request::{INDEXED, NAMESPACE, REMOTE, namespace};
use crate::layers::{Answer, Caller, Kind as Shown, Layers, Outcome, Placed, Request, Wanted};
use crate::state::{Command, Kind, Labels};

/// An extraction that asks for an image's layer.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) chain: &'a str,
    pub(super) key: &'a str,
    pub(super) parent: &'a str,
    pub(super) labels: &'a Labels,
    pub(super) caller: Caller<'a>,
}

impl Snapshotter {
    /// Make the layer that was asked for, if it is to be ours: then this ends in
    /// [`Failure::LayerExists`].
    pub(super) fn place_layer(&self, layers: &Layers, asked: &Asked<'_>) -> Result<(), Failure> {
        let Asked { chain, key, parent, labels, .. } = *asked;
        self.state.read().may_create(key, Kind::Active, parent)?;
        // The peer's words: people look for them.
        let tell = |what: &str, reason: &str| {
            tracing::info!(
                "defer-snapshot-runtime" = "true",
                key,
                parent,
                error = reason,
                "{what}; deferring to container runtime"
            );
        };
        let mut request = match Request::parse(labels) {
            Ok(request) => request,
            Err(error) => {
                tell("the layer is not named", &chain_of(&error));
                return Ok(());
            }
        };
        request.namespace = namespace(asked.caller.namespace, key).map(str::to_owned);
        let defer = |what: &str, reason: &str| {
            tell(what, reason);
            layers.decided(&request, Outcome::Deferred, &format!("{what}: {reason}"));
            Ok(())
        };
        let fail = |reason: String| {
            layers.decided(&request, Outcome::Failed, &reason);
            Err(Failure::Layer { layer: request.layer.to_string(), reason })
        };
        let _one_at_a_time = self.making(chain, parent);
        if self.state.read().layer(chain, parent).is_some() {
            return Err(Failure::LayerExists(chain.to_owned()));
        }
        let wanted = match layers.find(&request) {
            Answer::Ours(wanted) => wanted,
            Answer::Defer(reason) => return defer("no valid SOCI index found", &reason),
            Answer::Fail(reason) => return fail(reason),
        };
        if !parent.is_empty() {
            self.ensure_below(parent)?;
        }
        match self.show_layer(layers, asked, &wanted) {
            Ok(()) => Err(Failure::LayerExists(chain.to_owned())),
            Err(Failure::Unavailable { source, .. }) if !wanted.is_parallel() => {
                let error = chain_of(&source);
                let layer = request.layer;
                tracing::warn!(
                    "remote-snapshot-prepared" = "false",
                    layerDigest = %layer,
                    key,
                    error,
                    "failed to prepare remote snapshot"
                );
                defer("failed to prepare local snapshot", &error)
            }
            Err(Failure::Unavailable { source, .. }) => fail(chain_of(&source)),
            Err(failure) => Err(failure),
        }
    }

    fn show_layer(
        &self,
        layers: &Layers,
        asked: &Asked<'_>,
        wanted: &Wanted,
    ) -> Result<(), Failure> {
        let Asked { chain, key, parent, labels, caller } = *asked;
        let birth = Birth::begin(self, key, Kind::Active, parent)?;
        let owner = self.owner_of(parent)?;
        self.directories.create(birth.id, Kind::Committed, owner)?;
        let place = self.place(birth.id, &self.parents_of(parent)?);
        let placed = layers.show(wanted, &place, &caller);
        let placed = placed.map_err(|source| Failure::Unavailable { id: birth.id, source })?;
        let Placed { kind, usage } = placed;
        let mut labels = labels.clone();
        let more = match kind {
            Shown::Lazy => &[REMOTE, INDEXED][..],
            Shown::Whole => &[INDEXED],
            Shown::Parallel => &[],
        };
        more.iter().for_each(|(label, value)| labels.set(*label, *value));
        labels.set(NAMESPACE, namespace(caller.namespace, key).unwrap_or_default());
        // The chain id alone, as the peer names it, unless it stands there upon another parent.
        let is_taken = self.state.read().get(chain).is_some();
        let name = if is_taken { format!("{chain} {}", birth.id) } else { chain.to_owned() };
        let parent_name = parent.to_owned();
        let command = Command::Place { id: birth.id, name, parent: parent_name, labels, usage };
        if let Err(failure) = self.perform(command) {
            layers.hide(birth.id);
            return Err(failure);
        }
        let layer = wanted.layer().to_string();
        match kind {
            Shown::Lazy => tracing::info!(
                "remote-snapshot-prepared" = "true",
                layerDigest = layer,
                key,
                parent,
                "remote snapshot successfully prepared."
            ),
            _ => tracing::info!(
                "local-snapshot-prepared" = "true",
                layerDigest = layer,
                key,
                parent,
                "local snapshot successfully prepared"
            ),
        }
        birth.done();
        Ok(())
    }

    /// Wait until nobody else makes this layer.
    fn making(&self, chain: &str, parent: &str) -> Making<'_> {
        let layer = (chain.to_owned(), parent.to_owned());
        let mut making = self.making.lock();
        // Whoever makes it has deadlines of his own.
        while !making.insert(layer.clone()) {
            self.made.wait(&mut making);
        }
        Making { snapshotter: self, layer }
    }
}

/// See [`Snapshotter::making`].
struct Making<'a> {
    snapshotter: &'a Snapshotter,
    layer: (String, String),
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.snapshotter.making.lock().remove(&self.layer);
        self.snapshotter.made.notify_all();
    }
}
