//! Directories: blocks of 12-byte entries (nid 8, offset of the name 2, type 1, zero 1) followed by
//! their names, all names of a directory rising by their bytes, `.` and `..` in their places.

use alloc::vec::Vec;

use super::BLOCK;
use crate::Tree;
use crate::tree::{Children, Node, NodeId, NodeKind};

pub(super) const DIRENT_LEN: u64 = 12;

pub(super) fn type_of(kind: NodeKind) -> u8 {
    match kind {
        NodeKind::Regular => 1,
        NodeKind::Directory => 2,
        NodeKind::CharDevice => 3,
        NodeKind::BlockDevice => 4,
        NodeKind::Fifo => 5,
        NodeKind::Symlink => 7,
    }
}

/// All names of a directory, with `.` and `..`, rising.
struct Names<'a> {
    children: core::iter::Peekable<Children<'a>>,
    dots: core::iter::Peekable<core::array::IntoIter<(&'static [u8], NodeId), 2>>,
}

impl<'a> Names<'a> {
    fn new(tree: &'a Tree, directory: &Node<'_>) -> Self {
        let id = directory.id();
        let parent = directory.parent().unwrap_or(id);
        let dots: [(&'static [u8], NodeId); 2] = [(b".", id), (b"..", parent)];
        let dots = dots.into_iter().peekable();
        Self { children: tree.children(id).peekable(), dots }
    }
}

impl<'a> Iterator for Names<'a> {
    type Item = (&'a [u8], NodeId);

    fn next(&mut self) -> Option<Self::Item> {
        match (self.children.peek(), self.dots.peek()) {
            (Some((child, _)), Some((dot, _))) if child < dot => self.children.next(),
            (_, Some(_)) => self.dots.next(),
            (_, None) => self.children.next(),
        }
    }
}

/// Bytes of a directory: all blocks but the last count in full.
pub(super) fn size(tree: &Tree, directory: &Node<'_>) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for (name, _) in Names::new(tree, directory) {
        let needed = DIRENT_LEN + name.len() as u64;
        if used + needed > BLOCK {
            blocks += 1;
            used = 0;
        }
        used += needed;
    }
    blocks * BLOCK + used
}

/// Writes a directory's bytes, [`size`] of them, into `out`.
pub(super) fn encode(
    tree: &Tree,
    directory: &Node<'_>,
    nid_of: impl Fn(NodeId) -> u64,
    out: &mut Vec<u8>,
) {
    out.clear();
    let mut block: Vec<(&[u8], NodeId)> = Vec::new();
    let mut used = 0;
    for (name, id) in Names::new(tree, directory) {
        let needed = DIRENT_LEN + name.len() as u64;
        if used + needed > BLOCK {
            encode_block(tree, &block, &nid_of, out);
            out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
            block.clear();
            used = 0;
        }
        used += needed;
        block.push((name, id));
    }
    encode_block(tree, &block, &nid_of, out);
}

fn encode_block(
    tree: &Tree,
    block: &[(&[u8], NodeId)],
    nid_of: impl Fn(NodeId) -> u64,
    out: &mut Vec<u8>,
) {
    let mut name_at = DIRENT_LEN as usize * block.len();
    for (name, id) in block {
        let kind = tree.node(*id).map_or(0, |node| type_of(node.kind()));
        out.extend_from_slice(&nid_of(*id).to_le_bytes());
        out.extend_from_slice(&(name_at as u16).to_le_bytes());
        out.extend_from_slice(&[kind, 0]);
        name_at += name.len();
    }
    for (name, _) in block {
        out.extend_from_slice(name);
    }
}
