//! Namespaces for `run`: what is mounted in them goes with them.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    unmount,
};
use rustix::process::{getegid, geteuid};
use rustix::thread::UnshareFlags;

/// Whose eyes the new namespace sees the machine with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// Root as before.
    Root,
    /// Root of a user namespace that knows this one user.
    Mapped,
}

/// Move the process into a mount namespace of its own; without root, inside a user namespace.
/// The process must have a single thread.
pub(crate) fn enter() -> io::Result<Privilege> {
    let (uid, gid) = (geteuid(), getegid());
    let privilege = if uid.is_root() { Privilege::Root } else { Privilege::Mapped };
    match privilege {
        Privilege::Root => unshare(UnshareFlags::NEWNS)?,
        Privilege::Mapped => {
            unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)?;
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("0 {} 1", uid.as_raw()))?;
            fs::write("/proc/self/gid_map", format!("0 {} 1", gid.as_raw()))?;
        }
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)?;
    Ok(privilege)
}

#[expect(
    deprecated,
    reason = "its successor is unsafe for the sake of CLONE_FILES, which is not used here"
)]
fn unshare(flags: UnshareFlags) -> io::Result<()> {
    Ok(rustix::thread::unshare(flags)?)
}

/// A filesystem in memory.
pub(crate) fn mount_tmpfs(target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount(c"tmpfs", target, c"tmpfs", flags, c"mode=0755")?)
}

/// Take a mount away with all that is mounted below it.
pub(crate) fn detach(target: &Path) -> io::Result<()> {
    Ok(unmount(target, UnmountFlags::DETACH)?)
}

/// An overlay of `upper` over `lower`, changes going to `upper`.
pub(crate) fn mount_overlay(
    lower: &Path,
    upper: &Path,
    work: &Path,
    target: &Path,
    privilege: Privilege,
) -> io::Result<()> {
    let xattrs = if privilege == Privilege::Mapped { ",userxattr" } else { "" };
    let (lower, upper, work) = (lower.display(), upper.display(), work.display());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}{xattrs}");
    let options = CString::new(options).map_err(io::Error::other)?;
    Ok(mount(c"overlay", target, c"overlay", MountFlags::empty(), options.as_c_str())?)
}

/// Show the machine's /proc, /sys, /dev and resolver in the image's tree, where it has a place for
/// them, or may be given one.
pub(crate) fn furnish(root: &Path, writable: bool) {
    for name in ["proc", "sys", "dev"] {
        bind(&Path::new("/").join(name), &root.join(name), writable);
    }
    // Containers resolve names as their host does; the file must be there to be mounted over.
    let names = root.join("etc/resolv.conf");
    if fs::symlink_metadata(&names).is_ok_and(|metadata| metadata.is_file()) {
        bind(Path::new("/etc/resolv.conf"), &names, false);
    }
}

fn bind(source: &Path, target: &Path, make: bool) {
    // A link of the image's could lead out of it.
    let is_link = fs::symlink_metadata(target).is_ok_and(|metadata| metadata.is_symlink());
    if is_link || !source.exists() {
        return;
    }
    if make && !target.exists() {
        // The bind mount that follows says what is wrong.
        drop(fs::create_dir(target));
    }
    if let Err(error) = mount_bind_recursive(source, target) {
        tracing::info!(source = %source.display(), %error, "not shown in the image");
    }
}
