//! The snapshots of a node, as a pure machine: a command and the time go in, a change comes out.
//!
//! The shell makes a change durable and applies it; nothing here knows a directory, a mount or a
//! database. Semantics: containerd's `core/snapshots` interface and its conformance suite.
//!
//! Invariants: names are unique; a committed snapshot never changes but for its labels; a parent is
//! committed and outlives its children; an id is given once.

pub mod labels;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

pub use labels::{LabelMask, Labels};

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read-only look at its parent; can't be committed.
    View,
    /// Writable.
    Active,
    /// Immutable; may be a parent.
    Committed,
}

impl Kind {
    /// The word used in filters and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// Disk that a snapshot takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated bytes.
    pub bytes: u64,
    /// Inodes, hard links counted once.
    pub inodes: u64,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Key of an active snapshot or a view, name of a committed one: one flat space.
    pub name: String,
    /// Never reused and never changed; names the snapshot's directory.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// Name of the committed parent; empty for none.
    pub parent: String,
    /// Labels as the caller gave them.
    pub labels: Labels,
    /// When it was made.
    pub created: SystemTime,
    /// When its labels or its kind last changed.
    pub updated: SystemTime,
    /// Disk usage at commit; zero before.
    pub usage: Usage,
    /// What it looks like in a list, once it was in one.
    pub listed: Listed,
}

/// Bytes that follow from a snapshot: not a part of what it is, nor of a copy that is to be another.
#[derive(Default)]
pub struct Listed(OnceLock<Box<[u8]>>);

impl Listed {
    /// The bytes; `make` them the first time.
    pub fn get_or_make(&self, make: impl FnOnce() -> Box<[u8]>) -> &[u8] {
        self.0.get_or_init(make)
    }
}

impl Clone for Listed {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Listed {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Listed {}

impl fmt::Debug for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listed")
    }
}

/// What a caller wants changed.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make an active snapshot or a view.
    Create {
        /// Its id, never given before.
        id: u64,
        /// Its key.
        key: String,
        /// [`Kind::Active`] or [`Kind::View`].
        kind: Kind,
        /// Committed parent; empty for none.
        parent: String,
        /// Its labels; empty values are dropped.
        labels: Labels,
    },
    /// Turn an active snapshot into a committed one.
    Commit {
        /// Name of the committed snapshot.
        name: String,
        /// Key of the active one, which disappears.
        key: String,
        /// Labels that replace those given at creation.
        labels: Labels,
        /// Parent that the caller expects, or gives to a snapshot without one; empty to keep.
        parent: String,
        /// Disk usage, measured now.
        usage: Usage,
    },
    /// Make a committed snapshot whose content is there already.
    Place {
        /// Its id, never given before.
        id: u64,
        /// Its name.
        name: String,
        /// Committed parent; empty for none.
        parent: String,
        /// Its labels; empty values are dropped.
        labels: Labels,
        /// Disk that its own files take.
        usage: Usage,
    },
    /// Change labels.
    Update {
        /// Any snapshot.
        name: String,
        /// New values.
        labels: Labels,
        /// Which of them count.
        mask: LabelMask,
    },
    /// Forget a snapshot without children.
    Remove {
        /// Any snapshot.
        name: String,
    },
}

/// Why a command is refused; the gRPC status follows from the variant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such snapshot.
    #[error("snapshot {0:?}: not found")]
    NotFound(String),
    /// The name is taken.
    #[error("snapshot {0:?}: already exists")]
    AlreadyExists(String),
    /// The command makes no sense.
    #[error("{0}: invalid argument")]
    Invalid(String),
    /// Not in this state of things.
    #[error("{0}: failed precondition")]
    Precondition(String),
}

/// What a granted command changes: to be made durable in one transaction, then applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Names whose records go (before the new one is put).
    pub removed: Option<String>,
    /// The record that is new or changed.
    pub put: Option<Snapshot>,
}

/// All snapshots.
#[derive(Clone, Debug, Default)]
pub struct State {
    snapshots: BTreeMap<String, Arc<Snapshot>>,
    children: HashMap<String, usize>,
    ids: HashSet<u64>,
    /// (chain id, parent) → names of committed snapshots.
    layers: HashMap<(String, String), BTreeSet<String>>,
    last_id: u64,
}

impl State {
    /// The state that a store kept. `last_id` is the highest id ever given.
    pub fn restore(
        snapshots: impl IntoIterator<Item = Snapshot>,
        last_id: u64,
    ) -> Result<Self, String> {
        let mut state = Self { last_id, ..Self::default() };
        for snapshot in snapshots {
            if state.has_id(snapshot.id) {
                return Err(format!("id {} of {:?} is taken", snapshot.id, snapshot.name));
            }
            state.put(snapshot);
        }
        for snapshot in state.snapshots.values() {
            let parent = &snapshot.parent;
            if !parent.is_empty()
                && state.get(parent).is_none_or(|parent| parent.kind != Kind::Committed)
            {
                return Err(format!("parent {parent:?} of {:?} is not committed", snapshot.name));
            }
        }
        Ok(state)
    }

    /// One snapshot.
    pub fn get(&self, name: &str) -> Option<&Snapshot> {
        self.snapshots.get(name).map(Arc::as_ref)
    }

    /// One snapshot, or the refusal to give it.
    pub fn stat(&self, name: &str) -> Result<&Snapshot, Refusal> {
        self.get(name).ok_or_else(|| Refusal::NotFound(name.to_owned()))
    }

    /// All snapshots, by name.
    pub fn walk(&self) -> impl Iterator<Item = &Arc<Snapshot>> {
        self.snapshots.values()
    }

    /// Highest id ever given.
    pub fn last_id(&self) -> u64 {
        self.last_id
    }

    /// The parents of a snapshot, nearest first.
    pub fn parents<'a>(&'a self, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a Snapshot> {
        std::iter::successors(self.get(&snapshot.parent), |parent| self.get(&parent.parent))
    }

    /// Whether some snapshot has this id.
    pub fn has_id(&self, id: u64) -> bool {
        self.ids.contains(&id)
    }

    /// The committed snapshot whose content is the image layer of chain id `chain` upon `parent`.
    ///
    /// Both count: the same chain id may stand on parents of different names, and containerd accepts
    /// only the one upon the parent that it asked for.
    pub fn layer(&self, chain: &str, parent: &str) -> Option<&Snapshot> {
        let names = self.layers.get(&(chain.to_owned(), parent.to_owned()))?;
        names.first().and_then(|name| self.get(name))
    }

    /// Whether a snapshot can be created, and if not, why.
    pub fn may_create(&self, key: &str, kind: Kind, parent: &str) -> Result<(), Refusal> {
        assert!(kind != Kind::Committed, "a snapshot is committed by Commit only");
        if key.is_empty() {
            return Err(Refusal::Invalid("snapshot key is empty".to_owned()));
        }
        if !parent.is_empty() && self.stat(parent)?.kind != Kind::Committed {
            return Err(Refusal::Invalid(format!("parent {parent:?} is not committed")));
        }
        match self.get(key) {
            None => Ok(()),
            Some(_) => Err(Refusal::AlreadyExists(key.to_owned())),
        }
    }

    /// What `command` would change. The state itself stays as it is until [`Self::apply`].
    pub fn handle(&self, command: Command, now: SystemTime) -> Result<Change, Refusal> {
        match command {
            Command::Create { id, key, kind, parent, labels } => {
                let labels = labels.checked()?;
                self.may_create(&key, kind, &parent)?;
                assert!(!self.ids.contains(&id), "id {id} is given twice");
                let (created, updated, usage) = (now, now, Usage::default());
                let (name, listed) = (key, Listed::default());
                let put =
                    Snapshot { name, id, kind, parent, labels, created, updated, usage, listed };
                Ok(Change { removed: None, put: Some(put) })
            }
            Command::Place { id, name, parent, labels, usage } => {
                let labels = labels.checked()?;
                self.may_create(&name, Kind::Active, &parent)?;
                assert!(!self.ids.contains(&id), "id {id} is given twice");
                let (kind, created, updated) = (Kind::Committed, now, now);
                let listed = Listed::default();
                let put =
                    Snapshot { name, id, kind, parent, labels, created, updated, usage, listed };
                Ok(Change { removed: None, put: Some(put) })
            }
            Command::Commit { name, key, labels, parent, usage } => {
                self.commit(name, &key, labels, parent, usage, now)
            }
            Command::Update { name, labels, mask } => {
                let mut snapshot = self.stat(&name)?.clone();
                mask.apply(&mut snapshot.labels, labels)?;
                snapshot.updated = now;
                Ok(Change { removed: None, put: Some(snapshot) })
            }
            Command::Remove { name } => {
                self.stat(&name)?;
                if self.children.get(&name).is_some_and(|&count| count > 0) {
                    return Err(Refusal::Precondition(format!(
                        "cannot remove snapshot {name:?} with children"
                    )));
                }
                Ok(Change { removed: Some(name), put: None })
            }
        }
    }

    /// Make a granted change, once it is durable.
    pub fn apply(&mut self, change: Change) {
        if let Some(name) = change.removed {
            self.take(&name);
        }
        if let Some(snapshot) = change.put {
            self.take(&snapshot.name);
            self.put(snapshot);
        }
    }

    fn put(&mut self, snapshot: Snapshot) {
        self.last_id = self.last_id.max(snapshot.id);
        self.ids.insert(snapshot.id);
        if !snapshot.parent.is_empty() {
            *self.children.entry(snapshot.parent.clone()).or_default() += 1;
        }
        if let Some(layer) = layer_key(&snapshot) {
            self.layers.entry(layer).or_default().insert(snapshot.name.clone());
        }
        self.snapshots.insert(snapshot.name.clone(), Arc::new(snapshot));
    }

    fn take(&mut self, name: &str) {
        let Some(snapshot) = self.snapshots.remove(name) else { return };
        self.ids.remove(&snapshot.id);
        if let Some(count) = self.children.get_mut(&snapshot.parent) {
            *count -= 1;
            if *count == 0 {
                self.children.remove(&snapshot.parent);
            }
        }
        if let Some(layer) = layer_key(&snapshot)
            && let Some(names) = self.layers.get_mut(&layer)
        {
            names.remove(name);
            if names.is_empty() {
                self.layers.remove(&layer);
            }
        }
    }

    fn commit(
        &self,
        name: String,
        key: &str,
        labels: Labels,
        parent: String,
        usage: Usage,
        now: SystemTime,
    ) -> Result<Change, Refusal> {
        if name.is_empty() {
            return Err(Refusal::Invalid("snapshot name is empty".to_owned()));
        }
        if self.get(&name).is_some() {
            return Err(Refusal::AlreadyExists(name));
        }
        let active = self.stat(key)?;
        if active.kind != Kind::Active {
            return Err(Refusal::Precondition(format!(
                "snapshot {key:?} is {}, not active",
                active.kind.name()
            )));
        }
        let parent = self.parent_at_commit(active, parent)?;
        let labels = labels.checked()?;
        let kind = Kind::Committed;
        let id = active.id;
        let (created, updated, listed) = (now, now, Listed::default());
        let snapshot = Snapshot { name, id, kind, parent, labels, created, updated, usage, listed };
        Ok(Change { removed: Some(key.to_owned()), put: Some(snapshot) })
    }

    /// The parent after a commit: kept, confirmed, or adopted by a snapshot that has none.
    fn parent_at_commit(&self, active: &Snapshot, wanted: String) -> Result<String, Refusal> {
        if wanted.is_empty() || wanted == active.parent {
            return Ok(active.parent.clone());
        }
        if !active.parent.is_empty() {
            return Err(Refusal::Invalid(format!(
                "snapshot {:?} has parent {:?}, commit names {wanted:?}",
                active.name, active.parent
            )));
        }
        match self.stat(&wanted)?.kind {
            Kind::Committed => Ok(wanted),
            kind => Err(Refusal::Precondition(format!(
                "parent {wanted:?} is {}, not committed",
                kind.name()
            ))),
        }
    }
}

/// What [`State::layer`] finds a snapshot by.
fn layer_key(snapshot: &Snapshot) -> Option<(String, String)> {
    let chain = snapshot.labels.get(labels::TARGET)?;
    (snapshot.kind == Kind::Committed).then(|| (chain.to_owned(), snapshot.parent.clone()))
}
