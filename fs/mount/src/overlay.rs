//! A whole image: its layers stacked by overlayfs.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::mount::MountAttrFlags;

use crate::kernel_mount::{Context, KernelMountError, ShortPath, mount_by_data, through};

/// Where changes go.
#[derive(Clone, Debug)]
pub struct Upper {
    /// Changed files.
    pub upper: PathBuf,
    /// Empty directory of the same filesystem, for overlayfs itself.
    pub work: PathBuf,
}

/// How layers are stacked.
#[derive(Clone, Debug, Default)]
pub struct OverlayOptions {
    /// Changes are allowed and kept there; without it the mount is read-only.
    pub upper: Option<Upper>,
    /// Whiteouts and opaque directories are told by `user.overlay.*` (user namespaces).
    pub userxattr: bool,
}

/// Why a stack could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// overlayfs stacks at least two directories.
    #[error("cannot stack {0} directories: overlayfs wants two or more")]
    TooFew(usize),
    /// More than its limit (`OVL_MAX_STACK`).
    #[error("cannot stack {0} directories: overlayfs allows {LOWERS_MAX}")]
    TooMany(usize),
    /// A layer's directory can't be opened.
    #[error("cannot open layer {0}")]
    Open(PathBuf, #[source] io::Error),
    /// The kernel refused.
    #[error(transparent)]
    Mount(#[from] KernelMountError),
}

const LOWERS_MAX: usize = 500;

/// Stack `lowers`, the topmost first, at `mount_point`.
pub fn mount(
    lowers: &[PathBuf],
    mount_point: &Path,
    options: &OverlayOptions,
) -> Result<(), OverlayError> {
    let lowers = without_repeats(lowers);
    let count = lowers.len() + usize::from(options.upper.is_some());
    if count < 2 {
        return Err(OverlayError::TooFew(count));
    }
    if lowers.len() > LOWERS_MAX {
        return Err(OverlayError::TooMany(lowers.len()));
    }
    match mount_one_by_one(&lowers, mount_point, options) {
        // `lowerdir+` came with Linux 6.8.
        Err(OverlayError::Mount(error))
            if error.source.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) =>
        {
            tracing::debug!("overlayfs refused lowerdir+, trying mount(2): {error}");
            mount_all_at_once(&lowers, mount_point, options)
        }
        outcome => outcome,
    }
}

/// A layer that comes again further up adds nothing below, and overlayfs refuses it (ELOOP).
fn without_repeats(lowers: &[PathBuf]) -> Vec<&Path> {
    let mut kept: Vec<&Path> = Vec::with_capacity(lowers.len());
    for lower in lowers {
        if !kept.contains(&lower.as_path()) {
            kept.push(lower);
        }
    }
    kept
}

fn mount_one_by_one(
    lowers: &[&Path],
    mount_point: &Path,
    options: &OverlayOptions,
) -> Result<(), OverlayError> {
    let context = Context::open("overlay", mount_point)?;
    let set = |key, path: &Path| -> Result<(), OverlayError> {
        let short =
            ShortPath::to(path).map_err(|error| OverlayError::Open(path.to_owned(), error))?;
        Ok(context.set(key, short.as_os_str())?)
    };
    context.set("source", OsStr::new("spanfs"))?;
    for lower in lowers {
        set("lowerdir+", lower)?;
    }
    let mut attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    if let Some(Upper { upper, work }) = &options.upper {
        set("upperdir", upper)?;
        set("workdir", work)?;
        attributes = MountAttrFlags::empty();
    }
    if options.userxattr {
        context.set_flag("userxattr")?;
    }
    Ok(context.mount(attributes)?)
}

/// One string of at most a page: long paths go through descriptors, which make 17 bytes each.
fn mount_all_at_once(
    lowers: &[&Path],
    mount_point: &Path,
    options: &OverlayOptions,
) -> Result<(), OverlayError> {
    let limit = rustix::param::page_size() - 1;
    let escaped = lowers.iter().map(|lower| escape(lower)).collect();
    let data = data_string(escaped, options);
    if data.len() <= limit {
        return Ok(mount_by_data("overlay", mount_point, &data)?);
    }
    let mut open = Vec::with_capacity(lowers.len());
    for lower in lowers {
        let failed = |error| OverlayError::Open(lower.to_path_buf(), error);
        open.push(File::open(lower).map_err(failed)?);
    }
    let short = open.iter().map(|file| through(file.as_fd()).into_os_string()).collect();
    Ok(mount_by_data("overlay", mount_point, &data_string(short, options))?)
}

fn data_string(lowers: Vec<OsString>, options: &OverlayOptions) -> OsString {
    let mut data = OsString::from("lowerdir=");
    data.push(lowers.join(OsStr::new(":")));
    if let Some(Upper { upper, work }) = &options.upper {
        for (key, path) in [(",upperdir=", upper), (",workdir=", work)] {
            data.push(key);
            data.push(escape(path));
        }
    }
    if options.userxattr {
        data.push(",userxattr");
    }
    data
}

/// overlayfs.rst: colons and commas in paths take a backslash.
fn escape(path: &Path) -> OsString {
    let mut bytes = Vec::with_capacity(path.as_os_str().len());
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            bytes.push(b'\\');
        }
        bytes.push(byte);
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_keep_their_topmost_place() {
        let lowers: Vec<PathBuf> = ["a", "b", "a", "c", "b"].map(PathBuf::from).into();
        assert_eq!(without_repeats(&lowers), ["a", "b", "c"].map(Path::new));
    }

    #[test]
    fn separators_in_paths_are_escaped() {
        let upper = Upper { upper: "/u,p".into(), work: "/w".into() };
        let options = OverlayOptions { upper: Some(upper), userxattr: true };
        let data = data_string(vec![escape(Path::new("/a:b")), escape(Path::new("/c"))], &options);
        assert_eq!(data, "lowerdir=/a\\:b:/c,upperdir=/u\\,p,workdir=/w,userxattr");
    }
}
