//! Records of mounts: what a successor needs to go on with one, or to clean up after it.
//!
//! One file for each mount, locked as long as somebody answers for it: its process, or the holder
//! that has the same open file. A record that can be locked is abandoned.
//!
//! Lines are written as the mount is made, so that no kill leaves a mount that nobody knows; a line
//! without its end counts for nothing. Paths have control characters, spaces and backslashes in
//! octal, as in mountinfo.
//!
//! ```text
//! format 2                      format 1 had no such line, and no more than the next two
//! at PATH                       where the user sees it
//! staging PATH                  directory of ours: whatever is mounted below is ours too
//! session TRANSPORT N PATH      a FUSE session: its connection, and where it was mounted
//! mounted PATH                  in mount order
//! left PATH                     no longer mounted there, or no longer ours
//! shown HOW TEXT                one layer, the lowest first: erofs-direct, erofs-over-fuse or inodes,
//!                               and what must be the same for a successor to serve it
//! complete                      from here on it can be taken over
//! ```

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{CWD, FlockOperation, RenameFlags};

use crate::mount::Shown;
use crate::mountinfo::{self, unescape};
use crate::transport::connection::Connection;
use crate::transport::{Privilege, Transport};
use crate::unmount;

/// What one mount occupies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    /// Where the user sees it.
    pub(crate) mount_point: PathBuf,
    /// Directory of ours: whatever is mounted below is ours too.
    pub(crate) staging: PathBuf,
}

/// A FUSE session as a successor must know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionRecord {
    pub(crate) transport: Transport,
    pub(crate) connection: Connection,
    /// Where it was mounted first.
    pub(crate) mount_point: PathBuf,
}

/// What happened to a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    Session(SessionRecord),
    Mounted(&'a Path),
    Left(&'a Path),
    Shown(Shown, &'a str),
    Complete,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) places: Places,
    pub(crate) sessions: Vec<SessionRecord>,
    /// In mount order.
    pub(crate) mounted: Vec<PathBuf>,
    pub(crate) shown: Vec<(Shown, String)>,
    pub(crate) is_complete: bool,
}

/// Bytes that are no record that we can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRecord {
    #[error(
        "it is of format {found}, and this version reads up to {FORMAT}: a newer spanfs made it"
    )]
    Newer { found: u32 },
    #[error("it is no record of a mount")]
    Malformed,
}

/// A mount's record; dropping it takes the record away.
#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    /// False once the record is to outlive this value.
    is_removed: AtomicBool,
    /// Holds the lock.
    file: Arc<OwnedFd>,
}

const FORMAT: u32 = 2;
const SUFFIX: &str = ".mount";
/// 500 layers with two paths and a line of text each.
const RECORD_LEN_MAX: u64 = 4 << 20;
/// Names of one process that others have left in use; each mount of it tries the next.
const NAMES_MAX: u64 = 1 << 20;

/// Make something under a name that nobody has here, also not a mount of a dead process that had our
/// number.
pub(crate) fn make_unique<T>(make: impl Fn(&str) -> io::Result<T>) -> io::Result<T> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    for _ in 0..NAMES_MAX {
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        match make(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            outcome => return outcome,
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

impl Record {
    /// Write it before anything is mounted.
    pub(crate) fn write(directory: &Path, places: &Places) -> io::Result<Self> {
        let head = [
            format!("format {FORMAT}\nat ").as_bytes(),
            &escape(places.mount_point.as_os_str().as_bytes()),
            b"\nstaging ",
            &escape(places.staging.as_os_str().as_bytes()),
            b"\n",
        ]
        .concat();
        make_unique(|name| {
            let draft = directory.join(format!("{name}.draft"));
            let path = directory.join(format!("{name}{SUFFIX}"));
            let mut options = OpenOptions::new();
            let file = options.read(true).append(true).create_new(true).open(&draft)?;
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            let (is_removed, file) = (AtomicBool::new(true), Arc::new(OwnedFd::from(file)));
            let record = Self { path: draft.clone(), is_removed, file };
            record.append(&head)?;
            // Only now others find it: locked, and whole.
            rustix::fs::renameat_with(CWD, &draft, CWD, &path, RenameFlags::NOREPLACE)?;
            let file = Arc::clone(&record.file);
            record.abandon();
            Ok(Self { path, is_removed: AtomicBool::new(true), file })
        })
    }

    /// One that a predecessor has written, by its open file. It stays until it is [`Self::claim`]ed.
    pub(crate) fn resume(directory: &Path, name: &str, file: OwnedFd) -> Self {
        let path = directory.join(format!("{name}{SUFFIX}"));
        Self { path, is_removed: AtomicBool::new(false), file: Arc::new(file) }
    }

    /// From now on it goes with this value.
    pub(crate) fn claim(&self) {
        self.is_removed.store(true, Ordering::Relaxed);
    }

    /// Its name, unique among mounts.
    pub(crate) fn name(&self) -> &str {
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.strip_suffix(SUFFIX).unwrap_or(name)
    }

    /// The file that holds the lock.
    pub(crate) fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    /// Note what happened. It must have happened already, but for a mount about to be made.
    pub(crate) fn note(&self, line: &Line<'_>) -> io::Result<()> {
        let path = |path: &Path| escape(path.as_os_str().as_bytes());
        let mut text = match line {
            Line::Session(SessionRecord { transport, connection, mount_point }) => {
                let head = format!("session {transport} {} ", connection.0);
                [head.as_bytes(), &path(mount_point)].concat()
            }
            Line::Mounted(place) => [b"mounted ".as_slice(), &path(place)].concat(),
            Line::Left(place) => [b"left ".as_slice(), &path(place)].concat(),
            Line::Shown(how, same) => {
                [format!("shown {} ", how_name(*how)).as_bytes(), &escape(same.as_bytes())].concat()
            }
            Line::Complete => b"complete".to_vec(),
        };
        text.push(b'\n');
        self.append(&text)
    }

    fn append(&self, text: &[u8]) -> io::Result<()> {
        match rustix::io::write(&self.file, text)? {
            len if len == text.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// What it says.
    pub(crate) fn read(&self) -> io::Result<Contents> {
        read(&self.file)
    }

    /// Leave it for a recovery or a successor: its mount is not gone.
    pub(crate) fn abandon(&self) {
        self.is_removed.store(false, Ordering::Relaxed);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.is_removed.load(Ordering::Relaxed)
            && let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
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
/// Mounts of living processes, and of holders, are left alone. Nothing that is mounted is touched by
/// name: a dead server's mount may answer ENOTCONN, or never.
pub fn recover(directory: &Path, privilege: Privilege) -> io::Result<Vec<Recovered>> {
    let clean_up = |orphan: Orphan| {
        let outcome = clean(&orphan.contents.places, privilege);
        if outcome.is_ok() {
            orphan.record.claim();
        }
        Recovered { mount_point: orphan.contents.places.mount_point, outcome }
    };
    Ok(orphans(directory)?.into_iter().map(clean_up).collect())
}

/// The file in `directory` that records the mount at `mount_point`, be it served just now or not. It
/// goes with the mount.
pub fn find(directory: &Path, mount_point: &Path) -> io::Result<Option<PathBuf>> {
    let is_of_it = |path: &PathBuf| {
        let contents = std::fs::File::open(path).and_then(|file| read(&OwnedFd::from(file)));
        // What went meanwhile, or can't be read, is nobody's to go on with.
        contents.is_ok_and(|contents| contents.places.mount_point == mount_point)
    };
    Ok(paths(directory)?.into_iter().find(is_of_it))
}

/// An abandoned record, locked by us from now on; it stays unless it is claimed.
pub(crate) struct Orphan {
    pub(crate) record: Record,
    pub(crate) contents: Contents,
}

/// All abandoned records in `directory`; what can't be read is left there with a word.
pub(crate) fn orphans(directory: &Path) -> io::Result<Vec<Orphan>> {
    let mut orphans = Vec::new();
    for path in paths(directory)? {
        match orphan(&path) {
            Ok(found) => orphans.extend(found),
            Err(error) => tracing::warn!("record {} is left: {error}", path.display()),
        }
    }
    Ok(orphans)
}

/// The files of all records in `directory`.
fn paths(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.retain(|path| path.as_os_str().as_bytes().ends_with(SUFFIX.as_bytes()) && path.is_file());
    Ok(paths)
}

/// A record without owner, locked by us so that no other process takes it as well.
fn orphan(path: &Path) -> io::Result<Option<Orphan>> {
    let file = OpenOptions::new().read(true).append(true).open(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        outcome => outcome?,
    }
    let file = Arc::new(OwnedFd::from(file));
    let contents = read(&file)?;
    let record = Record { path: path.to_owned(), is_removed: AtomicBool::new(false), file };
    Ok(Some(Orphan { record, contents }))
}

/// From its start: the same open file may have been read by others.
fn read(file: &OwnedFd) -> io::Result<Contents> {
    let mut text = Vec::new();
    rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0))?;
    let file = std::fs::File::from(file.try_clone()?);
    file.take(RECORD_LEN_MAX).read_to_end(&mut text)?;
    parse(&text).map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, bad))
}

fn parse(text: &[u8]) -> Result<Contents, BadRecord> {
    let whole = text.iter().rposition(|&byte| byte == b'\n').unwrap_or(0);
    let lines = text.get(..whole).unwrap_or_default().split(|&byte| byte == b'\n');
    let lines = lines.map(|line| {
        let space = line.iter().position(|&byte| byte == b' ').unwrap_or(line.len());
        line.split_at_checked(space)
            .map_or((line, &b""[..]), |(key, rest)| (key, rest.strip_prefix(b" ").unwrap_or(rest)))
    });
    let (mut mount_point, mut staging) = (None, None);
    let (mut sessions, mut mounted, mut shown) = (Vec::new(), Vec::<PathBuf>::new(), Vec::new());
    let mut is_complete = false;
    for (word, rest) in lines {
        match word {
            b"format" => match number(rest)? {
                found if found > FORMAT => return Err(BadRecord::Newer { found }),
                _ => {}
            },
            b"at" => mount_point = Some(path(rest)?),
            b"staging" => staging = Some(path(rest)?),
            b"session" => sessions.push(session(rest)?),
            b"mounted" => mounted.push(path(rest)?),
            b"left" => {
                let gone = path(rest)?;
                mounted.retain(|place| *place != gone);
            }
            b"shown" => {
                let mut parts = rest.splitn(2, |&byte| byte == b' ');
                let how = parts.next().and_then(how_of).ok_or(BadRecord::Malformed)?;
                shown.push((how, text_of(parts.next().unwrap_or_default())?));
            }
            b"complete" => is_complete = true,
            _ => return Err(BadRecord::Malformed),
        }
    }
    let (Some(mount_point), Some(staging)) = (mount_point, staging) else {
        return Err(BadRecord::Malformed);
    };
    let places = Places { mount_point, staging };
    Ok(Contents { places, sessions, mounted, shown, is_complete })
}

fn session(rest: &[u8]) -> Result<SessionRecord, BadRecord> {
    let mut parts = rest.splitn(3, |&byte| byte == b' ');
    let mut part = || parts.next().ok_or(BadRecord::Malformed);
    let transport = std::str::from_utf8(part()?).ok().and_then(Transport::named);
    Ok(SessionRecord {
        transport: transport.ok_or(BadRecord::Malformed)?,
        connection: Connection(number(part()?)?),
        mount_point: path(part()?)?,
    })
}

fn number(text: &[u8]) -> Result<u32, BadRecord> {
    let text = std::str::from_utf8(text).ok();
    text.and_then(|text| text.parse().ok()).ok_or(BadRecord::Malformed)
}

fn path(text: &[u8]) -> Result<PathBuf, BadRecord> {
    let path = PathBuf::from(std::ffi::OsString::from_vec(unescape(text)));
    if path.is_absolute() { Ok(path) } else { Err(BadRecord::Malformed) }
}

fn text_of(text: &[u8]) -> Result<String, BadRecord> {
    String::from_utf8(unescape(text)).map_err(|_| BadRecord::Malformed)
}

fn how_name(how: Shown) -> &'static str {
    match how {
        Shown::ErofsDirect => "erofs-direct",
        Shown::ErofsOverFuse => "erofs-over-fuse",
        Shown::Inodes => "inodes",
    }
}

fn how_of(name: &[u8]) -> Option<Shown> {
    [Shown::ErofsDirect, Shown::ErofsOverFuse, Shown::Inodes]
        .into_iter()
        .find(|how| how_name(*how).as_bytes() == name)
}

/// Take out of the directory tree what a mount occupies.
pub(crate) fn clean(places: &Places, privilege: Privilege) -> io::Result<()> {
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
mod tests;
