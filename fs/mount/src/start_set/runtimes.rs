//! Files at the heart of language runtimes, which each start reads.

use spanfs_layer::Tree;
use spanfs_layer::tree::{NodeId, NodeKind};

use super::paths::{self, Found, file_name, join, parent};

/// Directories of Python's library that no start needs.
const PYTHON_LEFT_OUT: [&[u8]; 9] = [
    b"site-packages",
    b"dist-packages",
    b"test",
    b"tests",
    b"idlelib",
    b"tkinter",
    b"ensurepip",
    b"lib2to3",
    b"turtledemo",
];
/// Read by every interpreter before the first line of a program.
const PYTHON_FIRST: [&[u8]; 12] = [
    b"encodings",
    b"codecs",
    b"io",
    b"abc",
    b"site",
    b"os",
    b"stat",
    b"_collections_abc",
    b"posixpath",
    b"genericpath",
    b"_sitebuiltins",
    b"importlib",
];
/// Files of one runtime; Python's library has some 1,500.
const FILES_MAX: usize = 3000;
const DEPTH_MAX: usize = 4;

/// What belongs to the program that was found, the most urgent first.
pub(super) fn files(tree: &Tree, program: &Found) -> Vec<Found> {
    let name = file_name(&program.path);
    let prefix = parent(parent(&program.path));
    if name.starts_with(b"python") || name.starts_with(b"pypy") {
        python(tree, prefix, name)
    } else if name == b"java" {
        java(tree, prefix)
    } else {
        Vec::new() // Node, Ruby, Perl, Go, Rust: one binary and its libraries, or what they open.
    }
}

/// `PREFIX/bin/python3.N` reads `PREFIX/lib/python3.N`.
fn python(tree: &Tree, prefix: &[u8], name: &[u8]) -> Vec<Found> {
    let library = [prefix, b"/lib/", name].concat();
    let Some(top) = paths::find(tree, b"/", &library) else { return Vec::new() };
    let mut found = Vec::new();
    walk(tree, &top, &PYTHON_LEFT_OUT, &mut found);
    // The order of the tree is the order of the tar, except for what must be there at once.
    let top_len = top.path.len() + 1;
    found.sort_by_key(|file| {
        let relative = file.path.get(top_len..).unwrap_or_default();
        let relative = relative.strip_prefix(b"__pycache__/").unwrap_or(relative);
        let module = relative.split(|&byte| byte == b'/' || byte == b'.').next();
        let urgent = PYTHON_FIRST.iter().position(|&first| Some(first) == module);
        urgent.unwrap_or(PYTHON_FIRST.len())
    });
    found
}

/// `HOME/bin/java` maps `HOME/lib/modules` and loads libraries beside it.
fn java(tree: &Tree, home: &[u8]) -> Vec<Found> {
    const FIRST: [&[u8]; 9] = [
        b"lib/jvm.cfg",
        b"lib/libjli.so",
        b"lib/server/libjvm.so",
        b"lib/server/classes.jsa",
        b"lib/libjimage.so",
        b"lib/libjava.so",
        b"lib/libnio.so",
        b"lib/libnet.so",
        b"lib/modules",
    ];
    let file = |name: &&[u8]| paths::find(tree, b"/", &join(home, name));
    FIRST.iter().filter_map(file).collect()
}

/// All regular files below `top`, without following symlinks.
fn walk(tree: &Tree, top: &Found, left_out: &[&[u8]], out: &mut Vec<Found>) {
    let mut todo: Vec<(NodeId, Vec<u8>, usize)> = vec![(top.node, top.path.clone(), 0)];
    while let Some((directory, path, depth)) = todo.pop() {
        for (name, id) in tree.children(directory) {
            if out.len() >= FILES_MAX {
                return;
            }
            let Some(node) = tree.node(id) else { continue };
            match node.kind() {
                NodeKind::Regular => out.push(Found { node: id, path: join(&path, name) }),
                NodeKind::Directory if depth < DEPTH_MAX && !left_out.contains(&name) => {
                    todo.push((id, join(&path, name), depth + 1));
                }
                _ => {}
            }
        }
    }
}
