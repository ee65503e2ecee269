//! Random images of several layers against a tree in memory: what each layer adds, replaces, links and
//! hides is done to the tree as well, and the mounted image must be that tree.

use std::collections::BTreeMap;
use std::path::PathBuf;

use spanfs_layer::Digest;
use spanfs_registry::Registry;
use spanfs_tests::tars::{Attributes, Tar};
use tar::EntryType;

use crate::node;
use crate::peers::able;
use crate::scratch::Scratch;
use crate::trees::{self, Seen, look};

const SEEDS: std::ops::Range<u64> = 1..5;
const LAYERS: usize = 5;
const OPERATIONS: usize = 60;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit.max(1)
    }

    fn attributes(&mut self) -> Attributes {
        let mut xattrs = BTreeMap::new();
        if self.below(5) == 0 {
            xattrs.insert(b"user.random".to_vec(), vec![b'v'; self.below(300)]);
        }
        Attributes {
            mode: 0o400 | self.below(0o10000) as u32,
            owner: (self.below(70_000) as u32, self.below(70_000) as u32),
            mtime: (self.below(2_000_000_000) as i64, self.below(1_000_000_000) as i64),
            xattrs,
        }
    }

    fn content(&mut self) -> Vec<u8> {
        let len = 1 << self.below(18);
        let mut state = self.below(usize::MAX) as u64 | 1;
        let byte = |_| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            if state >> 63 == 0 { b'.' } else { (state >> 56) as u8 }
        };
        (0..self.below(len)).map(byte).collect()
    }
}

/// The tree as the layers so far make it, and the layer that is being made.
struct Model {
    tree: BTreeMap<String, Seen>,
    /// Paths that this layer has named: a layer says one thing of a path.
    named: Vec<String>,
    tar: Tar,
    counter: usize,
}

impl Model {
    /// A directory, `""` or ending with a slash.
    fn directory(&self, random: &mut Random) -> String {
        let directories: Vec<&String> =
            self.tree.iter().filter(|(_, seen)| seen.kind == "directory").map(|it| it.0).collect();
        match random.below(directories.len() + 1) {
            0 => String::new(),
            number => format!("{}/", directories[number - 1]),
        }
    }

    fn fresh(&mut self, random: &mut Random) -> String {
        self.counter += 1;
        let long = if random.below(10) == 0 { "long-".repeat(40) } else { String::new() };
        format!("{}{long}{}", self.directory(random), self.counter)
    }

    /// Something that this layer may still speak of, with nothing below it that it has spoken of, and
    /// no names of a file that has others.
    fn victim(&self, random: &mut Random) -> Option<String> {
        let below = |path: &str, other: &str| {
            other == path || other.strip_prefix(path).is_some_and(|it| it.starts_with('/'))
        };
        let free = |path: &&String| {
            let named = self.named.iter().any(|it| below(path, it) || below(it, path));
            let linked = |(other, seen): (&String, &Seen)| seen.nlink > 1 && below(path, other);
            !named && !self.tree.iter().any(linked)
        };
        let candidates: Vec<&String> = self.tree.keys().filter(free).collect();
        candidates.get(random.below(candidates.len())).map(|it| (*it).clone())
    }

    /// Everything below a directory is gone.
    fn clear(&mut self, directory: &str) {
        let below = format!("{directory}/");
        self.tree.retain(|path, _| !path.starts_with(&below));
    }

    fn put(&mut self, path: &str, kind: EntryType, it: &Attributes, content: &[u8]) {
        self.tar.entry(kind, path, it, content);
        let (kind, target, content) = match kind {
            EntryType::Directory => ("directory", Vec::new(), None),
            EntryType::Symlink => ("symlink", content.to_vec(), None),
            EntryType::Fifo => ("fifo", Vec::new(), None),
            _ => ("file", Vec::new(), Some((content.len() as u64, Digest::of(content)))),
        };
        if kind != "directory" {
            self.clear(path);
        }
        let seen = Seen {
            kind,
            mode: if kind == "symlink" { 0o777 } else { it.mode },
            owner: it.owner,
            mtime: it.mtime,
            nlink: u64::from(kind != "directory"),
            rdev: 0,
            target,
            xattrs: it.xattrs.clone(),
            content,
        };
        self.tree.insert(path.to_owned(), seen);
        self.named.push(path.to_owned());
    }

    fn operate(&mut self, random: &mut Random) {
        let it = random.attributes();
        match random.below(12) {
            0 | 1 => {
                let path = self.fresh(random);
                self.put(&path, EntryType::Directory, &it, &[]);
            }
            2 => {
                let path = self.fresh(random);
                let target = "t/".repeat(1 + random.below(300));
                let it = Attributes { xattrs: BTreeMap::new(), ..it };
                self.put(&path, EntryType::Symlink, &it, target.as_bytes());
            }
            3 => {
                let path = self.fresh(random);
                self.put(
                    &path,
                    EntryType::Fifo,
                    &Attributes { xattrs: BTreeMap::new(), ..it },
                    &[],
                );
            }
            4 => self.link(random),
            5 | 6 => {
                // Hidden, or replaced by whatever comes.
                let Some(path) = self.victim(random) else { return };
                let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
                let slash = if parent.is_empty() { "" } else { "/" };
                let whiteout = format!("{parent}{slash}.wh.{name}");
                self.tar.entry(EntryType::Regular, &whiteout, &Attributes::default(), &[]);
                self.clear(&path);
                self.tree.remove(&path);
                self.named.push(path);
            }
            7 => {
                let Some(path) = self.victim(random) else { return };
                if self.tree.get(&path).is_some_and(|seen| seen.kind == "directory") {
                    self.clear(&path);
                    self.put(&path, EntryType::Directory, &it, &[]);
                    let opaque = format!("{path}/.wh..wh..opq");
                    self.tar.entry(EntryType::Regular, &opaque, &Attributes::default(), &[]);
                } else {
                    self.put(&path, EntryType::Directory, &it, &[]);
                }
            }
            8 => {
                let Some(path) = self.victim(random) else { return };
                let content = random.content();
                self.put(&path, EntryType::Regular, &it, &content);
            }
            _ => {
                let path = self.fresh(random);
                let content = random.content();
                self.put(&path, EntryType::Regular, &it, &content);
            }
        }
    }

    /// One more name of a file of this layer.
    fn link(&mut self, random: &mut Random) {
        let files: Vec<&String> = self
            .named
            .iter()
            .filter(|path| self.tree.get(*path).is_some_and(|seen| seen.kind == "file"))
            .collect();
        let Some(target) = files.get(random.below(files.len())).map(|it| (*it).clone()) else {
            return;
        };
        let path = self.fresh(random);
        // The last header that names a file says what its attributes are.
        let it = random.attributes();
        self.tar.entry(EntryType::Link, &path, &it, target.as_bytes());
        let old = self.tree[&target].clone();
        let (mode, owner, mtime) = (it.mode, it.owner, it.mtime);
        let mut seen = Seen { mode, owner, mtime, nlink: old.nlink + 1, ..old.clone() };
        seen.xattrs.extend(it.xattrs);
        // Files of equal content and attributes are one here: random ones are never equal.
        for other in self.tree.values_mut() {
            if other.mtime == old.mtime && other.content == old.content {
                *other = seen.clone();
            }
        }
        self.tree.insert(path.clone(), seen);
        self.named.push(path);
    }

    /// The layer is made; the next one may speak of everything again.
    fn layer(&mut self) -> Vec<u8> {
        self.named.clear();
        std::mem::take(&mut self.tar).finish()
    }
}

#[test]
fn random_images_are_the_tree_that_their_layers_make() {
    if !able(&[], true) {
        return;
    }
    let registry = Registry::builder().start().expect("registry");
    for seed in SEEDS {
        let scratch = Scratch::new();
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut model =
            Model { tree: BTreeMap::new(), named: Vec::new(), tar: Tar::default(), counter: 0 };
        let mut tars = Vec::new();
        for number in 0..LAYERS {
            (0..OPERATIONS).for_each(|_| model.operate(&mut random));
            let path = scratch.path(&format!("{number}.tar"));
            std::fs::write(&path, model.layer()).expect("write");
            tars.push(path);
        }
        let tag = format!("model-{seed}");
        let paths: Vec<_> = tars.iter().map(PathBuf::as_path).collect();
        node::put_image(&registry, &tag, &paths);
        let image = node::index(&registry, &scratch, &tag, &format!("{tag}-indexed"));
        let expected: BTreeMap<PathBuf, Seen> =
            model.tree.into_iter().map(|(path, seen)| (PathBuf::from(path), seen)).collect();
        eprintln!("seed {seed}: {} paths", expected.len());
        for front in ["erofs", "inode"] {
            let root = scratch.mount(&image, &["--front", front]);
            trees::assert_same(&expected, &look(&root));
            scratch.umount();
            scratch.forget();
        }
    }
}
