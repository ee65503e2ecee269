//! Snapshots that are being made, and directories that were lost.

use std::collections::HashSet;

use super::{Failure, Snapshotter};
use crate::directories::{Directories, DirectoryError};
use crate::state::{Kind, Snapshot, State};

/// Ids as they are given.
#[derive(Debug)]
pub(super) struct Ids {
    pub(super) last: u64,
    /// Their directories are being made; they have no record yet.
    pub(super) unborn: HashSet<u64>,
}

/// A snapshot between the choice of its id and its record.
pub(super) struct Birth<'a> {
    snapshotter: &'a Snapshotter,
    pub(super) id: u64,
    is_recorded: bool,
}

impl<'a> Birth<'a> {
    pub(super) fn begin(
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

    pub(super) fn done(mut self) {
        self.is_recorded = true;
    }
}

impl Drop for Birth<'_> {
    fn drop(&mut self) {
        if !self.is_recorded {
            let name = self.id.to_string();
            self.snapshotter.hide_mapped(&name);
            if let Err(error) = self.snapshotter.directories.remove(&name) {
                let (id, error) = (self.id, &error as &dyn std::error::Error);
                tracing::warn!(id, error, "cannot remove the directory of a failed snapshot");
            }
        }
        self.snapshotter.ids.lock().unborn.remove(&self.id);
    }
}

/// Give a snapshot without directory one, where that does not hide a loss.
pub(super) fn mend(
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
