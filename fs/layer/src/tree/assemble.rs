//! The last step of building: numbers, order and one compact copy of everything that lives.

use alloc::vec::Vec;

use super::xattr::XattrSets;
use super::{Entry, Fault, Inode, NodeKind, OpaqueXattr, SPARSE, Tree, pair};
use crate::SparseSegment;

/// A tree under construction in its final order: nodes are added as their first name is.
#[derive(Debug)]
pub(super) struct Assembler {
    inodes: Vec<Inode>,
    entries: Vec<Entry>,
    text: Vec<u8>,
    segments: Vec<SparseSegment>,
}

/// Texts and segments are found by offsets of 32 bits.
const TEXT_BYTES_MAX: u64 = u32::MAX as u64;
const SEGMENTS_MAX: u64 = u32::MAX as u64;

impl Assembler {
    pub(super) fn new(inodes: usize, entries: usize, text: usize) -> Self {
        Self {
            inodes: Vec::with_capacity(inodes),
            entries: Vec::with_capacity(entries),
            text: Vec::with_capacity(text),
            segments: Vec::new(),
        }
    }

    pub(super) fn inode_mut(&mut self, id: u32) -> Option<&mut Inode> {
        self.inodes.get_mut(id as usize)
    }

    /// Adds a node with what its `place` stands for.
    pub(super) fn node(
        &mut self,
        mut inode: Inode,
        link: &[u8],
        segments: &[SparseSegment],
    ) -> Result<u32, Fault> {
        if inode.kind() == NodeKind::Symlink {
            inode.place = self.text(link)?.into();
        } else if inode.has(SPARSE) {
            let first = self.segments.len();
            let max = SEGMENTS_MAX;
            if (first + segments.len()) as u64 > max {
                return Err(Fault::TooMany { what: "sparse runs", max });
            }
            self.segments.extend_from_slice(segments);
            inode.place = pair(first as u32, segments.len() as u32);
        }
        let max = u64::from(u32::MAX) - 1;
        if self.inodes.len() as u64 >= max {
            return Err(Fault::TooMany { what: "inodes", max });
        }
        self.inodes.push(inode);
        Ok(self.inodes.len() as u32 - 1)
    }

    /// Adds a name to the directory being filled.
    pub(super) fn entry(&mut self, name: &[u8], node: u32) -> Result<(), Fault> {
        let name_at = self.text(name)?;
        let name_len = u8::try_from(name.len()).map_err(|_| Fault::TooLong {
            what: "name",
            found: name.len(),
            max: super::path::NAME_BYTES_MAX,
        })?;
        self.entries.push(Entry { name_at, node, name_len });
        Ok(())
    }

    pub(super) fn entry_count(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Ends the directory whose entries began at number `first`, all of them added since.
    pub(super) fn close_directory(&mut self, id: u32, first: u32, subdirectories: u32) {
        let count = self.entry_count() - first;
        if let Some(inode) = self.inode_mut(id) {
            inode.place = pair(first, count);
            inode.nlink = 2 + subdirectories;
        }
    }

    pub(super) fn finish(self, xattrs: XattrSets, opaque_xattr: OpaqueXattr, layers: u16) -> Tree {
        let Self { mut inodes, mut entries, mut text, mut segments } = self;
        inodes.shrink_to_fit();
        entries.shrink_to_fit();
        text.shrink_to_fit();
        segments.shrink_to_fit();
        Tree { inodes, entries, text, segments, xattrs, opaque_xattr, layers }
    }

    fn text(&mut self, text: &[u8]) -> Result<u32, Fault> {
        let at = self.text.len();
        if (at + text.len()) as u64 > TEXT_BYTES_MAX {
            return Err(Fault::TooMany { what: "bytes of names", max: TEXT_BYTES_MAX });
        }
        self.text.extend_from_slice(text);
        Ok(at as u32)
    }
}
