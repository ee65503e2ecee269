//! Layers as a user namespace sees them: the same files, other owners, without touching a file.
//!
//! The kernel maps owners where a mount is made (`mount_setattr(2)`), so a layer is cloned for each
//! container with a mapping of its own, and costs nothing but the mount.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use crate::sys;

/// Ranges of one map that the kernel takes.
const RANGES_MAX: usize = 340;

/// So many ids, from one number inside a namespace and from another outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    inside: u32,
    outside: u32,
    count: u32,
}

/// Ids of users, or of groups, inside a namespace and outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap(Vec<Range>);

/// A map that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdMapError {
    /// Not in the form `inside:outside:count`, with commas between several.
    #[error("{0:?} is no map of ids, expected inside:outside:count entries joined by commas")]
    Form(String),
    /// Whatever the root of a container owns would belong to nobody.
    #[error("the map {0:?} has no place for id 0")]
    NoRoot(String),
}

impl FromStr for IdMap {
    type Err = IdMapError;

    fn from_str(text: &str) -> Result<Self, IdMapError> {
        let wrong = || IdMapError::Form(text.chars().take(64).collect());
        let range = |entry: &str| {
            let mut numbers = entry.split(':').map(|number| number.parse::<u32>().ok());
            let range = Range {
                inside: numbers.next()??,
                outside: numbers.next()??,
                count: numbers.next()??,
            };
            let fits = |first: u32| first.checked_add(range.count - 1).is_some();
            (numbers.next().is_none() && range.count > 0 && fits(range.inside))
                .then_some(range)
                .filter(|range| fits(range.outside))
        };
        let ranges: Vec<_> = text.split(',').map(range).collect::<Option<_>>().ok_or_else(wrong)?;
        if ranges.len() > RANGES_MAX {
            return Err(wrong());
        }
        let map = Self(ranges);
        match map.0.iter().any(|range| range.inside == 0) {
            true => Ok(map),
            false => Err(IdMapError::NoRoot(text.chars().take(64).collect())),
        }
    }
}

impl IdMap {
    /// The id outside of id 0 inside.
    pub fn root(&self) -> u32 {
        let root = self.0.iter().find(|range| range.inside == 0);
        root.map_or(0, |range| range.outside)
    }

    /// As `/proc/PID/uid_map` takes it.
    fn text(&self) -> String {
        let line = |it: &Range| format!("{} {} {}\n", it.inside, it.outside, it.count);
        self.0.iter().map(line).collect()
    }
}

/// Owners can't be mapped.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt}{}", path.as_ref().map_or(String::new(), |it| format!(" {}", it.display())))]
pub struct OwnersError {
    attempt: &'static str,
    path: Option<PathBuf>,
    #[source]
    source: io::Error,
}

impl OwnersError {
    fn of(attempt: &'static str, path: Option<&Path>, source: impl Into<io::Error>) -> Self {
        Self { attempt, path: path.map(Path::to_owned), source: source.into() }
    }
}

/// Owners of files, as seen through mounts that are made with it.
#[derive(Debug)]
pub struct Owners(OwnedFd);

impl Owners {
    /// Needs `CAP_SYS_ADMIN`, and both ranges to be ours to give away.
    pub fn new(users: &IdMap, groups: &IdMap) -> Result<Self, OwnersError> {
        let failed = |attempt| move |source: io::Error| OwnersError::of(attempt, None, source);
        let keeper = sys::NamespaceKeeper::start()
            .map_err(failed("make a user namespace for mapped owners"))?;
        let process = PathBuf::from(format!("/proc/{}", keeper.pid()));
        let write = |name: &str, map: &IdMap| fs::write(process.join(name), map.text());
        write("uid_map", users).map_err(failed("map users"))?;
        write("gid_map", groups).map_err(failed("map groups"))?;
        let namespace = fs::File::open(process.join("ns/user"));
        // Once it is open, the namespace needs no process.
        Ok(Self(namespace.map_err(failed("open a user namespace"))?.into()))
    }

    /// Show what `from` shows, read-only and with mapped owners, at the directory `to`.
    pub fn show(&self, from: &Path, to: &Path) -> Result<(), OwnersError> {
        let failed = |attempt, path| {
            move |source: rustix::io::Errno| OwnersError::of(attempt, Some(path), source)
        };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = rustix::mount::open_tree(CWD, from, flags).map_err(failed("clone", from))?;
        sys::map_owners(mount.as_fd(), self.0.as_fd()).map_err(|source| {
            // EINVAL: the filesystem can't.
            OwnersError::of("map the owners of files in", Some(from), source)
        })?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&mount, "", CWD, to, flags).map_err(failed("mount at", to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read_and_nonsense_is_not() {
        let map: IdMap = "0:100000:65536,65536:7:1".parse().unwrap();
        assert_eq!((map.root(), map.text().as_str()), (100_000, "0 100000 65536\n65536 7 1\n"));
        for text in ["", "0:1", "0:1:2:3", "0:1:0", "a:b:c", "0:-1:5", "0:1:1,", "0:1:4294967296"] {
            assert!(matches!(text.parse::<IdMap>(), Err(IdMapError::Form(_))), "{text}");
        }
        assert!(matches!("4294967295:0:2".parse::<IdMap>(), Err(IdMapError::Form(_))));
        assert!(matches!("1:0:5".parse::<IdMap>(), Err(IdMapError::NoRoot(_))));
        let many = vec!["0:1:1"; RANGES_MAX + 1].join(",");
        assert!(many.parse::<IdMap>().is_err());
    }
}
