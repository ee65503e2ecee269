//! Taking mounts out of the directory tree.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;

use crate::transport::fuse3::Privilege;

/// Detach the topmost mount at `mount_point`; it ends with its last user.
///
/// Looks at nothing behind the path's last step, so neither a dead nor a waiting server matters.
pub fn detach(mount_point: &Path, privilege: Privilege) -> io::Result<()> {
    match privilege {
        Privilege::Root => {
            Ok(rustix::mount::unmount(mount_point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
        }
        Privilege::User => fusermount(mount_point),
    }
}

fn fusermount(mount_point: &Path) -> io::Result<()> {
    let output = Command::new("fusermount3")
        .args(["-u", "-z", "--"])
        .arg(mount_point)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("fusermount3 -u -z: {}: {}", output.status, said.trim())))
}
