//! The directories of snapshots: `ROOT/snapshotter/snapshots/ID/{fs,work}`, the layout of containerd's
//! overlay family, which other tools know.
//!
//! The record of a snapshot decides whether its directory counts: it is made before the record and
//! goes after it. So a directory without record is left over and may go at any time.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::state::Kind;

/// An operation on a directory that failed.
#[derive(Debug, thiserror::Error)]
#[error("{attempt} {}", path.display())]
pub struct DirectoryError {
    /// What was attempted.
    attempt: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl DirectoryError {
    /// For `attempt` on `path`.
    pub(crate) fn of(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self { attempt, path, source }
    }

    /// Whether the disk has no room.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self.source.kind(), StorageFull | QuotaExceeded)
    }
}

/// Owner of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What removing a left-over directory came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Gone,
    /// Something is mounted there, so nothing was touched.
    Mounted,
}

/// The directories of all snapshots.
#[derive(Debug)]
pub struct Directories {
    snapshots: PathBuf,
}

/// Only root looks into the state of a node.
const PRIVATE: u32 = 0o700;
/// Root of a container or layer, whatever the image says of its own root.
const FS_MODE: u32 = 0o755;
/// As the overlay snapshotter makes it: other users may pass, not list.
const WORK_MODE: u32 = 0o711;

impl Directories {
    /// Make `snapshotter` and `snapshots` below `root`, which is made too where it is missing.
    pub fn open(root: &Path) -> Result<Self, DirectoryError> {
        let all = fs::DirBuilder::new().recursive(true).mode(PRIVATE).create(root);
        all.map_err(fail("making", root))?;
        let snapshotter = root.join("snapshotter");
        let snapshots = snapshotter.join("snapshots");
        for path in [&snapshotter, &snapshots] {
            match fs::DirBuilder::new().mode(PRIVATE).create(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(fail("making", path)(error));
                }
                _ => set_mode(path, PRIVATE)?,
            }
        }
        sync(&snapshots)?;
        sync(&snapshotter)?;
        Ok(Self { snapshots })
    }

    /// Where the directories of snapshots are.
    pub fn path(&self) -> &Path {
        &self.snapshots
    }

    /// The directory of a snapshot.
    pub fn of(&self, id: u64) -> PathBuf {
        self.snapshots.join(id.to_string())
    }

    /// A snapshot's content: the upper directory of an active one, a lower one of its children.
    pub fn fs(&self, id: u64) -> PathBuf {
        self.of(id).join("fs")
    }

    /// Where a snapshot with owners of its own has the layers below: by their number, nearest first.
    pub fn mapped(&self, id: u64) -> PathBuf {
        self.of(id).join("mapped")
    }

    /// What overlayfs needs beside an upper directory.
    pub fn work(&self, id: u64) -> PathBuf {
        self.of(id).join("work")
    }

    /// Make the directory of a new snapshot. When this returns, it survives a power cut.
    ///
    /// `owner` is that of the parent's content: overlayfs shows the topmost directory as the root.
    pub fn create(&self, id: u64, kind: Kind, owner: Option<Owner>) -> Result<(), DirectoryError> {
        let (path, content) = (self.of(id), self.fs(id));
        make(&path, PRIVATE)?;
        make(&content, FS_MODE)?;
        if kind == Kind::Active {
            make(&self.work(id), WORK_MODE)?;
        }
        if let Some(Owner { uid, gid }) = owner {
            std::os::unix::fs::lchown(&content, Some(uid), Some(gid))
                .map_err(fail("giving an owner to", &content))?;
        }
        // Its last change is younger than its own entry above, so a journal that has one has both.
        sync(&path)
    }

    /// Owner of a snapshot's content.
    pub fn owner(&self, id: u64) -> Result<Owner, DirectoryError> {
        let content = self.fs(id);
        let metadata = fs::symlink_metadata(&content).map_err(fail("looking at", &content))?;
        Ok(Owner { uid: metadata.uid(), gid: metadata.gid() })
    }

    /// Whether a snapshot's content is there.
    pub fn has(&self, id: u64) -> bool {
        fs::symlink_metadata(self.fs(id)).is_ok_and(|metadata| metadata.is_dir())
    }

    /// Names of everything beside each other here.
    pub fn names(&self) -> Result<Vec<String>, DirectoryError> {
        let error = fail("listing", &self.snapshots);
        let list = || -> io::Result<Vec<String>> {
            fs::read_dir(&self.snapshots)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        };
        list().map_err(error)
    }

    /// Remove what has no record. A mount is left alone, and what contains it.
    pub fn remove(&self, name: &str) -> Result<Removal, DirectoryError> {
        assert!(!name.is_empty() && !name.contains('/') && name != "..", "{name:?} is no entry");
        let path = self.snapshots.join(name);
        let error = fail("removing", &path);
        let remove = || {
            if !fs::symlink_metadata(&path)?.is_dir() {
                return fs::remove_file(&path).map(|()| Removal::Gone);
            }
            if self.is_mounted(&path)? {
                return Ok(Removal::Mounted);
            }
            fs::remove_dir_all(&path).map(|()| Removal::Gone)
        };
        match remove() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Removal::Gone),
            outcome => outcome.map_err(error),
        }
    }

    /// Whether a filesystem of its own is at a snapshot's directory or its content.
    fn is_mounted(&self, path: &Path) -> io::Result<bool> {
        let ours = fs::symlink_metadata(&self.snapshots)?.dev();
        for path in [path.to_owned(), path.join("fs")] {
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.dev() != ours => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // A mount whose server is gone says so.
                Err(error) if error.raw_os_error() == Some(ENOTCONN) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

const ENOTCONN: i32 = rustix::io::Errno::NOTCONN.raw_os_error();

fn make(path: &Path, mode: u32) -> Result<(), DirectoryError> {
    fs::DirBuilder::new().mode(mode).create(path).map_err(fail("making", path))?;
    // The umask took its share.
    set_mode(path, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), DirectoryError> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(fail("setting the mode of", path))
}

fn sync(path: &Path) -> Result<(), DirectoryError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(fail("writing out", path))
}

fn fail<'a>(attempt: &'static str, path: &'a Path) -> impl Fn(io::Error) -> DirectoryError + 'a {
    move |source| DirectoryError { attempt, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_has_the_modes_of_the_overlay_family() {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::open(&root.path().join("a/b")).unwrap();
        directories.create(7, Kind::Active, None).unwrap();
        directories.create(8, Kind::View, None).unwrap();
        let mode = |path: PathBuf| fs::metadata(path).map(|m| m.mode() & 0o7777).ok();
        assert_eq!(mode(root.path().join("a/b")), Some(0o700));
        assert_eq!(mode(root.path().join("a/b/snapshotter/snapshots")), Some(0o700));
        assert_eq!(mode(directories.fs(7)), Some(0o755));
        assert_eq!(mode(directories.work(7)), Some(0o711));
        assert_eq!(mode(directories.fs(8)), Some(0o755));
        assert_eq!(mode(directories.work(8)), None);
        let metadata = fs::metadata(root.path()).unwrap();
        let owner = Owner { uid: metadata.uid(), gid: metadata.gid() };
        assert_eq!(directories.owner(7).unwrap(), owner);
    }

    #[test]
    fn an_id_is_made_once() {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::open(root.path()).unwrap();
        directories.create(7, Kind::Active, None).unwrap();
        assert!(directories.create(7, Kind::Active, None).is_err());
    }

    #[test]
    fn removal_takes_trees_files_and_what_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::open(root.path()).unwrap();
        directories.create(7, Kind::Active, None).unwrap();
        fs::create_dir_all(directories.fs(7).join("a/b")).unwrap();
        std::os::unix::fs::symlink("/", directories.fs(7).join("a/root")).unwrap();
        fs::write(directories.path().join("stray"), "x").unwrap();
        for name in ["7", "stray", "7"] {
            assert_eq!(directories.remove(name).unwrap(), Removal::Gone);
        }
        assert!(directories.names().unwrap().is_empty());
    }
}
