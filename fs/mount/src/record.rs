//! Records of mounts, so that a successor can clean up after a killed process.
//!
//! One file for each mount, locked as long as its process lives: a record that can be locked has
//! lost its owner. It holds lines `key<space>path`, with control characters, spaces and backslashes
//! in octal as in mountinfo; keys are `at` (the mount point) and `staging` (a directory of ours).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;

use crate::mountinfo::{self, unescape};
use crate::transport::Privilege;
use crate::unmount;

/// What one mount occupies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    /// Where the user sees it.
    pub(crate) mount_point: PathBuf,
    /// Directory of ours: whatever is mounted below is ours too.
    pub(crate) staging: PathBuf,
}

/// A mount's record; dropping it takes the record away.
#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    /// False once the record is to outlive this value.
    is_removed: bool,
    /// Holds the lock.
    _file: File,
}

const SUFFIX: &str = ".mount";
/// A record has two paths of at most `PATH_MAX` bytes, each byte at most 4 when escaped.
const RECORD_LEN_MAX: u64 = 64 << 10;

impl Record {
    /// Write it before anything is mounted. The name of the record is unique in this machine.
    pub(crate) fn write(directory: &Path, places: &Places) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{count}", std::process::id());
        let (draft, path) =
            (directory.join(format!("{name}.draft")), directory.join(name + SUFFIX));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&draft)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let Places { mount_point, staging } = places;
        for (key, place) in [("at", mount_point), ("staging", staging)] {
            file.write_all(format!("{key} ").as_bytes())?;
            file.write_all(&escape(place.as_os_str().as_bytes()))?;
            file.write_all(b"\n")?;
        }
        std::fs::rename(&draft, &path)?;
        Ok(Self { path, is_removed: true, _file: file })
    }

    /// Leave it for a recovery: its mount is not gone.
    pub(crate) fn abandon(mut self) {
        self.is_removed = false;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.is_removed
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("record {} stays: {error}", self.path.display());
        }
    }
}

/// A dead process's mount that was cleaned up, or could not be.
#[derive(Debug)]
pub struct Recovered {
    /// Where it was mounted.
    pub mount_point: PathBuf,
    /// What went wrong; its record stays for the next time.
    pub outcome: io::Result<()>,
}

/// Take away what killed processes left mounted, by the records in `directory`.
///
/// Mounts of living processes are left alone. Nothing that is mounted is touched by name: a dead
/// server's mount may answer ENOTCONN, or never.
pub fn recover(directory: &Path, privilege: Privilege) -> io::Result<Vec<Recovered>> {
    let mut recovered = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(recovered),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let is_record = path.as_os_str().as_bytes().ends_with(SUFFIX.as_bytes());
        if !is_record || !path.is_file() {
            continue;
        }
        match orphan(&path) {
            Ok(None) => {}
            Ok(Some((_lock, places))) => {
                let outcome = clean(&places, privilege).and_then(|()| std::fs::remove_file(&path));
                recovered.push(Recovered { mount_point: places.mount_point, outcome });
            }
            Err(error) => tracing::warn!("record {} is left: {error}", path.display()),
        }
    }
    Ok(recovered)
}

/// A record without owner, locked by us so that no other process recovers it as well.
fn orphan(path: &Path) -> io::Result<Option<(File, Places)>> {
    let file = File::open(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        outcome => outcome?,
    }
    let mut text = Vec::new();
    (&file).take(RECORD_LEN_MAX).read_to_end(&mut text)?;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "it is no record of a mount");
    Ok(Some((file, parse(&text).ok_or_else(malformed)?)))
}

fn parse(text: &[u8]) -> Option<Places> {
    let find = |key: &[u8]| {
        let mut lines = text.split(|&byte| byte == b'\n');
        let path = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(b" "))?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(unescape(path)));
        path.is_absolute().then_some(path)
    };
    Some(Places { mount_point: find(b"at")?, staging: find(b"staging")? })
}

fn clean(places: &Places, privilege: Privilege) -> io::Result<()> {
    let mounts = mountinfo::mounts()?;
    let top = mounts.iter().rfind(|mount| mount.mount_point == places.mount_point);
    if top.is_some_and(|mount| is_ours(&mount.fs_type)) {
        unmount::detach(&places.mount_point, privilege)?;
    }
    for mount in mounts.iter().rev().filter(|mount| mount.mount_point.starts_with(&places.staging))
    {
        unmount::detach(&mount.mount_point, privilege)?;
    }
    remove_staging(&places.staging);
    Ok(())
}

/// The mount may be gone, and something of the user's stand there.
fn is_ours(fs_type: &str) -> bool {
    matches!(fs_type, "erofs" | "overlay") || fs_type.starts_with("fuse.")
}

/// Remove a staging directory with its mount points, one level deep and only if they are empty.
pub(crate) fn remove_staging(staging: &Path) {
    for entry in std::fs::read_dir(staging).into_iter().flatten().flatten() {
        let _busy = std::fs::remove_dir(entry.path()); // Still mounted: the next recovery's.
    }
    let _busy = std::fs::remove_dir(staging);
}

fn escape(path: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(path.len());
    for &byte in path {
        if byte <= b' ' || byte == b'\\' {
            text.extend_from_slice(format!("\\{byte:03o}").as_bytes());
        } else {
            text.push(byte);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn odd_places() -> Places {
        let odd = std::ffi::OsString::from_vec(b"/a b\n\\\xff\t".to_vec());
        Places { mount_point: odd.into(), staging: "/not/there".into() }
    }

    #[test]
    fn a_living_record_is_left_and_an_orphan_is_cleaned() {
        let directory = tempfile::tempdir().unwrap();
        let record = Record::write(directory.path(), &odd_places()).unwrap();
        assert!(recover(directory.path(), Privilege::Root).unwrap().is_empty());
        let text = std::fs::read(&record.path).unwrap();
        assert_eq!(parse(&text), Some(odd_places()));
        drop(record);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        std::fs::write(directory.path().join("1-2.mount"), &text).unwrap();
        let recovered = recover(directory.path(), Privilege::Root).unwrap();
        assert_eq!(recovered.len(), 1);
        assert_eq!(recovered[0].mount_point, odd_places().mount_point);
        assert!(recovered[0].outcome.is_ok());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn nonsense_is_neither_obeyed_nor_removed() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["", "at /x\n", "at relative\nstaging /x\n", "\0\0"] {
            std::fs::write(directory.path().join("0.mount"), text).unwrap();
            assert!(recover(directory.path(), Privilege::Root).unwrap().is_empty(), "{text:?}");
        }
        assert!(recover(Path::new("/not/there"), Privilege::Root).unwrap().is_empty());
    }
}
