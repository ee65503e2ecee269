//! Directories of the layers below, for a layer that only implies them.
//!
//! The layers below are directories of ours or mounts that are never written to; nothing is followed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use spanfs::layer_index::Described;
use spanfs_layer::Time;

/// Longest attribute of a directory that is looked at, the kernel's limit.
const XATTR_LEN_MAX: usize = 64 << 10;
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];
/// overlayfs's own attributes say nothing about the directory.
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Those of `paths` that the layers describe; `lowers` are their roots, nearest first.
pub(super) fn describe(lowers: &[PathBuf], paths: &[Vec<u8>]) -> Vec<Described> {
    paths.iter().filter_map(|path| describe_one(lowers, path)).collect()
}

/// What one layer says about a path.
enum Found {
    Directory(PathBuf),
    /// Nothing, and the next layer is asked.
    Nothing,
    /// It is no directory, or what lies below is hidden.
    Hidden,
}

fn describe_one(lowers: &[PathBuf], path: &[u8]) -> Option<Described> {
    for lower in lowers {
        match find(lower, path) {
            Found::Directory(place) => return described(&place, path),
            Found::Nothing => {}
            Found::Hidden => return None,
        }
    }
    None
}

fn find(lower: &Path, path: &[u8]) -> Found {
    let mut place = lower.to_owned();
    let mut is_opaque = false;
    for name in path.split(|&byte| byte == b'/') {
        place.push(OsStr::from_bytes(name));
        match fs::symlink_metadata(&place) {
            Err(_) if is_opaque => return Found::Hidden,
            Err(_) => return Found::Nothing,
            Ok(metadata) if metadata.is_dir() => is_opaque |= has_opaque(&place),
            Ok(_) => return Found::Hidden,
        }
    }
    Found::Directory(place)
}

fn has_opaque(place: &Path) -> bool {
    let mut value = [0; 1];
    OPAQUE.iter().any(|name| {
        rustix::fs::lgetxattr(place, *name, &mut value).is_ok_and(|len| len == 1 && value == *b"y")
    })
}

fn described(place: &Path, path: &[u8]) -> Option<Described> {
    let metadata = fs::symlink_metadata(place).ok()?;
    Some(Described {
        path: path.to_owned(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: Time {
            seconds: metadata.mtime(),
            nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
        },
        xattrs: xattrs(place),
    })
}

fn xattrs(place: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; XATTR_LEN_MAX];
    let len = rustix::fs::llistxattr(place, &mut names).unwrap_or(0);
    let names = names.get(..len).unwrap_or_default().split(|&byte| byte == 0);
    let mut value = vec![0; XATTR_LEN_MAX];
    let theirs =
        names.filter(|name| !name.is_empty() && !OVERLAY.iter().any(|own| name.starts_with(own)));
    let mut xattrs: Vec<_> = theirs
        .filter_map(|name| {
            let len = rustix::fs::lgetxattr(place, OsStr::from_bytes(name), &mut value).ok()?;
            Some((name.to_owned(), value.get(..len)?.to_owned()))
        })
        .collect();
    xattrs.sort();
    xattrs
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_nearest_directory_counts_unless_something_hides_it() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for name in ["near/a", "far/a/b", "far/c/d", "far/e"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::set_permissions(path("near/a"), fs::Permissions::from_mode(0o711)).unwrap();
        fs::set_permissions(path("far/a/b"), fs::Permissions::from_mode(0o700)).unwrap();
        // A file hides what lies below, as a whiteout does; a link is not followed.
        fs::write(path("near/c"), "").unwrap();
        std::os::unix::fs::symlink("a", path("near/e")).unwrap();
        let lowers = [path("near"), path("far")];
        let paths = ["a", "a/b", "c/d", "e", "nowhere"].map(|path| path.as_bytes().to_vec());
        let found: Vec<_> = describe(&lowers, &paths)
            .into_iter()
            .map(|it| (String::from_utf8(it.path).unwrap(), it.mode))
            .collect();
        assert_eq!(found, [("a".to_owned(), 0o711), ("a/b".to_owned(), 0o700)]);
    }

    #[test]
    fn an_opaque_directory_hides_its_namesakes_below() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for name in ["near/a", "far/a/b"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        let flags = rustix::fs::XattrFlags::empty();
        if rustix::fs::lsetxattr(path("near/a"), OPAQUE[1], b"y", flags).is_err() {
            eprintln!("skipped: no user attributes here");
            return;
        }
        let lowers = [path("near"), path("far")];
        assert!(describe(&lowers, &[b"a/b".to_vec()]).is_empty());
    }
}
