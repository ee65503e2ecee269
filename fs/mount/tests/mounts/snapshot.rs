//! What a mounted tree shows, by system calls.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::layers::{Seen, Snapshot};

/// Everything below `root`.
pub(crate) fn of(root: &Path) -> Snapshot {
    let mut snapshot = Snapshot::new();
    let mut inodes = HashMap::new();
    walk(root, root, &mut snapshot, &mut inodes);
    // "Same as" names the first path, whatever the order of the walk was.
    let mut first: HashMap<Inode, String> = HashMap::new();
    for path in snapshot.keys() {
        first.entry(inodes[path]).or_insert_with(|| path.clone());
    }
    for (path, seen) in &mut snapshot {
        seen.same_as.clone_from(&first[&inodes[path]]);
    }
    snapshot
}

/// Device and number: layers below an overlay have numbers of their own.
type Inode = (u64, u64);

fn walk(root: &Path, directory: &Path, out: &mut Snapshot, inodes: &mut HashMap<String, Inode>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        let metadata = path.symlink_metadata().unwrap();
        let file_type = metadata.file_type();
        assert_eq!(entry.file_type().unwrap(), file_type, "type in the listing of {path:?}");
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        inodes.insert(name.clone(), (metadata.dev(), metadata.ino()));
        let is_device = file_type.is_char_device() || file_type.is_block_device();
        let content = if file_type.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        if file_type.is_file() {
            assert_eq!(content.len() as u64, metadata.size(), "size of {path:?}");
        }
        let link = match file_type.is_symlink() {
            true => std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec(),
            false => Vec::new(),
        };
        out.insert(
            name,
            Seen {
                mode: metadata.mode(),
                owner: (metadata.uid(), metadata.gid()),
                mtime: (metadata.mtime(), metadata.mtime_nsec()),
                rdev: if is_device { metadata.rdev() } else { 0 },
                nlink: metadata.nlink(),
                link,
                xattrs: xattrs(&path),
                content,
                same_as: String::new(),
            },
        );
        if file_type.is_dir() {
            walk(root, &path, out, inodes);
        }
    }
}

pub(crate) fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(len);
        (name.to_vec(), value)
    };
    names.map(value).collect()
}

/// Compare, and tell the first difference instead of two whole trees.
pub(crate) fn assert_same(found: &Snapshot, expected: &Snapshot, what: &str) {
    let missing: Vec<_> = expected.keys().filter(|path| !found.contains_key(*path)).collect();
    let extra: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
    assert!(missing.is_empty() && extra.is_empty(), "{what}: missing {missing:?}, extra {extra:?}");
    let mut first = HashMap::new();
    for (path, expected) in expected {
        let mut expected = expected.clone();
        // Among hard links the model names the one made first, a walk the one that sorts first.
        expected.same_as = first.entry(expected.same_as).or_insert_with(|| path.clone()).clone();
        let mut found = found[path].clone();
        if expected.nlink == 0 {
            found.nlink = 0;
        }
        if found != expected {
            let same_content = found.content == expected.content;
            let brief = |seen: &Seen| Seen { content: Vec::new(), ..seen.clone() };
            let (found, expected) = (brief(&found), brief(&expected));
            panic!(
                "{what}: {path}: {found:?}, expected {expected:?}, content same: {same_content}"
            );
        }
    }
}
