//! The inode front: a tree of one layer, or of a whole image, as a FUSE filesystem.
//!
//! For users without privilege, and for kernels without file-backed EROFS. Inode numbers are the
//! tree's node numbers plus one, so the same layer gives the same numbers every time.

use std::borrow::Cow;
use std::sync::Arc;

use spanfs_cache::Content;
use spanfs_layer::Tree;
use spanfs_layer::tree::{Node, NodeId, NodeKind};

use super::runs::{self, Run};
use super::{Failures, dots};
use crate::Errno;
use crate::filesystem::{
    Attributes, DirectoryEntry, FileType, Filesystem, FillReply, Ino, Located, NAME_LEN_MAX, Open,
    Statfs,
};

/// What ext4 shows for a small directory; du(1) and its like want something.
const DIRECTORY_LEN: u64 = 4096;
/// `.` and `..` come before a directory's names.
const DOTS: u64 = 2;

/// A tree with the contents that its nodes' layers mean.
pub struct Inodes {
    tree: Arc<Tree>,
    layers: Vec<Layer>,
    bytes: u64,
}

struct Layer {
    content: Arc<dyn Content>,
    failures: Arc<Failures>,
}

/// Trees and contents that do not belong together.
#[derive(Debug, thiserror::Error)]
#[error("tree of {tree} layers came with the content of {contents}")]
pub struct LayerCountError {
    tree: usize,
    contents: usize,
}

impl Inodes {
    /// Show `tree`, with the name and the content of each of its layers, the lowest first.
    pub fn new(
        tree: Arc<Tree>,
        layers: impl IntoIterator<Item = (String, Arc<dyn Content>)>,
    ) -> Result<Self, LayerCountError> {
        let layers: Vec<Layer> = layers
            .into_iter()
            .map(|(name, content)| Layer { content, failures: Arc::new(Failures::of(name)) })
            .collect();
        let count = usize::from(tree.layer_count());
        if count != layers.len() {
            return Err(LayerCountError { tree: count, contents: layers.len() });
        }
        let sizes = tree.nodes().map(|node| node.size().next_multiple_of(512));
        let bytes = sizes.fold(0, u64::saturating_add);
        Ok(Self { tree, layers, bytes })
    }

    fn node(&self, ino: Ino) -> Result<Node<'_>, Errno> {
        let number = ino.0.checked_sub(1).and_then(|number| u32::try_from(number).ok());
        number.and_then(|number| self.tree.node(NodeId(number))).ok_or(Errno::NotFound)
    }

    fn directory(&self, ino: Ino) -> Result<Node<'_>, Errno> {
        let node = self.node(ino)?;
        if node.kind() == NodeKind::Directory { Ok(node) } else { Err(Errno::NotDirectory) }
    }

    fn file(&self, ino: Ino) -> Result<(Node<'_>, &Layer), Errno> {
        let node = self.node(ino)?;
        match node.kind() {
            NodeKind::Regular => {}
            NodeKind::Directory => return Err(Errno::IsDirectory),
            _ => return Err(Errno::Invalid),
        }
        let layer = self.layers.get(usize::from(node.layer())).ok_or(Errno::InputOutput)?;
        Ok((node, layer))
    }
}

fn ino(id: NodeId) -> Ino {
    Ino(u64::from(id.0) + 1)
}

fn attributes(node: Node<'_>) -> Attributes {
    let is_directory = node.kind() == NodeKind::Directory;
    let size = if is_directory { DIRECTORY_LEN } else { node.size() };
    let (device, mtime) = (node.device(), node.mtime());
    Attributes {
        ino: ino(node.id()),
        file_type: match node.kind() {
            NodeKind::Regular => FileType::Regular,
            NodeKind::Directory => FileType::Directory,
            NodeKind::Symlink => FileType::Symlink,
            NodeKind::CharDevice => FileType::CharDevice,
            NodeKind::BlockDevice => FileType::BlockDevice,
            NodeKind::Fifo => FileType::Fifo,
        },
        permissions: node.permissions(),
        nlink: node.nlink(),
        uid: node.uid(),
        gid: node.gid(),
        device: (device.major, device.minor),
        size,
        blocks: size.div_ceil(512),
        mtime: (mtime.seconds, mtime.nanoseconds),
    }
}

fn runs_of(node: Node<'_>) -> impl Iterator<Item = Run> {
    node.extents().map(|extent| Run { file: extent.file.0, data: extent.data.0, len: extent.len })
}

impl Filesystem for Inodes {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Attributes>, Errno> {
        let directory = self.directory(parent)?;
        if name.len() > NAME_LEN_MAX {
            return Err(Errno::NameTooLong);
        }
        // Only an NFS server that knows a node but not its path asks for these two.
        let found = match name {
            b"." => Some(directory.id()),
            b".." => directory.parent(),
            _ => self.tree.lookup(directory.id(), name),
        };
        Ok(found.and_then(|id| self.tree.node(id)).map(attributes))
    }

    fn attributes(&self, ino: Ino) -> Result<Attributes, Errno> {
        self.node(ino).map(attributes)
    }

    fn entry(&self, directory: Ino, offset: u64) -> Result<Option<DirectoryEntry<'_>>, Errno> {
        let node = self.directory(directory)?;
        let Some(index) = offset.checked_sub(DOTS) else {
            let parent = node.parent().and_then(|id| self.tree.node(id)).unwrap_or(node);
            return Ok(dots(offset, attributes(node), attributes(parent)));
        };
        let index = usize::try_from(index).map_err(|_| Errno::Invalid)?;
        let child = self.tree.children(node.id()).from(index).next();
        let Some((name, id)) = child else { return Ok(None) };
        let child = self.tree.node(id).ok_or(Errno::InputOutput)?;
        Ok(Some(DirectoryEntry {
            name: Cow::Borrowed(name),
            attributes: attributes(child),
            next: offset + 1,
        }))
    }

    fn readlink(&self, ino: Ino) -> Result<Cow<'_, [u8]>, Errno> {
        let node = self.node(ino)?;
        if node.kind() != NodeKind::Symlink {
            return Err(Errno::Invalid);
        }
        Ok(Cow::Borrowed(node.link()))
    }

    fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Cow<'_, [u8]>, Errno> {
        self.node(ino)?.xattr(name).map(Cow::Borrowed).ok_or(Errno::NoAttribute)
    }

    fn xattr_names(&self, ino: Ino) -> Result<Vec<u8>, Errno> {
        let mut names = Vec::new();
        for (name, _) in self.node(ino)?.xattrs() {
            names.extend_from_slice(name);
            names.push(0);
        }
        Ok(names)
    }

    fn statfs(&self) -> Statfs {
        Statfs { bytes: self.bytes, inodes: self.tree.node_count().into() }
    }

    fn open(&self, ino: Ino) -> Result<Open, Errno> {
        self.file(ino)?;
        Ok(Open::Stateless)
    }

    fn read_present(
        &self,
        ino: Ino,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, Errno> {
        let (node, layer) = self.file(ino)?;
        runs::read_present(&*layer.content, runs_of(node), node.size(), offset, buffer)
            .map_err(|error| layer.failures.note(offset, &error))
    }

    fn located(&self, ino: Ino, offset: u64, len: usize) -> Option<Located<'_>> {
        let (node, layer) = self.file(ino).ok()?;
        runs::located(&*layer.content, runs_of(node), node.size(), offset, len)
    }

    fn describe(&self, ino: Ino, offset: u64, len: u64) -> String {
        let Ok((node, layer)) = self.file(ino) else { return format!("inode {}", ino.0) };
        let ranges = runs::data_ranges(runs_of(node), node.size(), offset, len);
        runs::describe(&*layer.content, ranges, &layer.failures)
    }

    fn fill(&self, ino: Ino, offset: u64, len: u64, reply: FillReply) {
        let (node, layer) = match self.file(ino) {
            Ok(found) => found,
            Err(errno) => return reply(Err(errno)),
        };
        let ranges = runs::data_ranges(runs_of(node), node.size(), offset, len);
        runs::fill_all(&*layer.content, ranges, &layer.failures, reply);
    }
}
