//! Snapshots whose files have other owners than the image says: containers in user namespaces.
//!
//! Each layer below is shown once more, for that snapshot alone, with mapped owners and read-only, at
//! `ID/mapped/NUMBER`. Nothing is copied or chowned. A restart takes these mounts away; the next call
//! of Mounts makes them anew, from the labels.

use std::fs;

use spanfs_mount::id_map::{IdMap, Owners};
use spanfs_mount::transport::Privilege;
use spanfs_mount::unmount;

use super::{Failure, Snapshotter};
use crate::directories::{DirectoryError, Owner};
use crate::state::labels::{GID_MAPPING, TARGET, UID_MAPPING};
use crate::state::{Labels, Refusal};

/// Who owns what a snapshot shows.
pub(super) struct Maps {
    users: IdMap,
    groups: IdMap,
}

impl Maps {
    /// The owner of what belongs to root inside.
    pub(super) fn root(&self) -> Owner {
        Owner { uid: self.users.root(), gid: self.groups.root() }
    }
}

/// What labels ask for. One map without the other asks for nothing, and layers have no owners of
/// their own: they are mapped where they are used.
pub(super) fn maps(labels: &Labels) -> Result<Option<Maps>, Refusal> {
    let (Some(users), Some(groups)) = (labels.get(UID_MAPPING), labels.get(GID_MAPPING)) else {
        return Ok(None);
    };
    if labels.get(TARGET).is_some() {
        return Ok(None);
    }
    let parse = |label: &str, text: &str| {
        text.parse().map_err(|error| Refusal::Invalid(format!("label {label}: {error}")))
    };
    Ok(Some(Maps { users: parse(UID_MAPPING, users)?, groups: parse(GID_MAPPING, groups)? }))
}

impl Snapshotter {
    /// Have the layers `parents` shown for the snapshot `id`, unless they are.
    pub(super) fn show_mapped(&self, id: u64, maps: &Maps, parents: &[u64]) -> Result<(), Failure> {
        let mut mapped = self.mapped.lock();
        if parents.is_empty() || mapped.contains(&id) {
            return Ok(());
        }
        let directory = self.directories.mapped(id);
        // Of a call that failed half-way.
        self.detach_mapped(id);
        let owners = Owners::new(&maps.users, &maps.groups)?;
        for (number, &parent) in parents.iter().enumerate() {
            let at = directory.join(number.to_string());
            fs::create_dir_all(&at).map_err(DirectoryError::of("making", &at))?;
            owners.show(&self.directories.fs(parent), &at)?;
        }
        mapped.insert(id);
        Ok(())
    }

    /// Take away what [`Self::show_mapped`] made below the directory `name`. Containers that use it
    /// keep it.
    pub(super) fn hide_mapped(&self, name: &str) {
        if let Ok(id) = name.parse() {
            self.detach_mapped(id);
            self.mapped.lock().remove(&id);
        }
    }

    fn detach_mapped(&self, id: u64) {
        let Ok(entries) = fs::read_dir(self.directories.mapped(id)) else { return };
        for at in entries.flatten().map(|entry| entry.path()) {
            if let Err(error) = unmount::detach(&at, Privilege::Root) {
                tracing::warn!(at = %at.display(), %error, "a layer with mapped owners stays mounted");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_maps_or_none() {
        let of = |labels: &[(&str, &str)]| maps(&labels.iter().copied().collect());
        let (uid, gid) = ((UID_MAPPING, "0:1000:10"), (GID_MAPPING, "0:2000:10"));
        assert!(of(&[uid]).unwrap().is_none());
        let both = of(&[uid, gid]).unwrap().unwrap();
        assert_eq!(both.root(), Owner { uid: 1000, gid: 2000 });
        assert!(of(&[uid, gid, (TARGET, "sha256:1")]).unwrap().is_none());
        let refused = of(&[uid, (GID_MAPPING, "0:1")]).err().unwrap();
        assert!(refused.to_string().contains("gidmapping"), "{refused}");
    }
}
