//! Files in a directory: a layer for machines that can't mount it, and for who asks for that.
//!
//! ```text
//! layer file, verified ─┐
//! tree ─▶ directories ──┴─▶ files, side by side ─▶ further names ─▶ attributes of directories
//! ```
//!
//! Everything is made new, by single names relative to a directory that we made and opened below the
//! root without following anything: whatever a tar says, nothing outside is reached. The outcome is
//! that of containerd's applier. The file system is flushed once, at the end.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid,
    XattrFlags, fallocate, makedev,
};
use rustix::io::Errno;
use spanfs_layer::tree::{Node, NodeId, NodeKind, Tree};

/// How to unpack.
#[derive(Clone, Copy, Debug)]
pub struct UnpackOptions<'a> {
    /// Threads that make files; one is enough for one core.
    pub threads: usize,
    /// Set it, and the work ends soon, in [`UnpackError::Stopped`].
    pub stop: &'a AtomicBool,
    /// What becomes of device nodes.
    pub devices: Devices,
}

/// Whether device nodes are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// As the layer says.
    Make,
    /// They are left out, as containerd does in a user namespace: nobody may make them there.
    LeaveOut,
}

/// Why a layer can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The file system refused.
    #[error("unpacking a layer: {doing} {}", path.display())]
    Disk {
        /// What was attempted.
        doing: &'static str,
        /// Path in the layer.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("unpacking a layer: starting a thread")]
    Thread(#[source] io::Error),
    /// Nobody wants it any more.
    #[error("unpacking a layer was stopped")]
    Stopped,
}

/// Unpack a layer, whose tar is `data`, into an empty directory. The directory itself is left as it is.
///
/// # Errors
/// What was made by then stays: remove the directory.
pub fn unpack(
    tree: &Tree,
    data: BorrowedFd<'_>,
    into: &Path,
    options: UnpackOptions<'_>,
) -> Result<(), UnpackError> {
    let failed = |source: io::Error| disk("opening", into)(source);
    let root = File::open(into).map_err(failed)?;
    let data = File::from(data.try_clone_to_owned().map_err(failed)?);
    let UnpackOptions { stop, devices, .. } = options;
    let work = Work { tree, data: &data, root: &root, stop, devices };
    let directories = work.make_directories()?;
    let next = AtomicUsize::new(0);
    let links = Mutex::new(Vec::new());
    // The first name of a file makes it, whichever thread that is; the others come afterwards.
    let made = (0..tree.node_count()).map(|_| AtomicBool::new(false)).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let run = || {
            let mut scratch = Scratch::default();
            while let Some((id, path)) = directories.get(next.fetch_add(1, Ordering::Relaxed)) {
                let further = work.fill(*id, path, &made, &mut scratch)?;
                links.lock().extend(further);
            }
            Ok(())
        };
        let threads = (1..options.threads.max(1)).map(|number| {
            let thread = std::thread::Builder::new().name(format!("unpack-{number}"));
            thread.spawn_scoped(scope, run).map_err(UnpackError::Thread)
        });
        let threads: Vec<_> = threads.collect();
        let mut outcome = run();
        for thread in threads {
            let ended = thread.and_then(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            outcome = outcome.and(ended);
        }
        outcome
    })?;
    work.link(&directories, links.into_inner())?;
    directories.iter().rev().try_for_each(|(id, path)| work.finish_directory(*id, path))?;
    rustix::fs::syncfs(&root).map_err(|errno| disk("flushing", into)(errno.into()))
}

fn disk(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UnpackError {
    let path = path.to_owned();
    move |source| UnpackError::Disk { doing, path, source }
}

/// What is at work for one layer.
struct Work<'a> {
    tree: &'a Tree,
    data: &'a File,
    root: &'a File,
    stop: &'a AtomicBool,
    devices: Devices,
}

/// Buffers of a thread.
#[derive(Default)]
struct Scratch {
    content: Vec<u8>,
    names: Vec<(NodeId, PathBuf)>,
}

/// A name that a file has beside its first.
struct Link {
    node: NodeId,
    path: PathBuf,
}

/// Content up to this is read and written by one call each; longer ones are copied by the kernel.
const SMALL_LEN: u64 = 256 << 10;

impl Work<'_> {
    /// Make all directories, parents first; with their paths.
    fn make_directories(&self) -> Result<Vec<(NodeId, PathBuf)>, UnpackError> {
        let mut directories = vec![(self.tree.root(), PathBuf::new())];
        let mut at = 0;
        while let Some((id, path)) = directories.get(at).cloned() {
            at += 1;
            self.check_stop()?;
            let inner: Vec<_> = self
                .tree
                .children(id)
                .filter(|(_, child)| self.kind(*child) == Some(NodeKind::Directory))
                .map(|(name, child)| (child, path.join(OsStr::from_bytes(name))))
                .collect();
            if inner.is_empty() {
                continue;
            }
            let directory = self.open(&path)?;
            for (child, path) in inner {
                let mode = Mode::from_raw_mode(0o755);
                rustix::fs::mkdirat(&directory, name_of(&path), mode)
                    .map_err(|errno| disk("making directory", &path)(errno.into()))?;
                directories.push((child, path));
            }
        }
        Ok(directories)
    }

    /// Make all that is in a directory, but directories. Returns names that files have beside their
    /// first.
    fn fill(
        &self,
        id: NodeId,
        path: &Path,
        made: &[AtomicBool],
        scratch: &mut Scratch,
    ) -> Result<Vec<Link>, UnpackError> {
        scratch.names.clear();
        let others = self.tree.children(id);
        let others = others.filter(|(_, child)| self.kind(*child) != Some(NodeKind::Directory));
        scratch.names.extend(others.map(|(name, id)| (id, path.join(OsStr::from_bytes(name)))));
        let mut links = Vec::new();
        if scratch.names.is_empty() {
            return Ok(links);
        }
        let directory = self.open(path)?;
        for (node, path) in std::mem::take(&mut scratch.names) {
            self.check_stop()?;
            let is_made = made.get(node.0 as usize);
            if is_made.is_some_and(|made| made.swap(true, Ordering::Relaxed)) {
                links.push(Link { node, path });
                continue;
            }
            let Some(node) = self.tree.node(node) else { continue };
            if self.is_left_out(node) {
                tracing::warn!(path = %path.display(), "device left out: this is a user namespace");
                continue;
            }
            self.make(&directory, node, &path, &mut scratch.content)?;
        }
        Ok(links)
    }

    fn make(
        &self,
        directory: &OwnedFd,
        node: Node<'_>,
        path: &Path,
        buffer: &mut Vec<u8>,
    ) -> Result<(), UnpackError> {
        let name = name_of(path);
        let at = |doing, errno: Errno| disk(doing, path)(errno.into());
        let kind = match node.kind() {
            NodeKind::Regular => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let flags = flags | OFlags::CLOEXEC;
                let mode = Mode::from_raw_mode(0o600);
                let file = rustix::fs::openat(directory, name, flags, mode);
                let file = File::from(file.map_err(|errno| at("making file", errno))?);
                self.copy(node, &file, buffer).map_err(disk("writing file", path))?;
                return self.finish(Place::Open(file.as_fd()), node, path);
            }
            NodeKind::Symlink => {
                let target = OsStr::from_bytes(node.link());
                let made = rustix::fs::symlinkat(target, directory, name);
                made.map_err(|errno| at("making symbolic link", errno))?;
                return self.finish(Place::Named(directory.as_fd(), name), node, path);
            }
            NodeKind::CharDevice => FileType::CharacterDevice,
            NodeKind::BlockDevice => FileType::BlockDevice,
            NodeKind::Fifo => FileType::Fifo,
            NodeKind::Directory => return Ok(()),
        };
        let (device, mode) = (node.device(), Mode::from_raw_mode(0o600));
        let device = makedev(device.major, device.minor);
        let made = rustix::fs::mknodat(directory, name, kind, mode, device);
        made.map_err(|errno| at("making device", errno))?;
        self.finish(Place::Named(directory.as_fd(), name), node, path)
    }

    /// Content, holes left open.
    fn copy(&self, node: Node<'_>, to: &File, buffer: &mut Vec<u8>) -> io::Result<()> {
        let len = node.size();
        let mut runs = 0;
        for extent in node.extents() {
            runs += 1;
            if extent.len > SMALL_LEN {
                reserve(to, extent.file.0, extent.len)?;
                copy_long(self.data, extent.data.0, to, extent.file.0, extent.len)?;
                continue;
            }
            // At most SMALL_LEN.
            buffer.resize(extent.len as usize, 0);
            self.data.read_exact_at(buffer, extent.data.0)?;
            to.write_all_at(buffer, extent.file.0)?;
        }
        // What no run covers is zeros.
        if runs != 1 { to.set_len(len) } else { Ok(()) }
    }

    /// Owner, attributes, mode and time, in the order in which one does not undo the other.
    fn finish(&self, place: Place<'_>, node: Node<'_>, path: &Path) -> Result<(), UnpackError> {
        let at = |doing, errno: Errno| disk(doing, path)(errno.into());
        let id = |id: u32| (id != u32::MAX).then_some(id);
        let (owner, group) = (id(node.uid()).map(Uid::from_raw), id(node.gid()).map(Gid::from_raw));
        let mode = Mode::from_raw_mode(node.permissions().into());
        let time = node.mtime();
        let time = Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        match place {
            Place::Open(file) => rustix::fs::fchown(file, owner, group),
            Place::Named(directory, name) => {
                rustix::fs::chownat(directory, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)
            }
        }
        .map_err(|errno| at("setting the owner of", errno))?;
        self.set_xattrs(place, node, path)?;
        match place {
            Place::Open(file) => {
                rustix::fs::fchmod(file, mode).map_err(|errno| at("setting the mode of", errno))?;
                rustix::fs::futimens(file, &times)
            }
            Place::Named(directory, name) => {
                if node.kind() != NodeKind::Symlink {
                    rustix::fs::chmodat(directory, name, mode, AtFlags::empty())
                        .map_err(|errno| at("setting the mode of", errno))?;
                }
                rustix::fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
        }
        .map_err(|errno| at("setting the time of", errno))
    }

    fn set_xattrs(&self, place: Place<'_>, node: Node<'_>, path: &Path) -> Result<(), UnpackError> {
        for (name, value) in node.xattrs() {
            match place.set_xattr(OsStr::from_bytes(name), value) {
                // As the applier does: what this file system can't hold is left out.
                Err(Errno::OPNOTSUPP) => {
                    let name = String::from_utf8_lossy(name);
                    tracing::warn!(path = %path.display(), %name, "attribute left out: not supported");
                }
                result => {
                    result.map_err(|errno| disk("setting an attribute of", path)(errno.into()))?
                }
            }
        }
        Ok(())
    }

    fn link(&self, directories: &[(NodeId, PathBuf)], links: Vec<Link>) -> Result<(), UnpackError> {
        if links.is_empty() {
            return Ok(());
        }
        // Any name that is not among the further ones is the first of its file.
        let further: std::collections::HashSet<&Path> =
            links.iter().map(|link| link.path.as_path()).collect();
        let wanted: std::collections::HashSet<u32> = links.iter().map(|link| link.node.0).collect();
        let mut first = std::collections::HashMap::new();
        for (id, path) in directories {
            for (name, child) in self.tree.children(*id) {
                if wanted.contains(&child.0) {
                    let path = path.join(OsStr::from_bytes(name));
                    if !further.contains(path.as_path()) {
                        first.insert(child.0, path);
                    }
                }
            }
        }
        for link in &links {
            self.check_stop()?;
            let is_left_out = self.tree.node(link.node).is_some_and(|node| self.is_left_out(node));
            let Some(from) = first.get(&link.node.0).filter(|_| !is_left_out) else { continue };
            let [old, new] = [from.as_path(), link.path.as_path()]
                .map(|path| self.open(path.parent().unwrap_or(Path::new(""))));
            let (old, new) = (old?, new?);
            let (name, new_name) = (name_of(from), name_of(&link.path));
            rustix::fs::linkat(&old, name, &new, new_name, AtFlags::empty())
                .map_err(|errno| disk("making hard link", &link.path)(errno.into()))?;
        }
        Ok(())
    }

    fn finish_directory(&self, id: NodeId, path: &Path) -> Result<(), UnpackError> {
        let Some(node) = self.tree.node(id) else { return Ok(()) };
        let is_plain = node.is_implied() || id == self.tree.root();
        if is_plain && node.gid() == 0 && node.xattrs().next().is_none() {
            return Ok(());
        }
        self.check_stop()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = self.open_with(path, flags)?;
        let place = Place::Open(directory.as_fd());
        if !is_plain {
            return self.finish(place, node, path);
        }
        // What no entry describes is as it was made, but for its group: its parent, which gives that,
        // was still ours then. And it may hide what lies below, as the root may, which otherwise is
        // whoever's asked for it.
        if id != self.tree.root() {
            rustix::fs::fchown(&directory, None, Some(Gid::from_raw(node.gid())))
                .map_err(|errno| disk("setting the group of", path)(errno.into()))?;
        }
        self.set_xattrs(place, node, path)
    }

    /// A directory that we made.
    fn open(&self, path: &Path) -> Result<OwnedFd, UnpackError> {
        self.open_with(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)
    }

    fn open_with(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, UnpackError> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let name = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        rustix::fs::openat2(self.root, name, flags, Mode::empty(), resolve)
            .map_err(|errno| disk("opening directory", path)(errno.into()))
    }

    fn is_left_out(&self, node: Node<'_>) -> bool {
        let is_device = matches!(node.kind(), NodeKind::CharDevice | NodeKind::BlockDevice);
        // Everybody may make a whiteout.
        is_device && self.devices == Devices::LeaveOut && !node.is_whiteout()
    }

    fn kind(&self, id: NodeId) -> Option<NodeKind> {
        self.tree.node(id).map(|node| node.kind())
    }

    fn check_stop(&self) -> Result<(), UnpackError> {
        if self.stop.load(Ordering::Relaxed) { Err(UnpackError::Stopped) } else { Ok(()) }
    }
}

/// Where something is whose attributes are set.
#[derive(Clone, Copy)]
enum Place<'a> {
    Open(BorrowedFd<'a>),
    /// A name in a directory, not followed.
    Named(BorrowedFd<'a>, &'a OsStr),
}

impl Place<'_> {
    fn set_xattr(&self, name: &OsStr, value: &[u8]) -> Result<(), Errno> {
        let flags = XattrFlags::empty();
        match self {
            Self::Open(file) => rustix::fs::fsetxattr(file, name, value, flags),
            Self::Named(directory, of) => {
                // There is no call for a name in a directory on kernels before 6.13.
                let through = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
                rustix::fs::lsetxattr(through.join(of), name, value, flags)
            }
        }
    }
}

/// The last name of a path that has one.
fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}

/// Blocks for a long run, in one piece where the file system can.
fn reserve(file: &File, offset: u64, len: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), offset, len) {
        // Then a full disk shows at a write.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn copy_long(from: &File, mut at: u64, to: &File, mut place: u64, len: u64) -> io::Result<()> {
    let end = at + len;
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(usize::MAX);
        let (mut source, mut target) = (at, place);
        let copied =
            rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), left);
        let count = match copied {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count as u64,
            // Older kernels copy only within a file system.
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                return copy_by_hand(from, at, to, place, end - at);
            }
            Err(errno) => return Err(errno.into()),
        };
        at += count;
        place += count;
    }
    Ok(())
}

fn copy_by_hand(from: &File, mut at: u64, to: &File, mut place: u64, len: u64) -> io::Result<()> {
    let end = at + len;
    let mut buffer = vec![0; SMALL_LEN as usize];
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let piece = buffer.get_mut(..len).unwrap_or_default();
        from.read_exact_at(piece, at)?;
        to.write_all_at(piece, place)?;
        at += len as u64;
        place += len as u64;
    }
    Ok(())
}
