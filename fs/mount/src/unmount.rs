//! Taking mounts out of the directory tree.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;

use crate::mountinfo;
use crate::transport::Privilege;

/// Detach the topmost mount at `mount_point`; it ends with its last user. Where nothing is mounted
/// any more, that is fine too.
///
/// Looks at nothing behind the path's last step, so neither a dead nor a waiting server matters.
pub fn detach(mount_point: &Path, privilege: Privilege) -> io::Result<()> {
    let outcome = match privilege {
        Privilege::Root => {
            rustix::mount::unmount(mount_point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .map_err(io::Error::from)
        }
        Privilege::User => fusermount(mount_point),
    };
    match outcome {
        Err(_) if mountinfo::mounted_at(mount_point)?.is_none() => Ok(()),
        outcome => outcome,
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
