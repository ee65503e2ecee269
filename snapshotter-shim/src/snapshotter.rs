//! Snapshots on the disk: what the state machine grants, made durable.
//!
//! Every method blocks and ends what it began, so callers run them on threads of their own. Order:
//! a directory is made before the record that tells of it, and goes after it. Killed in between, it
//! leaves a directory without record, which the next start or [`Snapshotter::cleanup`] removes.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::{Mutex, RwLock};

use crate::directories::{Directories, DirectoryError, Owner, Removal};
use crate::disk_usage::{UsageError, disk_usage};
use crate::filter::{FilterError, Filters};
use crate::mounts::{self, Mount, can_be_option};
use crate::state::labels::{GID_MAPPING, TARGET, UID_MAPPING};
use crate::state::{Command, Kind, LabelMask, Labels, Refusal, Snapshot, State, Usage};
use crate::store::{Store, StoreError};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The state does not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A filter can't be read.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The image layer that was to be made is there.
    #[error("target snapshot {0:?}: already exists")]
    LayerExists(String),
    /// We don't do this.
    #[error("{0}: not implemented")]
    Unsupported(&'static str),
    /// The record of snapshots.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directories of snapshots.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The size of a snapshot.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The root's path can't be an option of an overlay mount.
    #[error("root {}: a path of mount options has no comma, colon, backslash or quote", .0.display())]
    Root(PathBuf),
}

/// Ids as they are given.
#[derive(Debug)]
struct Ids {
    last: u64,
    /// Their directories are being made; they have no record yet.
    unborn: HashSet<u64>,
}

/// All snapshots of a node.
#[derive(Debug)]
pub struct Snapshotter {
    directories: Directories,
    /// Given to every overlay mount.
    overlay_options: Vec<String>,
    /// Read by all, changed only by who holds `store`, and only for an instant.
    state: RwLock<State>,
    store: Mutex<Store>,
    ids: Mutex<Ids>,
    cleaning: Mutex<()>,
}

impl Snapshotter {
    /// Read what is recorded below `root`, or begin there.
    pub fn open(root: &Path, overlay_options: Vec<String>) -> Result<Self, Failure> {
        if !can_be_option(root) {
            return Err(Failure::Root(root.to_owned()));
        }
        let directories = Directories::open(root)?;
        let (store, state) = Store::open(&root.join("snapshotter/snapshots.redb"))?;
        // A directory without record is in the way of its id until it is cleaned up.
        let names = directories.names()?;
        let used = names.iter().filter_map(|name| name.parse().ok()).max().unwrap_or(0);
        let ids = Ids { last: state.last_id().max(used), unborn: HashSet::new() };
        for snapshot in state.walk().filter(|snapshot| !directories.has(snapshot.id)) {
            mend(&directories, &state, snapshot)?;
        }
        Ok(Self {
            directories,
            overlay_options,
            state: RwLock::new(state),
            store: Mutex::new(store),
            ids: Mutex::new(ids),
            cleaning: Mutex::default(),
        })
    }

    /// Make an active snapshot or a view.
    pub fn create(
        &self,
        key: &str,
        kind: Kind,
        parent: &str,
        labels: Labels,
    ) -> Result<Mount, Failure> {
        if labels.get(UID_MAPPING).is_some() && labels.get(GID_MAPPING).is_some() {
            return Err(Failure::Unsupported("mapping the owners of a snapshot's files"));
        }
        let target = labels.get(TARGET).map(str::to_owned);
        if let Some(chain) = &target
            && kind == Kind::Active
            && self.state.read().layer(chain, parent).is_some()
        {
            return Err(Failure::LayerExists(chain.clone()));
        }
        let birth = Birth::begin(self, key, kind, parent)?;
        let owner = self.owner_of(parent)?;
        self.directories.create(birth.id, kind, owner)?;
        let command =
            Command::Create { id: birth.id, key: key.into(), kind, parent: parent.into(), labels };
        self.perform(command)?;
        birth.done();
        if let Some(target) = target {
            tracing::info!(
                "defer-snapshot-runtime" = "true",
                key,
                parent,
                target,
                "lazy layers are not served yet; deferring to container runtime"
            );
        }
        self.mounts(key)
    }

    /// How to mount an active snapshot or a view.
    pub fn mounts(&self, key: &str) -> Result<Mount, Failure> {
        let state = self.state.read();
        let snapshot = state.stat(key)?;
        if snapshot.kind == Kind::Committed {
            return Err(Refusal::Precondition(format!("snapshot {key:?} is committed")).into());
        }
        let parents: Vec<_> = state.parents(snapshot).map(|parent| parent.id).collect();
        Ok(mounts::mount(&self.directories, snapshot, &parents, &self.overlay_options))
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
        match snapshot.kind {
            Kind::Active => Ok(disk_usage(&self.directories.fs(snapshot.id))?),
            Kind::View | Kind::Committed => Ok(snapshot.usage),
        }
    }

    /// Remove directories that belong to no snapshot. What can't be removed is logged and stays.
    pub fn cleanup(&self) -> Result<(), Failure> {
        let _one_at_a_time = self.cleaning.lock();
        for name in self.directories.names()? {
            if self.is_wanted(&name) {
                continue;
            }
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

/// Give a snapshot without directory one, where that does not hide a loss.
fn mend(
    directories: &Directories,
    state: &State,
    snapshot: &Snapshot,
) -> Result<(), DirectoryError> {
    let (key, id) = (snapshot.name.as_str(), snapshot.id);
    if snapshot.kind == Kind::Committed {
        tracing::error!(key, id, "the content of a snapshot is gone; remove it and pull again");
        return Ok(());
    }
    tracing::warn!(key, id, "the directory of a snapshot is gone; it begins anew");
    directories.remove(&id.to_string())?;
    let parent = state.get(&snapshot.parent).filter(|parent| directories.has(parent.id));
    let owner = parent.map(|parent| directories.owner(parent.id)).transpose()?;
    directories.create(id, snapshot.kind, owner)
}

/// A snapshot between the choice of its id and its record.
struct Birth<'a> {
    snapshotter: &'a Snapshotter,
    id: u64,
    is_recorded: bool,
}

impl<'a> Birth<'a> {
    fn begin(
        snapshotter: &'a Snapshotter,
        key: &str,
        kind: Kind,
        parent: &str,
    ) -> Result<Self, Failure> {
        // Asked again with the record; here it saves the work on the disk.
        snapshotter.state.read().may_create(key, kind, parent)?;
        let mut ids = snapshotter.ids.lock();
        ids.last += 1;
        let id = ids.last;
        ids.unborn.insert(id);
        Ok(Self { snapshotter, id, is_recorded: false })
    }

    fn done(mut self) {
        self.is_recorded = true;
    }
}

impl Drop for Birth<'_> {
    fn drop(&mut self) {
        if !self.is_recorded
            && let Err(error) = self.snapshotter.directories.remove(&self.id.to_string())
        {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(id = self.id, error, "cannot remove the directory of a failed snapshot");
        }
        self.snapshotter.ids.lock().unborn.remove(&self.id);
    }
}
