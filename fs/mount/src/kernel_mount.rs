//! Mounting through the new mount API: a context, its settings, a mount, its place.
//!
//! mount(8) would slip in a loop device, and mount(2) can't carry a comma in a path.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

/// A setting was refused, or the mount as a whole.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount {fs_type} at {mount_point}: {attempt}{}", said(.log))]
pub struct KernelMountError {
    fs_type: &'static str,
    mount_point: PathBuf,
    attempt: String,
    /// What the filesystem says about it.
    log: String,
    #[source]
    pub(crate) source: io::Error,
}

/// `linux/mount.h`, from kernel 6.5.
const MOVE_MOUNT_BENEATH: u32 = 0x200;

fn said(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!(" (the kernel: {log})") }
}

/// A filesystem being configured.
pub(crate) struct Context {
    fs_type: &'static str,
    mount_point: PathBuf,
    fd: OwnedFd,
}

impl Context {
    pub(crate) fn open(
        fs_type: &'static str,
        mount_point: &Path,
    ) -> Result<Self, KernelMountError> {
        let mount_point = mount_point.to_owned();
        match rustix::mount::fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(fd) => Ok(Self { fs_type, mount_point, fd }),
            Err(error) => Err(KernelMountError {
                fs_type,
                mount_point,
                attempt: "no such filesystem, or no permission".into(),
                log: String::new(),
                source: error.into(),
            }),
        }
    }

    pub(crate) fn set(&self, key: &str, value: &OsStr) -> Result<(), KernelMountError> {
        rustix::mount::fsconfig_set_string(&self.fd, key, value)
            .map_err(|error| self.failed(format!("set {key} to {}", value.display()), error))
    }

    pub(crate) fn set_flag(&self, key: &str) -> Result<(), KernelMountError> {
        rustix::mount::fsconfig_set_flag(&self.fd, key)
            .map_err(|error| self.failed(format!("set {key}"), error))
    }

    /// Mount it where it was meant to be.
    pub(crate) fn mount(self, attributes: MountAttrFlags) -> Result<(), KernelMountError> {
        self.create()?;
        let mount = self.detached(attributes)?;
        self.place(&mount)
    }

    /// Let the kernel set the filesystem up.
    pub(crate) fn create(&self) -> Result<(), KernelMountError> {
        rustix::mount::fsconfig_create(&self.fd)
            .map_err(|error| self.failed("read its superblock".into(), error))
    }

    /// Make a mount of it that no path leads to.
    pub(crate) fn detached(&self, attributes: MountAttrFlags) -> Result<OwnedFd, KernelMountError> {
        rustix::mount::fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|error| self.failed("make a mount of it".into(), error))
    }

    /// Mount it where it was meant to be, out of sight below what is mounted there.
    pub(crate) fn mount_beneath(self, attributes: MountAttrFlags) -> Result<(), KernelMountError> {
        self.create()?;
        let mount = self.detached(attributes)?;
        self.place_with(&mount, MoveMountFlags::from_bits_retain(MOVE_MOUNT_BENEATH))
    }

    /// Put that mount where it was meant to be.
    pub(crate) fn place(&self, mount: &OwnedFd) -> Result<(), KernelMountError> {
        self.place_with(mount, MoveMountFlags::empty())
    }

    fn place_with(&self, mount: &OwnedFd, flags: MoveMountFlags) -> Result<(), KernelMountError> {
        let flags = flags | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(mount, "", CWD, &self.mount_point, flags)
            .map_err(|error| self.failed("put it there".into(), error))
    }

    fn failed(&self, attempt: String, error: rustix::io::Errno) -> KernelMountError {
        KernelMountError {
            fs_type: self.fs_type,
            mount_point: self.mount_point.clone(),
            attempt,
            log: self.log(),
            source: error.into(),
        }
    }

    /// Messages that the filesystem left for us: one for each read(2), with a letter and a space
    /// in front.
    fn log(&self) -> String {
        const MESSAGES_MAX: usize = 8;
        let mut messages = Vec::new();
        let mut buffer = [0; 1024];
        while messages.len() < MESSAGES_MAX
            && let Ok(count @ 1..) = rustix::io::read(&self.fd, &mut buffer)
        {
            let text = buffer.get(2..count).unwrap_or_default();
            messages.push(String::from_utf8_lossy(text).trim().to_owned());
        }
        messages.join("; ")
    }
}

/// A path that fits into a setting, which takes 255 bytes.
pub(crate) struct ShortPath {
    path: PathBuf,
    /// What the path goes through, if it is not the real one.
    _through: Option<OwnedFd>,
}

const SETTING_LEN_MAX: usize = 255;

impl ShortPath {
    /// `path` itself if it is short enough, else a way through an open descriptor.
    pub(crate) fn to(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= SETTING_LEN_MAX {
            return Ok(Self { path: path.to_owned(), _through: None });
        }
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { path: through(fd.as_fd()), _through: Some(fd) })
    }

    pub(crate) fn as_os_str(&self) -> &OsStr {
        self.path.as_os_str()
    }
}

/// A path to an open file, valid in this process as long as it is open.
pub(crate) fn through(fd: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// mount(2), for filesystems that know the new API only in part.
pub(crate) fn mount_by_data(
    fs_type: &'static str,
    mount_point: &Path,
    data: &OsStr,
) -> Result<(), KernelMountError> {
    let failed = |attempt: &str, source: io::Error| KernelMountError {
        fs_type,
        mount_point: mount_point.to_owned(),
        attempt: attempt.into(),
        log: String::new(),
        source,
    };
    let data =
        CString::new(data.as_bytes()).map_err(|error| failed("a zero byte", error.into()))?;
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount(fs_type, mount_point, fs_type, flags, Some(data.as_c_str()))
        .map_err(|error| failed("mount(2)", error.into()))
}
