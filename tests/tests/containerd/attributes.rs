//! Unpacked layers against those of containerd's own overlayfs snapshotter, in every attribute.
//!
//! Not compared are access times, as neither a zTOC nor EROFS has any; and times that containerd leaves
//! at that of the pull: of whiteouts, and of directories that no entry describes. Different on purpose:
//! a directory that the same layer also hides below hides what lower layers hold, as the image
//! specification has it, while overlayfs shows that again with containerd; and reserved names of AUFS are
//! no files.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use spanfs_layer::Digest;
use spanfs_registry::Registry;
use spanfs_tests::tars::{Attributes, Tar};
use tar::EntryType;

use crate::image::{Image, Layer};
use crate::lazy::pull_by_cri;
use crate::node::{Node, Setup};
use crate::versions::{Version, on_each_containerd};

on_each_containerd!(layers_are_unpacked_as_containerd_does);

const FILES: &str = r#"
[content_store]
  type = "containerd"
[pull_modes.parallel_pull_unpack]
  enable = true
[spanfs]
  front = "files"
"#;
const OURS: &str = "lib/soci-snapshotter-grpc/snapshotter/snapshots";
const THEIRS: &str = "lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
/// The nasty layer of the image, and a directory of it that is a whiteout, too.
const NASTY: usize = 2;
const HIDING: &str = "replaced";
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const SEEDS: std::ops::Range<u64> = 1..7;
const ENTRIES: usize = 250;
/// Times within that of now are of the pull.
const RECENT: Duration = Duration::from_secs(3600);

/// All that the disk has of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    /// None: of the pull.
    mtime: Option<(i64, i64)>,
    rdev: u64,
    /// All names of the same inode.
    names: BTreeSet<PathBuf>,
    target: Option<PathBuf>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    content: Option<(u64, Digest)>,
}

fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut inodes: BTreeMap<u64, BTreeSet<PathBuf>> = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).expect("metadata");
        let name = path.strip_prefix(root).expect("below").to_owned();
        let kind = meta.file_type();
        if kind.is_dir() {
            let entries = fs::read_dir(&path).expect("directory");
            todo.extend(entries.map(|entry| entry.expect("entry").path()));
        } else {
            inodes.entry(meta.ino()).or_default().insert(name.clone());
        }
        let content = kind.is_file().then(|| fs::read(&path).expect("content"));
        let modified = meta.modified().expect("a time");
        let is_recent = SystemTime::now().duration_since(modified).is_ok_and(|age| age < RECENT);
        let seen = Seen {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: (!is_recent).then(|| (meta.mtime(), meta.mtime_nsec())),
            rdev: meta.rdev(),
            names: BTreeSet::new(),
            target: kind.is_symlink().then(|| fs::read_link(&path).expect("target")),
            xattrs: xattrs(&path),
            content: content.map(|bytes| (bytes.len() as u64, Digest::of(&bytes))),
        };
        found.insert(name, seen);
    }
    for names in inodes.into_values() {
        for name in &names {
            found.get_mut(name).expect("seen").names = names.clone();
        }
    }
    found
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut buffer = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut buffer).expect("attributes");
    let names = buffer[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 65536];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).expect("value");
        value.truncate(len);
        (name.to_owned(), value)
    };
    names.map(value).collect()
}

/// Contents of snapshots below a directory, the oldest first.
fn snapshots(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("snapshots");
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u64>().ok();
    let mut numbers: Vec<_> = entries.filter_map(|entry| number(entry.expect("entry"))).collect();
    numbers.sort_unstable();
    numbers.iter().map(|number| directory.join(number.to_string()).join("fs")).collect()
}

fn layers_are_unpacked_as_containerd_does(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let node = Node::start(&Setup { config: FILES, ..Setup::of(version) });
    let mut image = Image::of(Layer::programs()).layer_tar(below()).layer_tar(nasty());
    for seed in SEEDS {
        image = image.layer_tar(random(seed));
    }
    let reference = image.push(&registry, "test/attributes", "1");
    pull_by_cri(&node, &reference);
    let arguments = ["images", "pull", "--plain-http", "--snapshotter", "overlayfs", &reference];
    node.default().ctr(&arguments);
    let (ours, theirs) = (snapshots(&node.path(OURS)), snapshots(&node.path(THEIRS)));
    assert_eq!((ours.len(), theirs.len()), (image.layers(), image.layers()), "snapshots");
    let mut differences = Vec::new();
    for (layer, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        let (ours, theirs) = (look(ours), look(theirs));
        assert!(theirs.len() > 10, "layer {layer} has {} names", theirs.len());
        let names: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
        for name in names.into_iter().filter(|name| !name.starts_with("d/.wh..wh.plnk")) {
            let (ours, theirs) = (ours.get(name), theirs.get(name));
            if !is_same(name, ours, theirs) {
                let name = name.display();
                let text =
                    format!("layer {layer}, {name}:\n  theirs {theirs:?}\n  ours   {ours:?}");
                differences.push(text);
            }
        }
    }
    let ours = look(&ours[NASTY]);
    assert!(!ours.contains_key(Path::new("d/.wh..wh.plnk")), "a reserved name is shown");
    assert!(ours[Path::new(HIDING)].xattrs.contains_key(OPAQUE), "what lies below shows again");
    let count = differences.len();
    assert!(differences.is_empty(), "{count} differences:\n{}", differences.join("\n"));
}

/// See the module for what may differ.
fn is_same(name: &Path, ours: Option<&Seen>, theirs: Option<&Seen>) -> bool {
    let (Some(ours), Some(theirs)) = (ours, theirs) else { return false };
    let mut ours = ours.clone();
    if theirs.mtime.is_none() {
        ours.mtime = None;
    }
    if name == Path::new(HIDING) {
        ours.xattrs.remove(OPAQUE);
    }
    ours == *theirs
}

/// What a program may set, its time in the past.
fn with(mode: u32, owner: (u32, u32), mtime: (i64, i64)) -> Attributes {
    Attributes { mode, owner, mtime, xattrs: BTreeMap::new() }
}

fn plain() -> Attributes {
    with(0o644, (0, 0), (1_600_000_000, 0))
}

fn xattr(mut it: Attributes, name: &str, value: &[u8]) -> Attributes {
    it.xattrs.insert(name.into(), value.into());
    it
}

/// What the nasty layer hides, and builds upon.
fn below() -> Vec<u8> {
    let mut tar = Tar::default();
    let directory = with(0o2751, (12, 34), (1_500_000_000, 5));
    for path in ["kept", "kept/deep", "opaque", "gone", "replaced", "lower"] {
        let directory = xattr(directory.clone(), "user.of", path.as_bytes());
        tar.entry(EntryType::Directory, path, &directory, b"");
        tar.entry(EntryType::Regular, &format!("{path}/file"), &plain(), path.as_bytes());
    }
    tar.finish()
}

/// A capability, version 2: CAP_NET_RAW.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// An access list: owner rwx, user 7 r-x, group r--, mask r-x, others ---.
const ACCESS: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 5, 0, 7, 0, 0, 0, 4, 0, 4, 0, 255, 255, 255,
    255, 16, 0, 5, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];

/// One of everything that was ever seen, or feared.
fn nasty() -> Vec<u8> {
    use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
    let mut tar = Tar::default();
    // Modes, owners, times.
    let odd = with(0o6_751, (70_000, 4_000_000_000), (1_234_567_890, 123_456_789));
    tar.entry(Regular, "./set-ids", &odd, b"x");
    tar.entry(Regular, "/sticky", &with(0o1_000, (1, 2), (0, 0)), b"");
    tar.entry(Regular, "../climbs", &with(0o100_644, (1, 2), (1, 999_999_999)), b"up");
    tar.entry(Regular, "early", &with(0o644, (1, 2), (-5, 0)), b"1969");
    tar.entry(Regular, "late", &with(0o644, (1, 2), (10_000_000_000, 0)), b"2286");
    tar.entry(Directory, "d/", &with(0o3_770, (5, 6), (1_111_111_111, 1)), b"");
    tar.entry(Regular, "d/in", &plain(), b"in");
    tar.entry(Regular, "implied/deep/file", &plain(), b"file");
    // Of lower layers: merged, copied, hidden, hidden and made again.
    tar.entry(Directory, "kept", &xattr(odd.clone(), "user.more", b"1"), b"");
    tar.entry(Regular, "kept/deep/new", &plain(), b"new");
    tar.entry(Regular, "lower/.wh.file", &plain(), b"");
    tar.entry(Regular, "opaque/new", &plain(), b"new");
    tar.entry(Regular, "opaque/.wh..wh..opq", &plain(), b"");
    tar.entry(Regular, ".wh.gone", &with(0o600, (3, 3), (1_300_000_000, 0)), b"");
    tar.entry(Regular, ".wh.replaced", &plain(), b"");
    tar.entry(Directory, "replaced", &odd, b"");
    tar.entry(Regular, "replaced/new", &plain(), b"new");
    tar.entry(Regular, "d/.wh..wh.plnk/1.2", &plain(), b"aufs");
    // Attributes.
    let capable = xattr(plain(), "security.capability", &CAPABILITY);
    tar.entry(Regular, "capable", &capable, b"ping");
    let listed = xattr(with(0o754, (1, 2), (3, 4)), "system.posix_acl_access", &ACCESS);
    tar.entry(Regular, "listed", &listed, b"acl");
    tar.entry(
        Directory,
        "listed-too",
        &xattr(odd.clone(), "system.posix_acl_default", &ACCESS),
        b"",
    );
    let many = xattr(xattr(plain(), "user.a", b""), "user.b", &[b'v'; 200]);
    tar.entry(Regular, "many", &many, b"xattrs");
    tar.entry(Regular, "trusted", &xattr(plain(), "trusted.overlay.opaque", b"y"), b"not theirs");
    tar.entry(Symlink, "of-symlink", &xattr(plain(), "user.a", b"left out"), b"many");
    // Other kinds.
    tar.device(Char, "null", &with(0o666, (0, 0), (7, 0)), (1, 3));
    tar.device(Char, "whiteout-like", &with(0o640, (1, 1), (7, 0)), (0, 0));
    tar.device(Block, "large-numbers", &with(0o660, (0, 6), (8, 0)), (259, 70_000));
    tar.entry(Fifo, "fifo", &with(0o622, (9, 9), (9, 9)), b"");
    tar.entry(Symlink, "dangling", &with(0o123, (4, 5), (1_000, 1)), b"../../nowhere/at all");
    tar.entry(Symlink, "through", &plain(), b"/d");
    tar.entry(Regular, "through/by-symlink", &plain(), b"lies in d");
    // Hard links: the last header counts.
    tar.entry(Regular, "linked", &capable, b"linked");
    tar.entry(Link, "linked-1", &with(0o4_711, (8, 9), (2_000, 2)), b"linked");
    tar.entry(Regular, "linked-capable", &capable, b"linked, and capable");
    tar.entry(Link, "linked-capable-1", &capable, b"./linked-capable");
    tar.entry(Link, "dangling-1", &with(0o600, (6, 7), (3_000, 3)), b"dangling");
    tar.entry(Link, "fifo-1", &with(0o640, (6, 7), (4_000, 4)), b"fifo");
    tar.entry(Link, "null-1", &with(0o600, (6, 7), (5_000, 5)), b"null");
    tar.entry(Link, "d/by-symlink-1", &xattr(plain(), "user.l", b"1"), b"through/by-symlink");
    // Names once more.
    tar.entry(Regular, "again", &plain(), b"first");
    tar.entry(Regular, "again", &odd, b"second");
    tar.entry(Link, "again-1", &odd, b"again");
    tar.entry(Regular, "again", &plain(), b"third");
    tar.entry(Regular, "file-then-directory", &plain(), b"");
    tar.entry(Directory, "file-then-directory", &odd, b"");
    tar.entry(Directory, "twice", &xattr(odd.clone(), "user.first", b"1"), b"");
    tar.entry(Directory, "twice", &xattr(with(0o700, (1, 1), (1, 1)), "user.second", b"2"), b"");
    let long = "long/".repeat(60) + &"x".repeat(255);
    tar.entry(Regular, &long, &plain(), b"long");
    tar.entry(Regular, "\u{f1}and\u{0a}newline\\", &plain(), b"name");
    tar.finish()
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit.max(1)
    }

    fn one<'a>(&mut self, of: &'a [String]) -> Option<&'a String> {
        of.get(self.below(of.len()))
    }

    fn attributes(&mut self) -> Attributes {
        let mtime = (self.below(1_700_000_000) as i64, self.below(1_000_000_000) as i64);
        let owner = (self.below(70_000) as u32, self.below(70_000) as u32);
        let mut it = with(self.below(0o10_000) as u32, owner, mtime);
        if self.below(4) == 0 {
            let value = vec![b'v'; self.below(200)];
            it = xattr(it, &format!("user.{}", self.below(3)), &value);
        }
        match self.below(12) {
            0 => xattr(it, "security.capability", &CAPABILITY),
            _ => it,
        }
    }
}

/// Entries in an order that containerd takes: parents are directories, targets of links are there.
fn random(seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut tar = Tar::default();
    // Both grow only: what was a directory stays one.
    let (mut directories, mut files) = (vec![String::new()], Vec::<String>::new());
    for number in 0..ENTRIES {
        let it = random.attributes();
        let parent = random.one(&directories).expect("the root").clone();
        // A name of its own in all layers: containerd refuses a directory below what was a file.
        let fresh = format!("{parent}{seed}-{number}");
        match random.below(12) {
            0 | 1 => {
                tar.entry(EntryType::Directory, &fresh, &it, b"");
                directories.push(format!("{fresh}/"));
            }
            2 if parent.len() > 1 => tar.entry(EntryType::Directory, &parent, &it, b""),
            3 => directories.push(format!("{fresh}-implied/")),
            4 => tar.entry(EntryType::Symlink, &fresh, &plain(), b"anywhere"),
            5 => tar.entry(EntryType::Regular, &format!("{parent}.wh.{seed}-{number}"), &it, b""),
            6 if number % 5 == 0 => {
                tar.entry(EntryType::Regular, &format!("{parent}.wh..wh..opq"), &it, b"");
            }
            7 | 8 => {
                if let Some(target) = random.one(&files).cloned() {
                    tar.entry(EntryType::Link, &fresh, &it, target.as_bytes());
                    files.push(fresh);
                }
            }
            9 => {
                if let Some(path) = random.one(&files).cloned() {
                    tar.entry(EntryType::Regular, &path, &it, format!("{number}").as_bytes());
                }
            }
            _ => {
                let content = vec![number as u8; random.below(9000)];
                tar.entry(EntryType::Regular, &fresh, &it, &content);
                files.push(fresh);
            }
        }
    }
    tar.finish()
}
