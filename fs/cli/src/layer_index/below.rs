//! Directories that a layer only implies, as the layers below it describe them.
//!
//! For that the layers are stacked, but of each only what stands on the way to such a directory: trees
//! of whole layers, one for each layer above them, would take minutes and gigabytes.

use std::collections::HashSet;

use spanfs_layer::tree::{Node, NodeKind, Tree, TreeBuilder, TreeOptions};
use spanfs_layer::{Kind, Record};

use super::Described;
use crate::image::{ImageError, Layers, OpenLayer};
use crate::side_by_side::{cores, side_by_side};

/// What the layers below say of the directories that some of `layers` imply: those of each of
/// `implying`, layers by their number.
pub(super) fn describe(
    layers: &Layers,
    implying: &[(usize, Vec<Vec<u8>>)],
) -> Result<Vec<Vec<Described>>, ImageError> {
    let ways = Ways::to(implying.iter().flat_map(|(_, paths)| paths));
    let last = implying.iter().map(|(number, _)| *number).max().unwrap_or(0);
    let below = layers.below(last);
    let pruned = side_by_side(&below.layers, cores(), |_, layer| tree(layer, &ways));
    let pruned = pruned.into_iter().collect::<Result<Vec<Tree>, _>>()?;
    let describe = |(number, paths): &(usize, Vec<Vec<u8>>)| -> Result<_, ImageError> {
        let stack = Tree::merge(&pruned[..*number])
            .map_err(|fault| ImageError::Corrupt(format!("stacking the layers: {fault}")))?;
        Ok(paths.iter().filter_map(|path| described(&stack, path)).collect())
    };
    implying.iter().map(describe).collect()
}

/// Paths of the directories that `tree` implies, parents first.
pub(super) fn implied(tree: &Tree) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut directories = vec![(tree.root(), Vec::new())];
    while let Some((directory, path)) = directories.pop() {
        for (name, id) in tree.children(directory) {
            let Some(node) = tree.node(id).filter(is_directory) else { continue };
            let parts = [path.as_slice(), name];
            let path = parts[usize::from(path.is_empty())..].join(&b'/');
            if node.is_implied() {
                found.push(path.clone());
            }
            directories.push((id, path));
        }
    }
    found
}

fn is_directory(node: &Node<'_>) -> bool {
    node.kind() == NodeKind::Directory
}

fn described(below: &Tree, path: &[u8]) -> Option<Described> {
    let mut at = below.root();
    for name in path.split(|&byte| byte == b'/') {
        at = below.lookup(at, name)?;
        // Through nothing but directories: what hides them hides what lies in them.
        below.node(at).filter(is_directory)?;
    }
    let node = below.node(at).filter(|node| !node.is_implied())?;
    let xattrs = node.xattrs().map(|(name, value)| (name.to_owned(), value.to_owned()));
    Some(Described {
        path: path.to_owned(),
        mode: node.permissions().into(),
        uid: node.uid(),
        gid: node.gid(),
        mtime: node.mtime(),
        xattrs: xattrs.collect(),
    })
}

/// What of a layer stands on the ways.
fn tree(layer: &OpenLayer, ways: &Ways) -> Result<Tree, ImageError> {
    let mut builder = TreeBuilder::new(TreeOptions::default());
    let pushed = layer.each_record(|record| match record.kind {
        _ if !ways.has(&record.name) => Ok(()),
        // Its target is not here; that it is no directory is all that counts.
        Kind::Hardlink => {
            let record = record.clone();
            builder.push(&Record { kind: Kind::Regular, size: 0, sparse: None, ..record })
        }
        _ => builder.push(record),
    })?;
    pushed.and_then(|()| builder.finish()).map_err(|error| layer.bad(&error))
}

/// Directories, and all that lie above them.
struct Ways(HashSet<Vec<u8>>);

impl Ways {
    fn to<'a>(directories: impl Iterator<Item = &'a Vec<u8>>) -> Self {
        let mut ways = HashSet::new();
        for directory in directories {
            let ends = directory.iter().enumerate().filter(|(_, byte)| **byte == b'/');
            ways.extend(ends.map(|(end, _)| directory[..end].to_owned()));
            ways.insert(directory.clone());
        }
        Self(ways)
    }

    /// Whether an entry of that name stands on a way, or hides what does.
    fn has(&self, name: &[u8]) -> bool {
        let parts: Vec<&[u8]> =
            name.split(|&byte| byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
        let Some((last, parents)) = parts.split_last() else { return false };
        // A way up is the tree's matter.
        if parts.contains(&b"..".as_slice()) {
            return true;
        }
        let path = match last.strip_prefix(b".wh.") {
            Some(b".wh..opq") => parents.join(&b'/'),
            Some(hidden) => [parents, &[hidden]].concat().join(&b'/'),
            None => parts.join(&b'/'),
        };
        path.is_empty() || self.0.contains(&path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_on_a_way_or_hides_it_is_kept() {
        let ways = Ways::to([b"usr/lib/x".to_vec(), b"etc".to_vec()].iter());
        for name in ["usr", "./usr/lib/", "/usr/lib/x", "etc", "etc/.wh..wh..opq", ".wh.usr"] {
            assert!(ways.has(name.as_bytes()), "{name}");
        }
        for name in [".wh..wh..opq", "usr/lib/.wh.x", "a/../usr/lib"] {
            assert!(ways.has(name.as_bytes()), "{name}");
        }
        for name in ["usr/lib/x/y", "usr/bin", "etc/passwd", "usr/.wh.bin", "./", "lib/x"] {
            assert!(!ways.has(name.as_bytes()), "{name}");
        }
    }
}
