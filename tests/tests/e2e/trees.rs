//! Trees on disk, compared in every attribute.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

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

/// The root that GNU tar and the whiteout rules make of layers, from the bottom up.
pub(crate) fn extract(layers: &[PathBuf], into: &Path) {
    for (number, layer) in layers.iter().enumerate() {
        let own = into.join(format!(".layer-{number}"));
        fs::create_dir(&own).expect("directory");
        super::peers::run(
            std::process::Command::new("tar")
                .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"])
                .arg(layer)
                .arg("-C")
                .arg(&own),
        );
        hide(&own, &into.join("root"), Path::new(""));
        let script = r#"tar --xattrs --xattrs-include='*' --numeric-owner --format=posix --exclude='.wh.*' -C "$0" -cf - . |
            tar --xattrs --xattrs-include='*' --numeric-owner -xpf - -C "$1""#;
        fs::create_dir_all(into.join("root")).expect("directory");
        super::peers::run(
            std::process::Command::new("bash")
                .args(["-o", "pipefail", "-c", script])
                .arg(&own)
                .arg(into.join("root")),
        );
        fs::remove_dir_all(&own).expect("remove");
    }
}

/// Applies the whiteouts of `layer` to `root`.
fn hide(layer: &Path, root: &Path, below: &Path) {
    for entry in fs::read_dir(layer.join(below)).expect("readable") {
        let entry = entry.expect("directory entry");
        let name = entry.file_name();
        let path = below.join(&name);
        match name.as_bytes().strip_prefix(b".wh.") {
            Some(b".wh..opq") => {
                for lower in fs::read_dir(root.join(below)).into_iter().flatten() {
                    remove(&lower.expect("directory entry").path());
                }
            }
            Some(hidden) => remove(&root.join(below).join(OsStr::from_bytes(hidden))),
            None => {
                let kind = entry.file_type().expect("type");
                let lower = fs::symlink_metadata(root.join(&path));
                if kind.is_dir() && lower.as_ref().is_ok_and(|m| m.is_dir()) {
                    hide(layer, root, &path);
                } else if lower.is_ok() {
                    remove(&root.join(&path));
                }
            }
        }
    }
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).expect("remove"),
        Ok(_) => fs::remove_file(path).expect("remove"),
        Err(_) => {}
    }
}
