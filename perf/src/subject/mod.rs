//! Who is measured: each subject is what it takes to set it up on a node, or why it can't be.

mod containerd;
mod peers;
mod spanfs;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::results::{Absent, SubjectFacts};

/// How images are had with it, and what for.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    /// Programs with versions, and settings.
    pub(crate) what: String,
    pub(crate) is_ours: bool,
    /// The whole image is there before the container starts.
    pub(crate) is_eager: bool,
    pub(crate) image: Form,
    pub(crate) engine: Engine,
}

/// In which form the registry has the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As it was built.
    Plain,
    /// With a SOCI index (v2).
    Indexed,
}

#[derive(Clone, Debug)]
pub(crate) enum Engine {
    Containerd(Box<Containerd>),
    Standalone(Standalone),
}

/// A containerd, and a snapshotter beside it where it is none of its own.
#[derive(Clone, Debug)]
pub(crate) struct Containerd {
    /// Directories that stand first in PATH.
    pub(crate) programs: Vec<PathBuf>,
    pub(crate) config: String,
    pub(crate) snapshotter: &'static str,
    pub(crate) daemon: Option<Daemon>,
}

/// A snapshotter that is a process of its own.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    pub(crate) program: PathBuf,
    /// The name that it is started by.
    pub(crate) name: &'static str,
    /// Settings file below `/etc`, and its text.
    pub(crate) config: (&'static str, String),
    /// Socket below `/run`.
    pub(crate) socket: &'static str,
    /// Root below `/var/lib`.
    pub(crate) root: &'static str,
    /// Whether what an earlier start has read is known to it.
    pub(crate) knows_trace: bool,
}

/// The standalone command.
#[derive(Clone, Debug)]
pub(crate) struct Standalone {
    pub(crate) program: PathBuf,
}

/// Where programs are looked for.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// containerd 2 with its tools.
    pub(crate) containerd: Option<PathBuf>,
    /// Ours.
    pub(crate) spanfs: PathBuf,
    pub(crate) soci: Option<PathBuf>,
    pub(crate) stargz: Option<PathBuf>,
    /// mkfs.erofs of 1.7 or newer.
    pub(crate) erofs_utils: Option<PathBuf>,
}

type Find = fn(&Places) -> Result<Subject>;

/// Every subject in the order of reports. One that is not here says why.
const ALL: [(&str, Find); 15] = [
    ("overlayfs-1.6", containerd::overlayfs_one),
    ("overlayfs", containerd::overlayfs),
    ("overlayfs-parallel", containerd::overlayfs_parallel),
    ("erofs", containerd::erofs),
    ("soci-lazy", peers::soci_lazy),
    ("soci-parallel", peers::soci_parallel),
    ("soci-parallel-unpigz", peers::soci_parallel_unpigz),
    ("stargz", peers::stargz),
    ("spanfs-parallel", spanfs::parallel),
    ("spanfs-files", spanfs::files),
    ("spanfs-parallel-one", spanfs::parallel_one),
    ("spanfs-lazy", spanfs::lazy),
    ("spanfs-lazy-no-prefetch", spanfs::lazy_no_prefetch),
    ("spanfs-trace", spanfs::trace),
    ("spanfs-standalone", spanfs::standalone),
];

/// Run only when they are named: they exist to break a promise on purpose.
const BY_NAME: [&str; 2] = ["spanfs-parallel-one", "spanfs-lazy-no-prefetch"];

impl Subject {
    pub(crate) fn facts(&self) -> SubjectFacts {
        SubjectFacts {
            name: self.name.to_owned(),
            what: self.what.clone(),
            is_ours: self.is_ours,
            is_eager: self.is_eager,
        }
    }
}

/// The named subjects, or all; and those of them that are absent.
pub(crate) fn find(names: &[String], places: &Places) -> Result<(Vec<Subject>, Vec<Absent>)> {
    if let Some(unknown) = names.iter().find(|name| ALL.iter().all(|(known, _)| known != name)) {
        let known: Vec<_> = ALL.iter().map(|(name, _)| *name).collect();
        bail!("unknown subject {unknown}; there are {}", known.join(", "));
    }
    let (mut found, mut absent) = (Vec::new(), Vec::new());
    for (name, find) in ALL {
        let is_wanted = match names {
            [] => !BY_NAME.contains(&name),
            names => names.iter().any(|wanted| wanted == name),
        };
        if is_wanted {
            match find(places) {
                Ok(subject) => found.push(subject),
                Err(error) => {
                    absent.push(Absent { name: name.to_owned(), reason: format!("{error:#}") });
                }
            }
        }
    }
    Ok((found, absent))
}

/// A program of `directory`, or of PATH where none is given.
fn program(directory: Option<&Path>, name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = match directory {
        Some(directory) => vec![directory.to_owned()],
        None => std::env::split_paths(&path).collect(),
    };
    match directories.iter().map(|directory| directory.join(name)).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => match directory {
            Some(directory) => bail!("{} is not in {}", name, directory.display()),
            None => bail!("{name} is not on PATH"),
        },
    }
}

/// The first line that a program says of its version.
fn version(program: &Path) -> Result<String> {
    let said = crate::lab::run(Command::new(program).arg("--version"))?;
    Ok(said.lines().next().unwrap_or_default().trim().to_owned())
}
