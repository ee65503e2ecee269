//! Trees on disk, compared in every attribute.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::Value;
use spanfs_layer::Digest;

/// All that a program can see of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: &'static str,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, i64),
    /// Names of a file that is no directory.
    pub(crate) nlink: u64,
    pub(crate) rdev: u64,
    pub(crate) target: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) content: Option<(u64, Digest)>,
}

/// Everything below `root`, by path relative to it; the root itself is left out.
pub(crate) fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.expect("directory entry").path();
            let seen = look_at(&path);
            if seen.kind == "directory" {
                dirs.push(path.clone());
            }
            found.insert(path.strip_prefix(root).expect("below the root").to_owned(), seen);
        }
    }
    found
}

fn look_at(path: &Path) -> Seen {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let kind = meta.file_type();
    let (kind, content) = if kind.is_dir() {
        ("directory", None)
    } else if kind.is_file() {
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        ("file", Some((bytes.len() as u64, Digest::of(&bytes))))
    } else if kind.is_symlink() {
        ("symlink", None)
    } else if kind.is_char_device() {
        ("character device", None)
    } else if kind.is_block_device() {
        ("block device", None)
    } else if kind.is_fifo() {
        ("fifo", None)
    } else {
        ("other", None)
    };
    let target = match kind {
        "symlink" => fs::read_link(path).expect("symlink").as_os_str().as_bytes().to_owned(),
        _ => Vec::new(),
    };
    Seen {
        kind,
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        nlink: if kind == "directory" { 0 } else { meta.nlink() },
        rdev: meta.rdev(),
        target,
        xattrs: xattrs(path),
        content,
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let len = match rustix::fs::llistxattr(path, &mut names) {
        Ok(len) => len,
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => 0,
        Err(error) => panic!("xattrs of {}: {error}", path.display()),
    };
    let mut found = BTreeMap::new();
    for name in names[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65536];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)
            .unwrap_or_else(|e| panic!("xattr of {}: {e}", path.display()));
        value.truncate(len);
        // what overlayfs keeps for itself is no part of the image
        if !name.starts_with(b"trusted.overlay.") {
            found.insert(name.to_owned(), value);
        }
    }
    found
}

/// Panics with every difference between two trees.
pub(crate) fn assert_same(expected: &BTreeMap<PathBuf, Seen>, found: &BTreeMap<PathBuf, Seen>) {
    let mut differences = Vec::new();
    for (path, seen) in expected {
        match found.get(path) {
            None => differences.push(format!("{}: missing", path.display())),
            Some(other) if other != seen => {
                differences.push(format!(
                    "{}:\n  expected {seen:?}\n  found    {other:?}",
                    path.display()
                ));
            }
            Some(_) => {}
        }
    }
    for path in found.keys().filter(|path| !expected.contains_key(*path)) {
        differences.push(format!("{}: not expected", path.display()));
    }
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences.join("\n")
    );
}

/// The merged root of the golden images, as the fixtures describe it.
pub(crate) fn golden() -> BTreeMap<PathBuf, Seen> {
    let text = fs::read_to_string(super::peers::fixture("images/tree.jsonl")).expect("fixture");
    let rows: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let relative =
        |path: &str| PathBuf::from(path.trim_start_matches("./").trim_start_matches('/'));
    let mut tree: BTreeMap<PathBuf, Seen> = BTreeMap::new();
    for row in rows.iter().filter(|row| row["type"] != "hardlink" && row["path"] != "/") {
        let text = |key: &str| row[key].as_str().unwrap_or_default();
        let number = |key: &str| row[key].as_u64().unwrap_or_default();
        let kind = match text("type") {
            "dir" => "directory",
            "reg" => "file",
            "symlink" => "symlink",
            other => panic!("{other} in the golden tree"),
        };
        let xattrs = row["xattrs_hex"].as_object().into_iter().flatten();
        let (mode, owner, mtime) = attributes(row);
        let seen = Seen {
            kind,
            mode,
            owner,
            mtime,
            nlink: u64::from(kind != "directory"),
            rdev: 0,
            target: text("linkname").as_bytes().to_owned(),
            xattrs: xattrs
                .map(|(k, v)| (k.clone().into_bytes(), hex(v.as_str().expect("hex"))))
                .collect(),
            content: (kind == "file").then(|| {
                (number("size"), format!("sha256:{}", text("sha256")).parse().expect("digest"))
            }),
        };
        tree.insert(relative(text("path")), seen);
    }
    for row in rows.iter().filter(|row| row["type"] == "hardlink") {
        let (path, target) = (row["path"].as_str(), row["linkname"].as_str());
        let target = relative(target.expect("target"));
        let first = tree.get_mut(&target).expect("the target of a hard link");
        first.nlink += 1;
        // The last header of a file says what its attributes are.
        (first.mode, first.owner, first.mtime) = attributes(row);
        let other = first.clone();
        tree.insert(relative(path.expect("path")), other);
    }
    assert!(tree.len() > 20, "the golden tree has {} paths", tree.len());
    tree
}

/// Mode, owner and time of a row.
fn attributes(row: &Value) -> (u32, (u32, u32), (i64, i64)) {
    let number = |key: &str| row[key].as_u64().unwrap_or_default() as u32;
    let time = |key: &str| row["mtime"][key].as_i64().expect("a time");
    let mode = u32::from_str_radix(row["mode"].as_str().unwrap_or_default(), 8).expect("octal");
    (mode, (number("uid"), number("gid")), (time("sec"), time("nsec")))
}

fn hex(text: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(digits).collect()
}
