//! Who may touch a layer's files: locks that end with their process, however it ends.
//!
//! Lock files stand in a layer's directory, locked with flock(2). Everybody who has the layer open
//! holds `use` shared; whoever removes the directory holds it alone. `fill` is held by the one process
//! that writes the layer file and its journal, `pass` by the one who gets the layer whole.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Name of the lock that users share.
const USE: &str = "use";
/// Name of the lock of the one process that fills.
const FILL: &str = "fill";
/// Name of the lock of the one who gets the layer whole.
const PASS: &str = "pass";

/// Tries to get a directory that others are removing; each gives the remover time to finish.
const TRIES_MAX: u32 = 50;
const TRY_DELAY: Duration = Duration::from_millis(10);

/// A layer's directory, kept from removal while this lives.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    in_use: File,
}

/// The right to write a layer's files.
#[derive(Debug)]
pub(crate) struct FillLock {
    _file: File,
}

/// The right to get a layer whole; others wait for the outcome.
#[derive(Debug)]
pub(crate) struct PassLock {
    _file: File,
}

impl Claim {
    /// Make the directory if need be, and keep it from removal.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        for _ in 0..TRIES_MAX {
            make_directory(path)?;
            if let Some(in_use) = try_use(path)? {
                let claim = Self { path: path.to_path_buf(), in_use };
                claim.touch();
                return Ok(claim);
            }
            std::thread::sleep(TRY_DELAY);
        }
        let message = format!("{} is being removed by another process", path.display());
        Err(io::Error::new(io::ErrorKind::WouldBlock, message))
    }

    /// Path of a file of the layer.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Become the one who fills, unless another process is.
    pub(crate) fn try_fill(&self) -> io::Result<Option<FillLock>> {
        let file = open_lock(&self.file(FILL))?;
        Ok(lock_result(file.try_lock())?.then_some(FillLock { _file: file }))
    }

    /// Become the one who gets the layer whole, unless somebody else is.
    pub(crate) fn try_pass(&self) -> io::Result<Option<PassLock>> {
        let file = open_lock(&self.file(PASS))?;
        Ok(lock_result(file.try_lock())?.then_some(PassLock { _file: file }))
    }

    /// Note the use, for eviction.
    pub(crate) fn touch(&self) {
        if let Err(error) = self.in_use.set_modified(SystemTime::now()) {
            tracing::debug!(path = %self.path.display(), %error, "use of a layer not noted");
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.touch();
    }
}

/// When a layer's directory was last used; `None` if it is no such directory.
pub(crate) fn last_used(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path.join(USE)).and_then(|metadata| metadata.modified()).ok()
}

/// Remove a layer's directory, unless somebody uses it; true if it is gone.
pub(crate) fn try_remove(path: &Path) -> io::Result<bool> {
    let file = match OpenOptions::new().read(true).write(true).open(path.join(USE)) {
        Ok(file) => file,
        // Not made yet, or all but removed: whoever makes it now must keep it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return remove_empty(path).map(|()| true);
        }
        Err(error) => return Err(error),
    };
    if !lock_result(file.try_lock())? {
        return Ok(false);
    }
    remove_directory(path)?;
    Ok(true)
}

/// Remove a directory that is locked by us alone. The lock file goes last, so that at no time files
/// stand there without it.
pub(crate) fn remove_directory(path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() != USE {
            std::fs::remove_file(entry.path())?;
        }
    }
    std::fs::remove_file(path.join(USE))?;
    remove_empty(path)
}

/// Somebody may have begun to make it again: then it stays, and is theirs.
fn remove_empty(path: &Path) -> io::Result<()> {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound};
    match std::fs::remove_dir(path) {
        Err(error) if !matches!(error.kind(), NotFound | DirectoryNotEmpty) => Err(error),
        _ => Ok(()),
    }
}

/// `None` if the directory is being removed.
fn try_use(path: &Path) -> io::Result<Option<File>> {
    let name = path.join(USE);
    let file = match open_lock(&name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !lock_result(file.try_lock_shared())? {
        return Ok(None);
    }
    // A remover may have unlinked what we locked.
    match std::fs::metadata(&name) {
        Ok(linked) if linked.ino() == file.metadata()?.ino() => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn lock_result(result: Result<(), TryLockError>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Private to its owner: layers may hold what only their users may read.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_fills_and_nobody_removes_what_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        let first = Claim::open(&path).unwrap();
        let second = Claim::open(&path).unwrap();
        let fill = first.try_fill().unwrap().expect("the first fills");
        assert!(second.try_fill().unwrap().is_none());
        drop(fill);
        assert!(second.try_fill().unwrap().is_some(), "the lock ends with its holder");

        assert!(!try_remove(&path).unwrap());
        drop(first);
        assert!(!try_remove(&path).unwrap());
        drop(second);
        assert!(try_remove(&path).unwrap());
        assert!(!path.exists());
        assert!(try_remove(&path).unwrap(), "nothing to do");
    }

    #[test]
    fn opening_and_removing_at_once_never_leaves_an_unlocked_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let claim = Claim::open(&path).unwrap();
                        std::fs::write(claim.file("x"), b"x").unwrap();
                        assert!(claim.file("x").exists());
                    }
                });
            }
            for _ in 0..200 {
                try_remove(&path).unwrap();
                std::thread::yield_now();
            }
        });
    }
}
