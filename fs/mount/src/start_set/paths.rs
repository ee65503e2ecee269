//! Finding files in a tree as a shell and a dynamic loader do.

use std::collections::VecDeque;

use spanfs_layer::Tree;
use spanfs_layer::tree::{NodeId, NodeKind};

use super::StartConfig;
use super::ld_cache::LdCache;

/// A node and the path without symlinks that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) node: NodeId,
    /// Absolute, no slash at its end; empty for the root.
    pub(super) path: Vec<u8>,
}

/// `MAXSYMLINKS` of Linux.
const SYMLINKS_MAX: usize = 40;
/// Components of a path with all its symlinks: `PATH_MAX` in each of them.
const COMPONENTS_MAX: usize = 2048 * SYMLINKS_MAX;
/// Words of a `sh -c` text that are looked at.
const SHELL_WORDS_MAX: usize = 32;
const PATH_DEFAULT: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where loaders look at last; the triplet stands for Debian's multiarch.
const LIBRARY_DIRECTORIES: [&[u8]; 9] = [
    b"/lib64",
    b"/usr/lib64",
    b"/lib",
    b"/usr/lib",
    b"/usr/local/lib",
    b"/lib/x86_64-linux-gnu",
    b"/usr/lib/x86_64-linux-gnu",
    b"/lib/aarch64-linux-gnu",
    b"/usr/lib/aarch64-linux-gnu",
];

/// Where `path`, relative to `base`, leads: symlinks followed, never out of the root.
pub(super) fn find(tree: &Tree, base: &[u8], path: &[u8]) -> Option<Found> {
    let mut todo: VecDeque<&[u8]> = VecDeque::new();
    if !path.starts_with(b"/") {
        todo.extend(base.split(|&byte| byte == b'/'));
    }
    todo.extend(path.split(|&byte| byte == b'/'));
    let mut way: Vec<(NodeId, &[u8])> = Vec::new();
    let (mut symlinks, mut steps) = (0, 0);
    while let Some(name) = todo.pop_front() {
        steps += 1;
        if steps > COMPONENTS_MAX {
            return None;
        }
        match name {
            b"" | b"." => continue,
            b".." => {
                way.pop();
                continue;
            }
            _ => {}
        }
        let here = way.last().map_or(tree.root(), |&(node, _)| node);
        let id = tree.lookup(here, name)?;
        let node = tree.node(id)?;
        if node.kind() != NodeKind::Symlink {
            way.push((id, name));
            continue;
        }
        symlinks += 1;
        if symlinks > SYMLINKS_MAX {
            return None;
        }
        if node.link().starts_with(b"/") {
            way.clear();
        }
        for component in node.link().rsplit(|&byte| byte == b'/') {
            todo.push_front(component);
        }
    }
    let mut found = Vec::new();
    for (_, name) in &way {
        found.push(b'/');
        found.extend_from_slice(name);
    }
    Some(Found { node: way.last().map_or(tree.root(), |&(node, _)| node), path: found })
}

fn find_file(tree: &Tree, base: &[u8], path: &[u8]) -> Option<Found> {
    let found = find(tree, base, path)?;
    (tree.node(found.node)?.kind() == NodeKind::Regular).then_some(found)
}

/// Where execvp(3) finds `program`.
pub(super) fn program(tree: &Tree, config: &StartConfig, program: &[u8]) -> Option<Found> {
    if program.is_empty() {
        return None;
    }
    if program.contains(&b'/') {
        return find_file(tree, &config.workdir, program);
    }
    let path = variable(&config.env, b"PATH").unwrap_or(PATH_DEFAULT);
    let mut directories = path.split(|&byte| byte == b':');
    directories.find_map(|directory| find_file(tree, &config.workdir, &join(directory, program)))
}

/// Where ld.so(8) finds a library: `directories`, the cache, the defaults.
pub(super) fn library(
    tree: &Tree,
    name: &[u8],
    directories: &[Vec<u8>],
    cache: &LdCache,
) -> Option<Found> {
    if name.contains(&b'/') {
        return find_file(tree, b"/", name);
    }
    let within = |directory: &[u8]| find_file(tree, b"/", &join(directory, name));
    directories
        .iter()
        .find_map(|directory| within(directory))
        .or_else(|| cache.paths(name).find_map(|path| find_file(tree, b"/", path)))
        .or_else(|| LIBRARY_DIRECTORIES.iter().find_map(|directory| within(directory)))
}

/// Value of an environment variable.
pub(super) fn variable<'a>(env: &'a [Vec<u8>], name: &[u8]) -> Option<&'a [u8]> {
    env.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(b"="))
}

/// The words of a shell command, quotes and operators taken for spaces: programs are among them.
pub(super) fn shell_words(text: &[u8]) -> Vec<&[u8]> {
    let is_space = |byte: &u8| byte.is_ascii_whitespace() || b"\"'`;&|()<>{}$".contains(byte);
    text.split(is_space).filter(|word| !word.is_empty()).take(SHELL_WORDS_MAX).collect()
}

pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    [directory, b"/", name].concat()
}

/// What stands before the last slash.
pub(super) fn parent(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
    path.get(..end).unwrap_or_default()
}

/// What stands behind the last slash.
pub(super) fn file_name(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}
