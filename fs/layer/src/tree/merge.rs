//! The merged tree of an image: its layers stacked as overlayfs stacks directories.

use alloc::vec::Vec;

use hashbrown::HashMap;

use super::assemble::Assembler;
use super::xattr::XattrInterner;
use super::{Fault, Inode, Node, NodeId, NodeKind, OPAQUE, OpaqueXattr, Tree};

/// One directory of one layer.
#[derive(Clone, Copy)]
struct Part<'a> {
    layer: u16,
    tree: &'a Tree,
    node: Node<'a>,
}

struct Merge<'a> {
    out: Assembler,
    xattrs: XattrInterner,
    /// Sets of attributes by layer and number there.
    xattr_sets: HashMap<(u16, u32), u32>,
    /// Nodes with several names, by layer and number there.
    shared: HashMap<(u16, NodeId), u32>,
    /// Directories by new number: their parts, the topmost first.
    directories: Vec<(u32, Vec<Part<'a>>)>,
}

impl Tree {
    /// The tree that overlayfs would show over these layers, the lowest first.
    ///
    /// Whiteouts and opaque directories have done their work and are gone. A directory has the
    /// attributes of the highest layer that has an entry for it, so an implied one takes those of
    /// a lower layer. Nodes keep their layer in [`Node::layer`] and with it the tar that their
    /// extents mean; two names are one node only if they are so in their layer.
    pub fn merge<'a>(layers: impl IntoIterator<Item = &'a Tree>) -> Result<Tree, Fault> {
        let layers: Vec<&Tree> = layers.into_iter().collect();
        let max = u64::from(u16::MAX);
        let too_many = Fault::TooMany { what: "layers", max };
        let count = u16::try_from(layers.len()).map_err(|_| too_many)?;
        let mut merge = Merge {
            out: Assembler::new(0, 0, 0),
            xattrs: XattrInterner::new(),
            xattr_sets: HashMap::new(),
            shared: HashMap::new(),
            directories: Vec::new(),
        };
        let mut parts = Vec::new();
        for (layer, &tree) in (0..count).zip(&layers).rev() {
            let Some(node) = tree.node(tree.root()) else { continue };
            parts.push(Part { layer, tree, node });
            if node.is_opaque() {
                break;
            }
        }
        merge.directory(parts, 0)?;
        let mut next = 0;
        while let Some((number, parts)) = merge.directories.get_mut(next) {
            let (number, parts) = (*number, core::mem::take(parts));
            merge.fill(number, &parts)?;
            next += 1;
        }
        Ok(merge.out.finish(merge.xattrs.into_sets(), OpaqueXattr::Trusted, count.max(1)))
    }
}

impl<'a> Merge<'a> {
    fn directory(&mut self, parts: Vec<Part<'a>>, parent: u32) -> Result<u32, Fault> {
        let described = parts.iter().find(|part| !part.node.is_implied()).or(parts.first());
        let inode = match described {
            Some(part) => {
                let inode = self.inode(part)?;
                let flags = inode.flags & !OPAQUE;
                Inode { size: parent.into(), flags, ..inode }
            }
            None => Inode::directory(parent, 0),
        };
        let number = self.out.node(inode, &[], &[])?;
        self.directories.push((number, parts));
        Ok(number)
    }

    fn fill(&mut self, number: u32, parts: &[Part<'a>]) -> Result<(), Fault> {
        let mut names: Vec<(&'a [u8], usize, NodeId)> = Vec::new();
        for (depth, part) in parts.iter().enumerate() {
            let children = part.tree.children(part.node.id());
            names.extend(children.map(|(name, id)| (name, depth, id)));
        }
        if parts.len() > 1 {
            names.sort_unstable_by_key(|&(name, depth, _)| (name, depth));
        }
        let first = self.out.entry_count();
        let mut subdirectories = 0;
        for group in names.chunk_by(|left, right| left.0 == right.0) {
            subdirectories += self.child(number, parts, group)?;
        }
        self.out.close_directory(number, first, subdirectories);
        Ok(())
    }

    /// Adds what one name means, given all that it means in the layers, the topmost first. The
    /// answer is 1 for a directory, else 0.
    fn child(
        &mut self,
        parent: u32,
        parts: &[Part<'a>],
        group: &[(&'a [u8], usize, NodeId)],
    ) -> Result<u32, Fault> {
        let mut found = group.iter().filter_map(|&(name, depth, id)| {
            let &Part { layer, tree, .. } = parts.get(depth)?;
            Some((name, Part { layer, tree, node: tree.node(id)? }))
        });
        let Some((name, top)) = found.next() else { return Ok(0) };
        if top.node.is_whiteout() {
            return Ok(0);
        }
        if top.node.kind() != NodeKind::Directory {
            let number = self.leaf(&top)?;
            self.out.entry(name, number)?;
            return Ok(0);
        }
        let mut below = Vec::from([top]);
        if !top.node.is_opaque() {
            for (_, part) in found {
                if part.node.kind() != NodeKind::Directory {
                    break;
                }
                below.push(part);
                if part.node.is_opaque() {
                    break;
                }
            }
        }
        let number = self.directory(below, parent)?;
        self.out.entry(name, number)?;
        Ok(1)
    }

    fn leaf(&mut self, part: &Part<'a>) -> Result<u32, Fault> {
        let key = (part.layer, part.node.id());
        let several = part.node.nlink() > 1;
        let known = if several { self.shared.get(&key).copied() } else { None };
        let number = match known {
            Some(number) => number,
            None => {
                let inode = Inode { nlink: 0, ..self.inode(part)? };
                let segments = part.tree.segments_of(part.node.raw());
                let number = self.out.node(inode, part.node.link(), segments)?;
                if several {
                    self.shared.insert(key, number);
                }
                number
            }
        };
        if let Some(inode) = self.out.inode_mut(number) {
            inode.nlink += 1;
        }
        Ok(number)
    }

    /// Copy of an inode with its layer and its attributes' new number.
    fn inode(&mut self, part: &Part<'a>) -> Result<Inode, Fault> {
        let inode = *part.node.raw();
        let key = (part.layer, inode.xattrs);
        let xattrs = match self.xattr_sets.get(&key) {
            Some(&set) => set,
            None => {
                let set = self.xattrs.intern(part.tree.xattrs.iter(inode.xattrs).collect())?;
                self.xattr_sets.insert(key, set);
                set
            }
        };
        Ok(Inode { layer: part.layer, xattrs, ..inode })
    }
}
