//! Snapshots on the disk: what the state machine grants, made durable.
//!
//! Every method blocks and ends what it began, so callers run them on threads of their own. Order:
//! a directory is made before the record that tells of it, and goes after it. Killed in between, it
//! leaves a directory without record, which the next start or [`Snapshotter::cleanup`] removes.

mod birth;
mod extraction;
mod failure;
mod owners;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::{Condvar, Mutex, RwLock};

use birth::{Birth, Ids, mend};
use extraction::Asked;
pub use failure::Failure;

use crate::config::Settings;
use crate::directories::{Directories, Owner, Removal};
use crate::disk_usage::disk_usage;
use crate::filter::Filters;
use crate::layers::{AtEnd, Caller, Decided, LayerError, LayerReport, Layers, Place, request};
use crate::mounts::{self, Mount, can_be_option};
use crate::state::labels::TARGET;
use crate::state::{Command, Kind, LabelMask, Labels, Refusal, Snapshot, State, Usage};
use crate::store::Store;

/// All snapshots of a node.
pub struct Snapshotter {
    directories: Directories,
    /// Without, containerd unpacks all layers.
    layers: Option<Arc<Layers>>,
    /// Layers that are being made, by chain id and parent.
    making: Mutex<HashSet<(String, String)>>,
    made: Condvar,
    /// Given to every overlay mount.
    overlay_options: Vec<String>,
    /// Read by all, changed only by who holds `store`, and only for an instant.
    state: RwLock<State>,
    store: Mutex<Store>,
    ids: Mutex<Ids>,
    cleaning: Mutex<()>,
    /// Snapshots below which layers are shown with owners of theirs.
    mapped: Mutex<HashSet<u64>>,
}

impl Snapshotter {
    /// Read what is recorded below `root`, or begin there.
    pub fn open(root: &Path, overlay_options: Vec<String>) -> Result<Self, Failure> {
        Self::open_with(root, overlay_options, |_| Ok(None))
    }

    /// The same, with layers of ours. `start` gets the directory of all snapshots, in which nothing
    /// has been looked at: dead mounts may be there.
    pub fn open_with(
        root: &Path,
        overlay_options: Vec<String>,
        start: impl FnOnce(&Path) -> Result<Option<Layers>, LayerError>,
    ) -> Result<Self, Failure> {
        if !can_be_option(root) {
            return Err(Failure::Root(root.to_owned()));
        }
        let directories = Directories::open(root)?;
        // First: while another process has it, nothing that is mounted is ours to take over.
        let (store, state) = Store::open(&root.join("snapshotter/snapshots.redb"))?;
        let layers = start(directories.path()).map_err(Failure::Layers)?.map(Arc::new);
        // A directory without record is in the way of its id until it is cleaned up.
        let names = directories.names()?;
        let used = names.iter().filter_map(|name| name.parse().ok()).max().unwrap_or(0);
        let ids = Ids { last: state.last_id().max(used), unborn: HashSet::new() };
        for snapshot in state.walk().filter(|snapshot| !directories.has(snapshot.id)) {
            mend(&directories, &state, snapshot)?;
        }
        let snapshotter = Self {
            directories,
            layers,
            making: Mutex::default(),
            made: Condvar::new(),
            overlay_options,
            state: RwLock::new(state),
            store: Mutex::new(store),
            ids: Mutex::new(ids),
            cleaning: Mutex::default(),
            mapped: Mutex::default(),
        };
        if let Some(layers) = &snapshotter.layers
            && let Err(error) = layers.restore(snapshotter.levels())
        {
            // What came back is left to the next start.
            snapshotter.end(AtEnd::Stay);
            return Err(Failure::Layers(error));
        }
        Ok(snapshotter)
    }

    /// Places of all committed snapshots, the lowest layers first.
    fn levels(&self) -> Vec<Vec<Place>> {
        let state = self.state.read();
        let mut levels: BTreeMap<usize, Vec<Place>> = BTreeMap::new();
        for snapshot in state.walk().filter(|snapshot| snapshot.kind == Kind::Committed) {
            let parents: Vec<_> = state.parents(snapshot).map(|parent| parent.id).collect();
            levels.entry(parents.len()).or_default().push(self.place(snapshot.id, &parents));
        }
        levels.into_values().collect()
    }

    fn place(&self, id: u64, parents: &[u64]) -> Place {
        let lowers = parents.iter().map(|&parent| self.directories.fs(parent)).collect();
        Place { id, directory: self.directories.of(id), lowers }
    }

    /// Make an active snapshot or a view.
    ///
    /// An active one that is to take an image's layer is not made if the layer can be had without:
    /// then [`Failure::LayerExists`] tells so. A whole layer is given up when its caller has gone.
    pub fn create<'a>(
        &self,
        key: &str,
        kind: Kind,
        parent: &str,
        labels: Labels,
        caller: impl Into<Caller<'a>>,
    ) -> Result<Mount, Failure> {
        let maps = owners::maps(&labels)?;
        let target = labels.get(TARGET).map(str::to_owned);
        if let Some(chain) = &target
            && kind == Kind::Active
            && self.state.read().layer(chain, parent).is_some()
        {
            return Err(Failure::LayerExists(chain.clone()));
        }
        if kind == Kind::Active
            && let (Some(chain), Some(layers)) = (&target, &self.layers)
        {
            let asked = Asked { chain, key, parent, labels: &labels, caller: caller.into() };
            self.place_layer(layers, &asked)?;
        }
        if !parent.is_empty() {
            self.ensure_below(parent)?;
        }
        let birth = Birth::begin(self, key, kind, parent)?;
        let owner = match &maps {
            Some(maps) => Some(maps.root()),
            None => self.owner_of(parent)?,
        };
        self.directories.create(birth.id, kind, owner)?;
        if let Some(maps) = &maps {
            self.show_mapped(birth.id, maps, &self.parents_of(parent)?)?;
        }
        let command =
            Command::Create { id: birth.id, key: key.into(), kind, parent: parent.into(), labels };
        self.perform(command)?;
        birth.done();
        self.mount_of(key)
    }

    /// Ids of `parent` and its parents, nearest first.
    fn parents_of(&self, parent: &str) -> Result<Vec<u64>, Refusal> {
        if parent.is_empty() {
            return Ok(Vec::new());
        }
        let state = self.state.read();
        let nearest = state.stat(parent)?;
        Ok(std::iter::once(nearest.id).chain(state.parents(nearest).map(|it| it.id)).collect())
    }

    /// See to it that `parent` and all below it can be read.
    fn ensure_below(&self, parent: &str) -> Result<(), Failure> {
        let Some(layers) = &self.layers else { return Ok(()) };
        let parents = self.parents_of(parent)?;
        // From the bottom up.
        for (number, &id) in parents.iter().enumerate().rev() {
            let below = parents.get(number + 1..).unwrap_or_default();
            layers
                .ensure(&self.place(id, below))
                .map_err(|source| Failure::Unavailable { id, source })?;
        }
        Ok(())
    }

    /// How to mount an active snapshot or a view, whose layers are seen to.
    pub fn mounts(&self, key: &str) -> Result<Mount, Failure> {
        let (id, parent, maps) = {
            let state = self.state.read();
            let snapshot = state.stat(key)?;
            (snapshot.id, snapshot.parent.clone(), owners::maps(&snapshot.labels)?)
        };
        if !parent.is_empty() {
            self.ensure_below(&parent)?;
            if let Some(maps) = maps {
                self.show_mapped(id, &maps, &self.parents_of(&parent)?)?;
            }
        }
        self.mount_of(key)
    }

    fn mount_of(&self, key: &str) -> Result<Mount, Failure> {
        let state = self.state.read();
        let snapshot = state.stat(key)?;
        if snapshot.kind == Kind::Committed {
            return Err(Refusal::Precondition(format!("snapshot {key:?} is committed")).into());
        }
        let parents = state.parents(snapshot).map(|parent| parent.id);
        let lowers: Vec<_> = match owners::maps(&snapshot.labels)? {
            Some(_) => {
                let mapped = self.directories.mapped(snapshot.id);
                parents.enumerate().map(|(number, _)| mapped.join(number.to_string())).collect()
            }
            None => parents.map(|parent| self.directories.fs(parent)).collect(),
        };
        Ok(mounts::mount(&self.directories, snapshot, &lowers, &self.overlay_options))
    }

    /// Turn the active snapshot `key` into the committed one `name`.
    pub fn commit(
        &self,
        name: &str,
        key: &str,
        labels: Labels,
        parent: &str,
    ) -> Result<(), Failure> {
        let command = |usage| Command::Commit {
            name: name.to_owned(),
            key: key.to_owned(),
            labels: labels.clone(),
            parent: parent.to_owned(),
            usage,
        };
        let id = {
            let state = self.state.read();
            state.handle(command(Usage::default()), SystemTime::now())?;
            state.stat(key)?.id
        };
        let usage = disk_usage(&self.directories.fs(id))?;
        self.perform(command(usage)).map(drop)
    }

    /// Forget a snapshot. Its directory goes with the next [`Self::cleanup`].
    pub fn remove(&self, name: &str) -> Result<(), Failure> {
        self.perform(Command::Remove { name: name.to_owned() }).map(drop)
    }

    /// One snapshot.
    pub fn stat(&self, name: &str) -> Result<Snapshot, Failure> {
        Ok(self.state.read().stat(name)?.clone())
    }

    /// Change labels; the snapshot as it is afterwards.
    pub fn update(&self, name: &str, labels: Labels, mask: LabelMask) -> Result<Snapshot, Failure> {
        let updated = self.perform(Command::Update { name: name.to_owned(), labels, mask })?;
        Ok(updated.expect("an update puts the snapshot"))
    }

    /// Snapshots that match, as of one instant, by name.
    pub fn list(&self, filters: &[String]) -> Result<Vec<Arc<Snapshot>>, Failure> {
        let filters = Filters::parse(filters)?;
        let state = self.state.read();
        Ok(state.walk().filter(|snapshot| filters.matches(snapshot)).cloned().collect())
    }

    /// Disk that a snapshot takes: measured for an active one, as of its commit for a committed one.
    pub fn usage(&self, name: &str) -> Result<Usage, Failure> {
        let snapshot = self.stat(name)?;
        if let (Some(layers), Kind::Committed) = (&self.layers, snapshot.kind)
            && let Some(usage) = layers.usage(snapshot.id, &self.directories.of(snapshot.id))
        {
            return Ok(usage);
        }
        match snapshot.kind {
            Kind::Active => Ok(disk_usage(&self.directories.fs(snapshot.id))?),
            Kind::View | Kind::Committed => Ok(snapshot.usage),
        }
    }

    /// Remove directories that belong to no snapshot. What can't be removed is logged and stays.
    pub fn cleanup(&self) -> Result<(), Failure> {
        let _one_at_a_time = self.cleaning.lock();
        let names = self.directories.names()?;
        // What becomes unwanted behind this line is still mounted below it, and waits for its turn.
        let unwanted: Vec<_> = names.into_iter().filter(|name| !self.is_wanted(name)).collect();
        if let Some(layers) = &self.layers {
            let manifests = {
                let state = self.state.read();
                state.walk().filter_map(|snapshot| request::manifest(&snapshot.labels)).collect()
            };
            layers.retain(|id| self.is_wanted(&id.to_string()), &manifests);
        }
        for name in unwanted {
            self.hide_mapped(&name);
            match self.directories.remove(&name) {
                Ok(Removal::Gone) => tracing::debug!(name, "removed a directory without snapshot"),
                Ok(Removal::Mounted) => {
                    tracing::warn!(name, "something is mounted in a directory without snapshot");
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(name, error, "cannot remove a directory without snapshot");
                }
            }
        }
        Ok(())
    }

    /// Whether the latest [`Self::cleanup`] left something that was still in use.
    pub fn has_leftovers(&self) -> bool {
        self.layers.as_ref().is_some_and(|layers| layers.has_leftovers())
    }

    /// Numbers for Prometheus.
    pub fn metrics(&self) -> String {
        let mut snapshots = BTreeMap::new();
        for snapshot in self.state.read().walk() {
            *snapshots.entry(snapshot.kind.name()).or_default() += 1;
        }
        let fs = |id| self.directories.fs(id);
        self.layers.as_ref().map_or_else(String::new, |layers| layers.metrics(fs, snapshots))
    }

    /// Every layer that is shown without containerd having unpacked it.
    pub fn report(&self) -> Vec<LayerReport> {
        let Some(layers) = &self.layers else { return Vec::new() };
        let mut reports = layers.report(|id| self.directories.fs(id));
        let state = self.state.read();
        let names: HashMap<u64, &str> =
            state.walk().map(|snapshot| (snapshot.id, snapshot.name.as_str())).collect();
        for report in &mut reports {
            report.name = names.get(&report.snapshot).map(|name| (*name).to_owned());
        }
        reports
    }

    /// What was decided lately about layers that were asked for.
    pub fn decisions(&self) -> Vec<Decided> {
        self.layers.as_ref().map_or_else(Vec::new, |layers| layers.decisions())
    }

    /// Take what of other settings can be taken now.
    pub fn reload(&self, settings: &Settings) -> Result<(), Failure> {
        match &self.layers {
            Some(layers) => layers.reload(settings).map_err(Failure::Layers),
            None => Ok(()),
        }
    }

    /// The process ends. Call it when no call is under way any more.
    pub fn end(&self, mounts: AtEnd) {
        if mounts == AtEnd::Go {
            let mapped: Vec<_> = self.mapped.lock().iter().map(u64::to_string).collect();
            mapped.iter().for_each(|id| self.hide_mapped(id));
        }
        if let Some(layers) = &self.layers {
            layers.end(mounts);
        }
    }

    fn is_wanted(&self, name: &str) -> bool {
        // An id leaves `unborn` only after it has come into `state`: ask in this order.
        let is_wanted = |id| self.ids.lock().unborn.contains(&id) || self.state.read().has_id(id);
        name.parse().is_ok_and(is_wanted)
    }

    fn owner_of(&self, parent: &str) -> Result<Option<Owner>, Failure> {
        if parent.is_empty() {
            return Ok(None);
        }
        let id = self.state.read().stat(parent)?.id;
        Ok(Some(self.directories.owner(id)?))
    }

    /// Do what the state grants: on the disk first, then for everyone to see.
    fn perform(&self, command: Command) -> Result<Option<Snapshot>, Failure> {
        let mut store = self.store.lock();
        let change = {
            let state = self.state.read();
            let change = state.handle(command, SystemTime::now())?;
            store.write(&change, &state)?;
            change
        };
        let put = change.put.clone();
        self.state.write().apply(change);
        Ok(put)
    }
}
