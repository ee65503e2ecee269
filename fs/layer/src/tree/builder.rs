//! Entries applied one after the other, as containerd's applier does to an empty directory.

use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::hash::BuildHasher as _;
use core::mem;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::path::{self, Above};
use super::xattr::{self, XattrInterner};
use super::{
    Fault, IMPLIED, Inode, Landmarks, NodeKind, OPAQUE, PENDING, SPARSE, TreeError, TreeOptions,
    WHITEOUT, Whiteouts, pair,
};
use crate::{Kind, Record, SparseSegment, Time, whiteout};

/// Builds the tree of one layer from its records in archive order.
#[derive(Debug)]
pub struct TreeBuilder {
    pub(super) options: TreeOptions,
    /// Inodes made so far; those that lost their last name stay until the end.
    pub(super) inodes: Vec<Inode>,
    pub(super) slots: Vec<Slot>,
    /// Hash of directory and name, kept so that growing need not visit names again; slot.
    index: HashTable<(u32, u32)>,
    hasher: DefaultHashBuilder,
    pub(super) text: Vec<u8>,
    pub(super) segments: Vec<SparseSegment>,
    pub(super) xattrs: XattrInterner,
    pub(super) pending: Vec<Pending>,
    last_parent: LastParent,
    scratch: Vec<u8>,
}

/// One name in a directory. A replaced name keeps its slot; the names in a replaced directory stay
/// behind under an inode that nothing names any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) directory: u32,
    pub(super) name_at: u32,
    pub(super) inode: u32,
    pub(super) name_len: u8,
    /// The layer also has a whiteout of this name.
    pub(super) whiteout: bool,
}

/// Hard link whose target had not been seen.
#[derive(Debug)]
pub(super) struct Pending {
    /// Name of the entry as stored.
    pub(super) entry: Vec<u8>,
    /// Target as stored.
    pub(super) target: Vec<u8>,
    /// What it turned out to be.
    pub(super) inode: Option<u32>,
}

/// Where the last entry lay: the next one mostly lies there too.
#[derive(Debug, Default)]
struct LastParent {
    path: Vec<u8>,
    found: Option<Parent>,
}

#[derive(Clone, Copy, Debug)]
enum Parent {
    Shown(u32),
    /// Lies in a directory with a reserved name.
    Hidden,
}

pub(super) const ROOT: u32 = 0;
/// As many as containerd follows.
const SYMLINKS_MAX: u32 = 255;
/// Containerd clamps what does not fit into 63 bits of nanoseconds.
const MTIME_MAX: Time = Time { seconds: i64::MAX / 1_000_000_000, nanoseconds: 854_775_807 };
const ID_MAX: u64 = u32::MAX as u64 - 1;
const TEXT_BYTES_MAX: u64 = u32::MAX as u64;
const SET_GID: u16 = 0o2000;
const CAPABILITY: &[u8] = b"security.capability";
const LANDMARKS: [&[u8]; 3] =
    [b".prefetch.landmark", b".no.prefetch.landmark", b"stargz.index.json"];

impl TreeBuilder {
    /// A layer without entries: its root is there, 0755 and 0:0.
    pub fn new(options: TreeOptions) -> Self {
        Self {
            options,
            inodes: [Inode::directory(ROOT, 0)].to_vec(),
            slots: Vec::new(),
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            text: Vec::new(),
            segments: Vec::new(),
            xattrs: XattrInterner::new(),
            pending: Vec::new(),
            last_parent: LastParent::default(),
            scratch: Vec::new(),
        }
    }

    /// Applies the next entry.
    ///
    /// An entry for the root itself changes nothing. After an error the entry is not applied (its
    /// missing parents may have been), and building can go on without it.
    pub fn push(&mut self, record: &Record) -> Result<(), TreeError> {
        let mut clean = mem::take(&mut self.scratch);
        clean.clear();
        path::clean(&record.name, Above::Root, &mut clean);
        let outcome = self.apply(&clean, record);
        self.scratch = clean;
        outcome.map_err(|fault| TreeError { entry: record.name.clone(), fault })
    }

    fn apply(&mut self, clean: &[u8], record: &Record) -> Result<(), Fault> {
        if clean.is_empty() {
            return Ok(());
        }
        let (parent, name) = path::split_last(clean);
        path::check_len(clean)?;
        path::check(name)?;
        let Parent::Shown(directory) = self.parent(parent)? else { return Ok(()) };
        match whiteout::Name::of(name) {
            whiteout::Name::Plain => self.apply_plain(directory, name, record),
            whiteout::Name::Whiteout(target) => self.apply_whiteout(directory, target, record),
            whiteout::Name::Opaque => {
                self.mark_opaque(directory);
                Ok(())
            }
            whiteout::Name::Aufs => Ok(()),
            whiteout::Name::Invalid => Err(Fault::BadWhiteout),
        }
    }

    fn parent(&mut self, path: &[u8]) -> Result<Parent, Fault> {
        if let Some(found) = self.last_parent.found
            && self.last_parent.path == path
        {
            return Ok(found);
        }
        path::check(path)?;
        let found = match whiteout::before_reserved(path) {
            Some(shown) => {
                self.make_directories(shown)?;
                Parent::Hidden
            }
            None => Parent::Shown(self.make_directories(path)?),
        };
        self.last_parent.path.clear();
        self.last_parent.path.extend_from_slice(path);
        self.last_parent.found = Some(found);
        Ok(found)
    }

    fn apply_plain(&mut self, directory: u32, name: &[u8], record: &Record) -> Result<(), Fault> {
        let hide = self.options.landmarks == Landmarks::Hide;
        if hide && directory == ROOT && LANDMARKS.contains(&name) {
            return Ok(());
        }
        if record.kind == Kind::Hardlink {
            return self.apply_hard_link(directory, name, record);
        }
        let mut inode = self.inode_of(record)?;
        let xattrs = shown_xattrs(record, inode.kind());
        let old = self.find(directory, name);
        let old_inode = old.and_then(|slot| self.slot_inode(slot));
        if inode.kind() == NodeKind::Directory
            && let Some((at, old)) = old_inode
            && old.is_directory()
        {
            let xattrs = self.xattrs.union(old.xattrs, xattrs)?;
            let (place, size, flags) = (old.place, old.size, old.flags & !IMPLIED);
            self.set_inode(at, Inode { place, size, flags, xattrs, ..inode });
            return Ok(());
        }
        inode.xattrs = self.xattrs.intern(xattrs)?;
        if inode.kind() == NodeKind::Directory {
            self.place_directory(&mut inode, directory)?;
        }
        let number = self.add_inode(inode)?;
        self.name(directory, name, old, number)
    }

    /// A hard link shares the inode of its target. Its own header then says what the inode's attributes
    /// are, as with containerd, which sets them through every name; GNU tar would leave the target's. Of a
    /// target that comes later, they stay: containerd refuses such a layer.
    fn apply_hard_link(
        &mut self,
        directory: u32,
        name: &[u8],
        record: &Record,
    ) -> Result<(), Fault> {
        let old = self.find(directory, name);
        let target = self.find_path(&record.link)?.filter(|&slot| Some(slot) != old);
        let shared = match target.and_then(|slot| self.slot_inode(slot)) {
            Some((_, inode)) if inode.is_directory() => {
                return Err(Fault::LinkToDirectory { target: record.link.clone() });
            }
            Some((at, inode)) if !inode.has(WHITEOUT) => {
                self.set_attributes(at, inode, record)?;
                at
            }
            _ => {
                let place = self.pending.len() as u64;
                let (entry, target) = (record.name.clone(), record.link.clone());
                let pending = Inode { place, flags: PENDING, ..Inode::directory(ROOT, 0) };
                let at = self.add_inode(pending)?;
                self.pending.push(Pending { entry, target, inode: None });
                at
            }
        };
        self.name(directory, name, old, shared)
    }

    fn set_attributes(&mut self, at: u32, old: Inode, record: &Record) -> Result<(), Fault> {
        let new = attributes_of(record)?;
        // A change of the owner takes file capabilities away, also where it is the same as before.
        let kept = self.xattrs.without(old.xattrs, CAPABILITY)?;
        let xattrs = self.xattrs.union(kept, shown_xattrs(record, old.kind()))?;
        let mode = match old.kind() {
            NodeKind::Symlink => old.mode,
            kind => kind.mode_bits() | (record.mode & 0o7777) as u16,
        };
        let Inode { uid, gid, mtime_seconds, mtime_nanoseconds, .. } = new;
        self.set_inode(
            at,
            Inode { uid, gid, mtime_seconds, mtime_nanoseconds, mode, xattrs, ..old },
        );
        Ok(())
    }

    /// A whiteout gives way to an entry of the same layer, before or after it; a directory then
    /// hides what lower layers hold in it.
    fn apply_whiteout(
        &mut self,
        directory: u32,
        target: &[u8],
        record: &Record,
    ) -> Result<(), Fault> {
        if self.options.whiteouts == Whiteouts::Suppress {
            return Ok(());
        }
        if let Some(slot) = self.find(directory, target) {
            if let Some(slot) = self.slots.get_mut(slot as usize) {
                slot.whiteout = true;
            }
            return Ok(());
        }
        let mode = NodeKind::CharDevice.mode_bits();
        let attributes = attributes_of(record)?;
        let inode = Inode { mode, flags: WHITEOUT, place: 0, size: 0, ..attributes };
        let number = self.add_inode(inode)?;
        self.name(directory, target, None, number)?;
        if let Some(slot) = self.slots.last_mut() {
            slot.whiteout = true;
        }
        Ok(())
    }

    fn mark_opaque(&mut self, directory: u32) {
        if self.options.whiteouts == Whiteouts::Show
            && let Some(inode) = self.inodes.get_mut(directory as usize)
        {
            inode.flags |= OPAQUE;
        }
    }

    /// What an entry other than a hard link says of its inode, the xattrs apart.
    fn inode_of(&mut self, record: &Record) -> Result<Inode, Fault> {
        let mut inode = attributes_of(record)?;
        match inode.kind() {
            NodeKind::Regular => match &record.sparse {
                None => inode.size = record.size,
                Some((size, runs)) => {
                    inode.size = *size;
                    inode.flags |= SPARSE;
                    inode.place = self.add_runs(*size, runs)?;
                }
            },
            NodeKind::Symlink => {
                check_target(&record.link)?;
                inode.place = self.add_text(&record.link)?.into();
                inode.size = record.link.len() as u64;
            }
            NodeKind::CharDevice | NodeKind::BlockDevice => inode.place = device_of(record)?,
            NodeKind::Directory | NodeKind::Fifo => {}
        }
        if inode.kind() == NodeKind::Regular {
            let end = record.data.0.checked_add(inode.size);
            if inode.size > i64::MAX as u64 || end.is_none() {
                return Err(out_of_range("size", inode.size.into(), i64::MAX as u64));
            }
        }
        Ok(inode)
    }

    fn add_runs(&mut self, size: u64, runs: &[SparseSegment]) -> Result<u64, Fault> {
        let first = self.segments.len();
        let mut end = 0;
        for run in runs {
            let run_end = run.file.0.checked_add(run.len).filter(|&end| end <= size);
            let in_tar = run.data.0.checked_add(run.len);
            let (Some(run_end), true, Some(_)) = (run_end, run.file.0 >= end, in_tar) else {
                self.segments.truncate(first);
                return Err(Fault::BadSparse { at: run.file.0, size });
            };
            end = run_end;
            if run.len > 0 {
                self.segments.push(*run);
            }
        }
        let max = u64::from(u32::MAX);
        if self.segments.len() as u64 > max {
            return Err(Fault::TooMany { what: "sparse runs", max });
        }
        Ok(pair(first as u32, (self.segments.len() - first) as u32))
    }

    /// Follows the directories of a clean path, symlinks inside the root included, and makes the
    /// missing ones.
    fn make_directories(&mut self, clean: &[u8]) -> Result<u32, Fault> {
        let mut walk = Walk::new(clean);
        loop {
            match self.step(&mut walk)? {
                Step::Arrived => return Ok(walk.at),
                Step::Down(inode) => walk.at = inode,
                Step::Missing { name, slot } => {
                    let gid = self.inherited_gid(walk.at);
                    let implied = Inode::directory(walk.at, 0);
                    let mut inode = Inode { flags: IMPLIED, gid, ..implied };
                    self.place_directory(&mut inode, walk.at)?;
                    let number = self.add_inode(inode)?;
                    self.name(walk.at, &name, slot, number)?;
                    walk.at = number;
                }
            }
        }
    }

    /// Group of a directory made in that one, as the kernel has it.
    fn inherited_gid(&self, directory: u32) -> u32 {
        let parent = self.inodes.get(directory as usize);
        parent.filter(|parent| parent.mode & SET_GID != 0).map_or(0, |parent| parent.gid)
    }

    /// Slot that a hard link's target names; its last component is not followed.
    pub(super) fn find_path(&self, target: &[u8]) -> Result<Option<u32>, Fault> {
        let mut clean = Vec::new();
        path::clean(target, Above::Root, &mut clean);
        if clean.is_empty() {
            return Err(Fault::LinkToDirectory { target: target.to_vec() });
        }
        path::check(&clean)?;
        let (parent, name) = path::split_last(&clean);
        let mut walk = Walk::new(parent);
        loop {
            match self.step(&mut walk)? {
                Step::Arrived => return Ok(self.find(walk.at, name)),
                Step::Down(inode) => walk.at = inode,
                Step::Missing { .. } => return Ok(None),
            }
        }
    }

    fn step(&self, walk: &mut Walk<'_>) -> Result<Step, Fault> {
        loop {
            let rest = walk.path.get(walk.from..).unwrap_or_default();
            let Some((name, rest)) = path::split_first(rest) else { return Ok(Step::Arrived) };
            let from = walk.path.len() - rest.len();
            if name == b".." {
                let parent = self.inodes.get(walk.at as usize).map_or(0, |inode| inode.size);
                walk.at = parent as u32;
                walk.from = from;
                continue;
            }
            let slot = self.find(walk.at, name);
            let found = slot.and_then(|slot| self.slot_inode(slot));
            match found {
                Some((at, inode)) if inode.is_directory() => {
                    walk.from = from;
                    return Ok(Step::Down(at));
                }
                Some((_, inode)) if inode.kind() == NodeKind::Symlink => {
                    let target = self.link(&inode);
                    let mut longer = Vec::with_capacity(target.len() + rest.len() + 1);
                    path::clean(target, Above::Keep, &mut longer);
                    path::append(&mut longer, rest);
                    walk.follow(longer, target.starts_with(b"/"))?;
                }
                Some((_, inode)) if !inode.has(WHITEOUT) => {
                    return Err(Fault::NotADirectory { component: name.to_vec() });
                }
                _ => {
                    let name = name.to_vec();
                    walk.from = from;
                    return Ok(Step::Missing { name, slot });
                }
            }
        }
    }

    pub(super) fn link(&self, inode: &Inode) -> &[u8] {
        let tail = self.text.get(inode.place as usize..).unwrap_or_default();
        tail.get(..inode.size as usize).unwrap_or_default()
    }

    pub(super) fn slot_name(&self, slot: &Slot) -> &[u8] {
        let tail = self.text.get(slot.name_at as usize..).unwrap_or_default();
        tail.get(..usize::from(slot.name_len)).unwrap_or_default()
    }

    pub(super) fn slot_inode(&self, slot: u32) -> Option<(u32, Inode)> {
        let slot = self.slots.get(slot as usize)?;
        Some((slot.inode, *self.inodes.get(slot.inode as usize)?))
    }

    fn find(&self, directory: u32, name: &[u8]) -> Option<u32> {
        let hash = self.hash(directory, name);
        let same = |&(found, slot): &(u32, u32)| {
            let slot = self.slots.get(slot as usize).filter(|_| found == hash);
            slot.is_some_and(|slot| slot.directory == directory && self.slot_name(slot) == name)
        };
        self.index.find(spread(hash), same).map(|&(_, slot)| slot)
    }

    fn hash(&self, directory: u32, name: &[u8]) -> u32 {
        self.hasher.hash_one((directory, name)) as u32
    }

    /// Lets `name` in `directory` mean `inode`, whatever it meant before.
    fn name(
        &mut self,
        directory: u32,
        name: &[u8],
        old: Option<u32>,
        inode: u32,
    ) -> Result<(), Fault> {
        if let Some(slot) = old.and_then(|slot| self.slots.get_mut(slot as usize)) {
            slot.inode = inode;
            self.last_parent.found = None;
            return Ok(());
        }
        let max = self.options.entries_max;
        if self.slots.len() >= max as usize {
            return Err(Fault::TooMany { what: "names", max: max.into() });
        }
        let max = path::NAME_BYTES_MAX;
        let too_long = Fault::TooLong { what: "name", found: name.len(), max };
        let name_len = u8::try_from(name.len()).map_err(|_| too_long)?;
        let name_at = self.add_text(name)?;
        let hash = self.hash(directory, name);
        let slot = self.slots.len() as u32;
        self.slots.push(Slot { directory, name_at, inode, name_len, whiteout: false });
        self.index.insert_unique(spread(hash), (hash, slot), |&(hash, _)| spread(hash));
        Ok(())
    }

    fn place_directory(&self, inode: &mut Inode, parent: u32) -> Result<(), Fault> {
        let depth = self.inodes.get(parent as usize).map_or(0, |inode| inode.place) + 1;
        let max = u64::from(self.options.depth_max);
        if depth > max {
            return Err(Fault::TooMany { what: "directories one inside the other", max });
        }
        inode.place = depth;
        inode.size = parent.into();
        Ok(())
    }

    fn add_inode(&mut self, inode: Inode) -> Result<u32, Fault> {
        let max = self.options.entries_max;
        if self.inodes.len() > max as usize {
            return Err(Fault::TooMany { what: "inodes", max: max.into() });
        }
        self.inodes.push(inode);
        Ok(self.inodes.len() as u32 - 1)
    }

    fn set_inode(&mut self, at: u32, inode: Inode) {
        if let Some(old) = self.inodes.get_mut(at as usize) {
            *old = inode;
        }
    }

    fn add_text(&mut self, text: &[u8]) -> Result<u32, Fault> {
        let at = self.text.len();
        if (at + text.len()) as u64 > TEXT_BYTES_MAX {
            return Err(Fault::TooMany { what: "bytes of names", max: TEXT_BYTES_MAX });
        }
        self.text.extend_from_slice(text);
        Ok(at as u32)
    }
}

/// A path on its way: what is left of it lies behind `from`.
struct Walk<'a> {
    at: u32,
    path: Cow<'a, [u8]>,
    from: usize,
    symlinks: u32,
}

enum Step {
    Arrived,
    Down(u32),
    Missing { name: Vec<u8>, slot: Option<u32> },
}

impl<'a> Walk<'a> {
    fn new(path: &'a [u8]) -> Self {
        Self { at: ROOT, path: Cow::Borrowed(path), from: 0, symlinks: 0 }
    }

    fn follow(&mut self, path: Vec<u8>, is_absolute: bool) -> Result<(), Fault> {
        self.symlinks += 1;
        if self.symlinks > SYMLINKS_MAX {
            return Err(Fault::TooManySymlinks { max: SYMLINKS_MAX });
        }
        if is_absolute {
            self.at = ROOT;
        }
        self.path = Cow::Owned(path);
        self.from = 0;
        Ok(())
    }
}

/// The table takes its place from the low bits and its tag from the high ones.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

fn attributes_of(record: &Record) -> Result<Inode, Fault> {
    let kind = match record.kind {
        Kind::Regular | Kind::Hardlink => NodeKind::Regular,
        Kind::Directory => NodeKind::Directory,
        Kind::Symlink => NodeKind::Symlink,
        Kind::CharDevice => NodeKind::CharDevice,
        Kind::BlockDevice => NodeKind::BlockDevice,
        Kind::Fifo => NodeKind::Fifo,
    };
    let permissions = match kind {
        NodeKind::Symlink => 0o777,
        _ => (record.mode & 0o7777) as u16,
    };
    let mtime = match record.mtime {
        time if time.seconds < 0 || time > MTIME_MAX => Time::default(),
        time => time,
    };
    Ok(Inode {
        mtime_seconds: mtime.seconds,
        mtime_nanoseconds: mtime.nanoseconds,
        place: record.data.0,
        size: 0,
        uid: id_of("uid", record.uid)?,
        gid: id_of("gid", record.gid)?,
        nlink: 0,
        xattrs: xattr::EMPTY_SET,
        mode: kind.mode_bits() | permissions,
        layer: 0,
        flags: 0,
    })
}

fn shown_xattrs(record: &Record, kind: NodeKind) -> Vec<(&[u8], &[u8])> {
    record.xattrs().filter(|&(name, value)| xattr::is_shown(name, value, kind)).collect()
}

fn check_target(target: &[u8]) -> Result<(), Fault> {
    let what = "symlink target";
    if target.is_empty() || target.contains(&0) {
        return Err(Fault::BadText { what });
    }
    if target.len() > path::PATH_BYTES_MAX {
        return Err(Fault::TooLong { what, found: target.len(), max: path::PATH_BYTES_MAX });
    }
    Ok(())
}

fn id_of(what: &'static str, found: i64) -> Result<u32, Fault> {
    let id = u32::try_from(found).ok().filter(|&id| u64::from(id) <= ID_MAX);
    id.ok_or(out_of_range(what, found.into(), ID_MAX))
}

/// Numbers of 32 bits are taken and cut to 12 and 20 bits, as mknod(2) does for containerd.
fn device_of(record: &Record) -> Result<u64, Fault> {
    let number = |what, found: i64| {
        u32::try_from(found).map_err(|_| out_of_range(what, found.into(), u32::MAX.into()))
    };
    let major = number("device major", record.devmajor)?;
    let minor = number("device minor", record.devminor)?;
    Ok(pair(major & 0xfff, minor & 0xf_ffff))
}

fn out_of_range(what: &'static str, found: i128, max: u64) -> Fault {
    Fault::OutOfRange { what, found, max }
}
