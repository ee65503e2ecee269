//! Reading a tree.

use alloc::vec::Vec;

use super::path;
use super::{IMPLIED, Inode, OPAQUE, SPARSE, Tree, xattr};
use crate::{FileOffset, SparseSegment, Time, UncompressedOffset};

/// Number of a node in its tree: 0 is the root, children follow their directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// What kind of file a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// Ordinary file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Character device; 0/0 is a whiteout.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
}

impl NodeKind {
    /// File type as in `st_mode`.
    pub const fn mode_bits(self) -> u16 {
        match self {
            Self::Fifo => 0o010_000,
            Self::CharDevice => 0o020_000,
            Self::Directory => 0o040_000,
            Self::BlockDevice => 0o060_000,
            Self::Regular => 0o100_000,
            Self::Symlink => 0o120_000,
        }
    }

    pub(super) fn of_mode(mode: u16) -> Self {
        match mode & 0o170_000 {
            0o010_000 => Self::Fifo,
            0o020_000 => Self::CharDevice,
            0o040_000 => Self::Directory,
            0o060_000 => Self::BlockDevice,
            0o120_000 => Self::Symlink,
            _ => Self::Regular,
        }
    }
}

/// Device number, within what Linux can express: 12 and 20 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// Why a path leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// A component does not exist.
    #[error("no such file or directory")]
    NotFound,
    /// A component in the middle is not a directory.
    #[error("a component of the path is not a directory")]
    NotADirectory,
    /// More symlinks than Linux follows.
    #[error("more than {SYMLINKS_MAX} symlinks on the way")]
    TooManySymlinks,
}

/// `MAXSYMLINKS` of Linux.
const SYMLINKS_MAX: u32 = 40;

impl Tree {
    /// A node; `None` if this tree has no such number.
    pub fn node(&self, id: NodeId) -> Option<Node<'_>> {
        let inode = self.inodes.get(id.0 as usize)?;
        Some(Node { tree: self, id, inode })
    }

    /// Every node, rising by number.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'_>> {
        let numbered = (0..).zip(&self.inodes);
        numbered.map(|(id, inode)| Node { tree: self, id: NodeId(id), inode })
    }

    /// What `directory` calls `name`.
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        let children = self.children(directory);
        let at = children.entries.binary_search_by(|entry| self.name(entry).cmp(name)).ok()?;
        children.entries.get(at).map(|entry| NodeId(entry.node))
    }

    /// Names in `directory`, rising by their bytes; none for anything but a directory.
    pub fn children(&self, directory: NodeId) -> Children<'_> {
        let inode = self.inodes.get(directory.0 as usize).filter(|inode| inode.is_directory());
        let (first, count) = inode.map_or((0, 0), Inode::pair);
        let entries = self.entries.get(first as usize..).unwrap_or_default();
        Children { tree: self, entries: entries.get(..count as usize).unwrap_or_default() }
    }

    /// Where `path` leads, all symlinks followed and none out of the root.
    pub fn resolve(&self, path: &[u8]) -> Result<NodeId, ResolveError> {
        let mut at = self.root();
        let mut symlinks = 0;
        let mut todo: Vec<u8> = path.to_vec();
        loop {
            let start = todo.iter().position(|&byte| byte != b'/').unwrap_or(todo.len());
            todo.drain(..start);
            let Some((name, rest)) = path::split_first(&todo) else { return Ok(at) };
            let here = self.node(at).ok_or(ResolveError::NotFound)?;
            if here.kind() != NodeKind::Directory {
                return Err(ResolveError::NotADirectory);
            }
            let next = match name {
                b"." => at,
                b".." => here.parent().unwrap_or(at),
                _ => self.lookup(at, name).ok_or(ResolveError::NotFound)?,
            };
            let node = self.node(next).ok_or(ResolveError::NotFound)?;
            if node.kind() != NodeKind::Symlink {
                todo = rest.to_vec();
                at = next;
                continue;
            }
            symlinks += 1;
            if symlinks > SYMLINKS_MAX {
                return Err(ResolveError::TooManySymlinks);
            }
            if node.link().starts_with(b"/") {
                at = self.root();
            }
            let mut longer = node.link().to_vec();
            path::append(&mut longer, rest);
            todo = longer;
        }
    }

    pub(super) fn segments_of(&self, inode: &Inode) -> &[SparseSegment] {
        let (first, count) = if inode.has(SPARSE) { inode.pair() } else { (0, 0) };
        let tail = self.segments.get(first as usize..).unwrap_or_default();
        tail.get(..count as usize).unwrap_or_default()
    }

    fn name(&self, entry: &super::Entry) -> &[u8] {
        self.text_at(entry.name_at.into(), entry.name_len.into())
    }

    pub(super) fn text_at(&self, at: u64, len: u64) -> &[u8] {
        let tail = self.text.get(at as usize..).unwrap_or_default();
        tail.get(..len as usize).unwrap_or_default()
    }
}

/// Names in a directory with their nodes, rising by the names' bytes.
#[derive(Clone, Debug)]
pub struct Children<'a> {
    tree: &'a Tree,
    entries: &'a [super::Entry],
}

impl<'a> Children<'a> {
    /// The names from number `index` on: a directory can be read on where it was left.
    pub fn from(&self, index: usize) -> Self {
        Self { tree: self.tree, entries: self.entries.get(index..).unwrap_or_default() }
    }
}

impl<'a> Iterator for Children<'a> {
    type Item = (&'a [u8], NodeId);

    fn next(&mut self) -> Option<Self::Item> {
        let (entry, rest) = self.entries.split_first()?;
        self.entries = rest;
        Some((self.tree.name(entry), NodeId(entry.node)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.entries.len(), Some(self.entries.len()))
    }
}

impl ExactSizeIterator for Children<'_> {}

/// One inode of a tree.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    tree: &'a Tree,
    id: NodeId,
    inode: &'a Inode,
}

impl<'a> Node<'a> {
    pub(super) fn raw(&self) -> &'a Inode {
        self.inode
    }

    /// Its number.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Kind of file.
    pub fn kind(&self) -> NodeKind {
        self.inode.kind()
    }

    /// Permission, setuid, setgid and sticky bits.
    pub fn permissions(&self) -> u16 {
        self.inode.mode & 0o7777
    }

    /// File type and permissions, as in `st_mode`.
    pub fn mode(&self) -> u16 {
        self.inode.mode
    }

    /// Owner.
    pub fn uid(&self) -> u32 {
        self.inode.uid
    }

    /// Group.
    pub fn gid(&self) -> u32 {
        self.inode.gid
    }

    /// Modification time, not before 1970.
    pub fn mtime(&self) -> Time {
        let Inode { mtime_seconds: seconds, mtime_nanoseconds: nanoseconds, .. } = *self.inode;
        Time { seconds, nanoseconds }
    }

    /// Names of this node; for a directory 2 and its subdirectories.
    pub fn nlink(&self) -> u32 {
        self.inode.nlink
    }

    /// Bytes of a file's content or of a symlink's target; else 0.
    pub fn size(&self) -> u64 {
        match self.kind() {
            NodeKind::Regular | NodeKind::Symlink => self.inode.size,
            _ => 0,
        }
    }

    /// Device number; 0/0 for anything but a device.
    pub fn device(&self) -> Device {
        let (major, minor) = match self.kind() {
            NodeKind::CharDevice | NodeKind::BlockDevice => self.inode.pair(),
            _ => (0, 0),
        };
        Device { major, minor }
    }

    /// Target of a symlink, verbatim; else empty.
    pub fn link(&self) -> &'a [u8] {
        match self.kind() {
            NodeKind::Symlink => self.tree.text_at(self.inode.place, self.inode.size),
            _ => &[],
        }
    }

    /// Stored runs of a file's content, rising; what no run covers is zeros.
    pub fn extents(&self) -> Extents<'a> {
        let whole = self.kind() == NodeKind::Regular && self.inode.size > 0;
        if whole && self.inode.has(SPARSE) {
            return Extents { one: None, segments: self.tree.segments_of(self.inode) };
        }
        let one = whole.then_some(SparseSegment {
            file: FileOffset(0),
            data: UncompressedOffset(self.inode.place),
            len: self.inode.size,
        });
        Extents { one, segments: &[] }
    }

    /// Extended attributes, rising by name; the opaque one among them.
    pub fn xattrs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let opaque = self.tree.opaque_xattr.name();
        let own = self.tree.xattrs.iter(self.inode.xattrs);
        let after = own.clone().skip_while(move |&(name, _)| name < opaque);
        let before = own.take_while(move |&(name, _)| name < opaque);
        before.chain(self.is_opaque().then_some((opaque, &b"y"[..]))).chain(after)
    }

    /// Value of one extended attribute.
    pub fn xattr(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.xattrs().find_map(|(found, value)| (found == name).then_some(value))
    }

    /// Whether the node has any extended attribute.
    pub fn has_xattrs(&self) -> bool {
        self.is_opaque() || self.inode.xattrs != xattr::EMPTY_SET
    }

    /// Same for two nodes of a tree only if their extended attributes are the same.
    pub(crate) fn xattrs_key(&self) -> (u32, bool) {
        (self.inode.xattrs, self.is_opaque())
    }

    /// Whether it hides a name of lower layers: a character device 0/0.
    pub fn is_whiteout(&self) -> bool {
        self.kind() == NodeKind::CharDevice && self.inode.place == 0
    }

    /// Whether it is a directory that hides what lower layers hold in it.
    pub fn is_opaque(&self) -> bool {
        self.inode.has(OPAQUE)
    }

    /// Whether it is a directory that exists only because something lies in it: its attributes are
    /// 0755, 0:0 and time 0 for want of better ones.
    pub fn is_implied(&self) -> bool {
        self.inode.has(IMPLIED)
    }

    /// Layer of a merged tree that the node, and so its content, comes from: 0 is the lowest.
    pub fn layer(&self) -> u16 {
        self.inode.layer
    }

    /// Directory that holds a directory, the root for the root; `None` for anything else, which
    /// may have several.
    pub fn parent(&self) -> Option<NodeId> {
        self.inode.is_directory().then_some(NodeId(self.inode.size as u32))
    }
}

/// Stored runs of a file's content, rising.
#[derive(Clone, Debug)]
pub struct Extents<'a> {
    one: Option<SparseSegment>,
    segments: &'a [SparseSegment],
}

impl Iterator for Extents<'_> {
    type Item = SparseSegment;

    fn next(&mut self) -> Option<SparseSegment> {
        if let Some(one) = self.one.take() {
            return Some(one);
        }
        let (&first, rest) = self.segments.split_first()?;
        self.segments = rest;
        Some(first)
    }
}
