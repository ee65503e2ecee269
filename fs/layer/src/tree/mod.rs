//! The inode tree of a layer, and of an image: what the entries of a tar mean once all of them are
//! applied in order, by the rules of containerd's applier.
//!
//! [`TreeBuilder`] takes records, [`Tree`] answers. Nodes are numbered breadth first, children in
//! the order of their names' bytes, so equal layers give equal numbers. [`Tree::merge`] stacks the
//! trees of an image's layers as overlayfs would; the outcome is a [`Tree`] too, whose nodes know
//! their layer.
//!
//! Nothing here recurses: a layer nested a million deep is refused, not followed.

mod assemble;
mod builder;
mod error;
mod finish;
mod merge;
mod node;
mod path;
mod xattr;

use alloc::vec::Vec;

pub use builder::TreeBuilder;
pub use error::{Fault, TreeError};
pub use node::{Children, Device, Extents, Node, NodeId, NodeKind, ResolveError};

use crate::SparseSegment;

/// The xattr by which overlayfs knows an opaque directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpaqueXattr {
    /// `trusted.overlay.opaque`, for an overlay mounted with privilege.
    #[default]
    Trusted,
    /// `user.overlay.opaque`, for one mounted with `userxattr`.
    User,
}

impl OpaqueXattr {
    /// Full name of the attribute; its value is `y`.
    pub fn name(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.overlay.opaque",
            Self::User => b"user.overlay.opaque",
        }
    }
}

/// What becomes of whiteouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Whiteouts {
    /// Character devices 0/0 and opaque directories, for overlayfs to act on.
    #[default]
    Show,
    /// Nothing: there is no layer below, and a bind mount would show the devices.
    Suppress,
}

/// What becomes of the files that lazy formats add to the root of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Landmarks {
    /// They are files like any other: the layer is no eStargz.
    #[default]
    Show,
    /// `.prefetch.landmark`, `.no.prefetch.landmark` and `stargz.index.json` are not listed.
    Hide,
}

/// How records become a tree.
#[derive(Clone, Debug)]
pub struct TreeOptions {
    /// Name of the opaque attribute.
    pub opaque_xattr: OpaqueXattr,
    /// Whether whiteouts show.
    pub whiteouts: Whiteouts,
    /// Whether landmarks show.
    pub landmarks: Landmarks,
    /// Most inodes and names that are held while building, those later replaced included.
    pub entries_max: u32,
    /// Most directories one inside the other.
    pub depth_max: u32,
}

/// Largest layers seen have some 300,000 entries; 4 Mi of them take 400 MiB while building.
const ENTRIES_MAX: u32 = 1 << 22;
/// Tools that recurse (fsck.erofs among them) run out of stack between 1,500 and 2,000.
const DEPTH_MAX: u32 = 1024;

impl Default for TreeOptions {
    fn default() -> Self {
        Self {
            opaque_xattr: OpaqueXattr::default(),
            whiteouts: Whiteouts::default(),
            landmarks: Landmarks::default(),
            entries_max: ENTRIES_MAX,
            depth_max: DEPTH_MAX,
        }
    }
}

/// All inodes of a layer or an image, immutable.
#[derive(Clone, Debug)]
pub struct Tree {
    /// By node number, breadth first.
    inodes: Vec<Inode>,
    /// Grouped by directory in the directories' order, rising by name in each.
    entries: Vec<Entry>,
    /// Names and symlink targets.
    text: Vec<u8>,
    segments: Vec<SparseSegment>,
    xattrs: xattr::XattrSets,
    opaque_xattr: OpaqueXattr,
    layers: u16,
}

impl Tree {
    /// The root directory, which always exists.
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// Number of nodes; their ids are all numbers below.
    pub fn node_count(&self) -> u32 {
        self.inodes.len() as u32
    }

    /// Number of names, the root not counted: hard links make it larger than the number of nodes.
    pub fn name_count(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Layers that this tree was merged from; 1 for the tree of a layer.
    pub fn layer_count(&self) -> u16 {
        self.layers
    }

    /// Heap memory in use, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.inodes.capacity() * size_of::<Inode>()
            + self.entries.capacity() * size_of::<Entry>()
            + self.segments.capacity() * size_of::<SparseSegment>()
            + self.text.capacity()
            + self.xattrs.memory_bytes()
    }

    /// The part of [`Self::memory_bytes`] that holds names and symlink targets.
    pub fn text_bytes(&self) -> usize {
        self.text.capacity()
    }
}

/// What is known of one inode. `place` and `size` mean different things for different kinds:
///
/// | kind | `place` | `size` |
/// |---|---|---|
/// | regular | offset of the data in the tar | bytes |
/// | regular, `SPARSE` | first segment and their number | logical bytes |
/// | directory | first entry and their number (while building: its depth) | parent |
/// | symlink | offset of the target in the text | its length |
/// | device | major and minor number | 0 |
/// | `PENDING` hard link | which of the pending | 0 |
#[derive(Clone, Copy, Debug)]
struct Inode {
    mtime_seconds: i64,
    place: u64,
    size: u64,
    mtime_nanoseconds: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    /// A set of [`xattr::XattrSets`].
    xattrs: u32,
    /// As in `st_mode`.
    mode: u16,
    layer: u16,
    flags: u8,
}

/// Directory that no entry describes.
const IMPLIED: u8 = 1;
/// Directory that hides what lower layers hold in it.
const OPAQUE: u8 = 2;
/// Regular file with holes.
const SPARSE: u8 = 4;
/// Made from a `.wh.` name.
const WHITEOUT: u8 = 8;
/// Hard link whose target has not been seen; only while building.
const PENDING: u8 = 16;

/// One name in a directory.
#[derive(Clone, Copy, Debug)]
struct Entry {
    name_at: u32,
    node: u32,
    name_len: u8,
}

impl Inode {
    fn kind(&self) -> NodeKind {
        NodeKind::of_mode(self.mode)
    }

    fn is_directory(&self) -> bool {
        self.kind() == NodeKind::Directory && !self.has(PENDING)
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn directory(parent: u32, layer: u16) -> Self {
        Self {
            mtime_seconds: 0,
            place: 0,
            size: u64::from(parent),
            mtime_nanoseconds: 0,
            uid: 0,
            gid: 0,
            nlink: 2,
            xattrs: xattr::EMPTY_SET,
            mode: NodeKind::Directory.mode_bits() | 0o755,
            layer,
            flags: 0,
        }
    }

    /// Two numbers of 32 bits in `place`.
    fn pair(&self) -> (u32, u32) {
        ((self.place >> 32) as u32, self.place as u32)
    }
}

fn pair(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests;
