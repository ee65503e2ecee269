//! A FUSE connection from outside: its number, its read-ahead, its end by force.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// A FUSE connection, by the minor number of its anonymous device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection(pub u32);

impl Connection {
    /// End it: every request waiting or to come fails. Needs root, or the user who mounted.
    ///
    /// The last resort for readers that nobody answers. `fusectl` need not be mounted.
    pub fn abort(self) -> io::Result<()> {
        let name = format!("{}/abort", self.0);
        let directory = match open_directory("/sys/fs/fuse/connections") {
            Ok(directory) if has(&directory, &name) => directory,
            _ => fusectl()?,
        };
        let file =
            rustix::fs::openat(&directory, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(file, b"1")?;
        Ok(())
    }

    /// Set how far the kernel reads ahead; its default is 128 KiB. Needs root.
    pub fn set_read_ahead(self, kib: u32) -> io::Result<()> {
        std::fs::write(format!("/sys/class/bdi/0:{}/read_ahead_kb", self.0), kib.to_string())
    }
}

fn open_directory(path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn has(directory: &OwnedFd, name: &str) -> bool {
    rustix::fs::accessat(directory, name, rustix::fs::Access::EXISTS, rustix::fs::AtFlags::empty())
        .is_ok()
}

/// An instance of `fusectl` that no path leads to.
fn fusectl() -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}
