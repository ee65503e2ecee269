//! What the machine's overlayfs can do, found out at start by trying it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

/// Why snapshots can't be kept below this root.
#[derive(Debug, thiserror::Error)]
pub enum SupportError {
    /// readdir(3) tells no types, and overlayfs needs them.
    #[error(
        "{} does not support d_type. If the backing filesystem is xfs, please reformat with \
         ftype=1 to enable d_type support", .0.display()
    )]
    NoTypes(PathBuf),
    /// Two directories can't be stacked.
    #[error("overlayfs refuses directories of {}", .0.display())]
    NoOverlay(PathBuf, #[source] io::Error),
    /// The trial itself failed.
    #[error("trying overlayfs in {}", .0.display())]
    Trial(PathBuf, #[source] io::Error),
}

/// Whether overlay mounts work on directories below `root`.
pub fn check(root: &Path) -> Result<(), SupportError> {
    let trial = Trial::new(root).map_err(|error| SupportError::Trial(root.to_owned(), error))?;
    if !trial.has_types().map_err(|error| SupportError::Trial(root.to_owned(), error))? {
        return Err(SupportError::NoTypes(root.to_owned()));
    }
    trial.mount("").map_err(|error| SupportError::NoOverlay(root.to_owned(), error))
}

/// Options of every overlay mount here: the administrator's, then those that this machine wants.
pub fn options(root: &Path, configured: &[String]) -> Vec<String> {
    let mut options = configured.to_vec();
    let is_free = |name: &str| !configured.iter().any(|o| o.split('=').next() == Some(name));
    if is_free("userxattr") && in_user_namespace() && takes_userxattr(root) {
        options.push("userxattr".to_owned());
    }
    // containerd mounts the same upper directory again to copy volumes up.
    if is_free("index") && Path::new("/sys/module/overlay/parameters/index").exists() {
        options.push("index=off".to_owned());
    }
    options
}

fn takes_userxattr(root: &Path) -> bool {
    Trial::new(root).and_then(|trial| trial.mount(",userxattr")).is_ok()
}

/// In a user namespace, unlike in the first one, not every id maps to itself.
pub(crate) fn in_user_namespace() -> bool {
    let Ok(map) = fs::read_to_string("/proc/self/uid_map") else { return false };
    map.split_whitespace().ne(["0", "0", "4294967295"])
}

/// A directory of two layers, gone with this value.
struct Trial(PathBuf);

impl Trial {
    fn new(root: &Path) -> io::Result<Self> {
        let trial = Self(root.join(format!("trial-{}", std::process::id())));
        for directory in ["upper", "work", "lower1", "lower2", "merged"] {
            fs::create_dir_all(trial.0.join(directory))?;
        }
        Ok(trial)
    }

    fn has_types(&self) -> io::Result<bool> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&self.0, flags, Mode::empty())?;
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            if entry.file_name().to_bytes().starts_with(b"lower") {
                return Ok(entry.file_type() == FileType::Directory);
            }
        }
        Ok(false)
    }

    fn mount(&self, more: &str) -> io::Result<()> {
        let path = |name: &str| self.0.join(name).display().to_string();
        let data = format!(
            "lowerdir={}:{},upperdir={},workdir={}{more}",
            path("lower2"),
            path("lower1"),
            path("upper"),
            path("work")
        );
        let data = std::ffi::CString::new(data)?;
        let flags = MountFlags::empty();
        rustix::mount::mount("overlay", self.0.join("merged"), "overlay", flags, data.as_c_str())?;
        Ok(rustix::mount::unmount(self.0.join("merged"), UnmountFlags::DETACH)?)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(error = %error, path = %self.0.display(), "cannot remove a trial directory");
        }
    }
}
