//! Mounts of an earlier process, taken over.
//!
//! ```text
//! hold ─▶ record + descriptors ─┬─ complete, and the same layers ─▶ adopted: served on, nobody noticed
//! disk ─▶ abandoned record ─────┤  (without sessions: the kernel serves it alone)
//!                               └─ anything else ─▶ taken out of the tree; who still reads gets errors
//! ```

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use spanfs_cache::Content;
use spanfs_layer::{Digest, Tree};

use crate::filesystem::Filesystem;
use crate::front::inode::Inodes;
use crate::hold::{Holding, Name};
use crate::kept::Kept;
use crate::mount::{Mount, Shown};
use crate::mounter::{Layer, MountError, Mounter, state};
use crate::record::{self, Contents, Record};
use crate::shortcuts::Shortcuts;
use crate::transport::{Live, Privilege};
use crate::{mountinfo, unmount};

/// A mount of an earlier process. Dropped, it waits for another successor; the requests of its readers
/// wait as well.
pub struct Inherited {
    record: Record,
    contents: Contents,
    live: Vec<(Live, Vec<Name>)>,
    /// What the record is called in the hold.
    names: Vec<Name>,
    holding: Option<Holding>,
    privilege: Privilege,
}

/// All mounts of an earlier process, by where they were mounted.
#[derive(Default)]
pub struct Inheritance(Mutex<HashMap<PathBuf, Vec<Inherited>>>);

impl Inheritance {
    /// Those that were mounted at a place, a canonical path; given out once. More than one where a
    /// mount was replaced while it was in use.
    pub fn at(&self, mount_point: &Path) -> Vec<Inherited> {
        self.0.lock().remove(mount_point).unwrap_or_default()
    }

    /// Whether anything that is mounted there belongs to one of them.
    pub fn has_mounted(&self, place: &Path) -> bool {
        let all = self.0.lock();
        all.values().flatten().any(|it| it.contents.mounted.iter().any(|mounted| mounted == place))
    }

    /// Number of mounts.
    pub fn count(&self) -> usize {
        self.0.lock().values().map(Vec::len).sum()
    }

    /// End those that nobody wants.
    pub fn discard(&self) {
        self.0.lock().drain().flat_map(|(_, all)| all).for_each(Inherited::discard);
    }
}

/// What one mount left with the holder.
#[derive(Default)]
struct Group(BTreeMap<String, (Name, Arc<OwnedFd>)>);

impl Mounter {
    /// Mounts of earlier processes that can be adopted. What else they left is cleaned away, but for
    /// records that can't be read; those of living processes are not looked at.
    pub fn inherit(&self, privilege: Privilege) -> Result<Inheritance, MountError> {
        let mut mounts: HashMap<PathBuf, Vec<Inherited>> = HashMap::new();
        let mut add = |it: Inherited| {
            mounts.entry(it.contents.places.mount_point.clone()).or_default().push(it);
        };
        if let Some(holding) = &self.options().holding {
            self.held(holding, privilege)?.into_iter().for_each(&mut add);
        }
        let records = self.options().records();
        let orphans = record::orphans(&records);
        let orphans = orphans.map_err(|error| state("read the records in", &records, error))?;
        let is_mounted = mounted_places()?;
        for orphan in orphans {
            let (live, names, holding) = (Vec::new(), Vec::new(), None);
            let record::Orphan { record, contents } = orphan;
            let by_kernel = contents.is_complete
                && contents.sessions.is_empty()
                && contents.mounted.iter().all(|place| is_mounted(place));
            let inherited = Inherited { record, contents, live, names, holding, privilege };
            if by_kernel { add(inherited) } else { inherited.discard() }
        }
        Ok(Inheritance(Mutex::new(mounts)))
    }

    fn held(&self, holding: &Holding, privilege: Privilege) -> Result<Vec<Inherited>, MountError> {
        let records = self.options().records();
        let taken =
            holding.take().map_err(|error| state("take mounts kept for", &records, error))?;
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        for (name, role, descriptor) in taken {
            let kept_as = holding.name(&name, &role);
            let kept_as =
                kept_as.map_err(|error| state("name what is kept for", &records, error))?;
            groups.entry(name).or_default().0.insert(role, (kept_as, Arc::new(descriptor)));
        }
        let mut found = Vec::new();
        for (name, mut group) in groups {
            let names: Vec<Name> = group.0.values().map(|(name, _)| name.clone()).collect();
            let let_go = || names.iter().for_each(|name| holding.hold.release(name));
            let Some((record_name, file)) = group.0.remove("record") else {
                let_go(); // Its maker died before it was made; the record on disk tells what to clean.
                continue;
            };
            let file = Arc::into_inner(file).expect("nobody else has it");
            let record = Record::resume(&records, &name, file);
            let contents = match record.read() {
                Ok(contents) => contents,
                Err(error) => {
                    tracing::error!(
                        "mount {name} can't be taken over, its readers get errors: {error}"
                    );
                    let_go();
                    continue;
                }
            };
            let live: Option<Vec<_>> =
                (0..contents.sessions.len()).map(|number| group.session(number)).collect();
            let is_whole = live.is_some() && contents.is_complete;
            let inherited = Inherited {
                record,
                contents,
                live: live.unwrap_or_default(),
                names: vec![record_name],
                holding: Some(holding.clone()),
                privilege,
            };
            if is_whole {
                found.push(inherited);
            } else {
                let_go();
                inherited.discard();
            }
        }
        Ok(found)
    }

    /// Go on with a mount of [`Self::layer`] or [`Self::image`]. If it does not show these layers, it
    /// ends, and that is an error.
    pub fn adopt(&self, inherited: Inherited, layers: &[Layer]) -> Result<Mount, MountError> {
        let same: Vec<String> = layers.iter().map(identity).collect();
        let over_fuse = layers.iter().zip(&inherited.contents.shown);
        let over_fuse = over_fuse.filter(|(_, (how, _))| *how == Shown::ErofsOverFuse);
        let fronts = over_fuse.enumerate().map(|(number, (layer, _))| {
            // Whether there are as many sessions is seen to with all else.
            let index = inherited.live.get(number).and_then(|(live, _)| live.index.as_ref());
            let shortcuts = index.and_then(|index| resume_shortcuts(index, layer));
            let one_file = self.one_file(layer).with_shortcuts(shortcuts.clone());
            Front { filesystem: Arc::new(one_file), shortcuts }
        });
        let fronts: Vec<Front> = fronts.collect();
        self.go_on(inherited, &same, fronts)
    }

    /// The same for a mount of [`Self::inodes`].
    pub fn adopt_inodes(
        &self,
        inherited: Inherited,
        tree: Arc<Tree>,
        layers: Vec<(String, Arc<dyn Content>)>,
    ) -> Result<Mount, MountError> {
        let same = [identity_of_tree(&tree, &layers)];
        let filesystem = Arc::new(Inodes::new(tree, layers)?);
        self.go_on(inherited, &same, vec![Front { filesystem, shortcuts: None }])
    }

    fn go_on(
        &self,
        inherited: Inherited,
        same: &[String],
        fronts: Vec<Front>,
    ) -> Result<Mount, MountError> {
        let shown = &inherited.contents.shown;
        let is_same = shown.len() == same.len()
            && shown.iter().zip(same).all(|((_, before), now)| before == now)
            && inherited.live.len() == fronts.len();
        if !is_same {
            let mount_point = inherited.contents.places.mount_point.clone();
            inherited.discard();
            return Err(MountError::NotTheSame { mount_point });
        }
        let Inherited { record, contents, live, names, holding, privilege } = inherited;
        record.claim();
        let kept = Kept::new(record, holding, self.left());
        kept.resume_record(names);
        let mut mount = Mount::resumed(privilege, contents.places.staging, kept, contents.mounted);
        let mut shortcuts = Vec::new();
        for (((live, names), front), record) in live.into_iter().zip(fronts).zip(&contents.sessions)
        {
            let session = self.server().resume(front.filesystem, record, live.clone())?;
            mount.served_on(session, &live, names);
            shortcuts.push(front.shortcuts);
        }
        let mut shortcuts = shortcuts.into_iter();
        for (how, _) in &contents.shown {
            mount.shows(*how);
            if *how != Shown::ErofsDirect {
                mount.has_shortcuts(shortcuts.next().flatten());
            }
        }
        Ok(mount)
    }
}

/// What serves a session of a predecessor from now on.
struct Front {
    filesystem: Arc<dyn Filesystem>,
    shortcuts: Option<Arc<Shortcuts>>,
}

/// What was led past us stays so; without these nothing more is.
fn resume_shortcuts(index: &Arc<OwnedFd>, layer: &Layer) -> Option<Arc<Shortcuts>> {
    match Shortcuts::resume(Arc::clone(index), Arc::clone(&layer.content)) {
        Ok(Some(shortcuts)) => return Some(shortcuts),
        Ok(None) => tracing::info!(layer = layer.name, "the layer stands in another file now"),
        Err(error) => tracing::warn!(layer = layer.name, %error, "its index can't be read"),
    }
    None
}

impl Group {
    fn session(&mut self, number: usize) -> Option<(Live, Vec<Name>)> {
        let mut part = |role: &str| self.0.remove(&format!("{role}-{number}"));
        let parts: BTreeMap<&str, _> =
            Live::ROLES.into_iter().filter_map(|role| Some((role, part(role)?))).collect();
        let live = Live::of(|role| parts.get(role).map(|(_, descriptor)| Arc::clone(descriptor)))?;
        Some((live, parts.into_values().map(|(name, _)| name).collect()))
    }
}

impl Inherited {
    /// How each layer is shown, the lowest first.
    pub fn layers(&self) -> impl Iterator<Item = Shown> {
        self.contents.shown.iter().map(|(how, _)| *how)
    }

    /// Whether its own place still shows it. If not, somebody who uses it is all that is left.
    pub fn is_in_tree(&self) -> bool {
        self.contents.mounted.contains(&self.contents.places.mount_point)
    }

    /// End it: it leaves the tree, and whoever still uses it gets errors.
    pub fn discard(self) {
        let Self { record, contents, live, names, holding, privilege } = self;
        // What replaced it at its place is another's.
        let outcome = match contents.is_complete {
            true => contents
                .mounted
                .iter()
                .rev()
                .try_for_each(|place| unmount::detach(place, privilege)),
            false => record::clean(&contents.places, privilege),
        };
        record::remove_staging(&contents.places.staging);
        match outcome {
            Ok(()) => record.claim(),
            Err(error) => {
                tracing::warn!("mount at {} stays: {error}", contents.places.mount_point.display());
            }
        }
        if let Some(holding) = holding {
            let of_sessions = live.iter().flat_map(|(_, names)| names);
            names.iter().chain(of_sessions).for_each(|name| holding.hold.release(name));
        }
    }
}

/// Whether something is mounted at a place right now.
fn mounted_places() -> Result<impl Fn(&Path) -> bool, MountError> {
    let path = Path::new("/proc/self/mountinfo");
    let mounts = mountinfo::mounts().map_err(|error| state("read", path, error))?;
    Ok(move |place: &Path| mounts.iter().any(|mount| mount.mount_point == place))
}

/// What must be the same of a layer for its mount to be served on: offsets mean the same bytes.
pub(crate) fn identity(layer: &Layer) -> String {
    let copies: Vec<u8> = layer
        .copies
        .iter()
        .flat_map(|copy| [copy.to.0, copy.from.start.0, copy.from.end.0])
        .flat_map(u64::to_le_bytes)
        .collect();
    format!("{} {} {}", layer.name, layer.data_len, Digest::of(&copies))
}

/// The same for a tree: inode numbers mean the same files.
pub(crate) fn identity_of_tree(tree: &Tree, layers: &[(String, Arc<dyn Content>)]) -> String {
    let names: Vec<&str> = layers.iter().map(|(name, _)| name.as_str()).collect();
    format!("{} {}", tree.node_count(), names.join(" "))
}
