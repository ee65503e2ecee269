//! What a mount process that was killed left behind.

use std::io;
use std::path::Path;

use rustix::process::geteuid;
use spanfs_mount::mountinfo;
use spanfs_mount::transport::fuse3::Privilege;
use spanfs_mount::unmount::detach;

/// More mounts on one directory than anybody stacks.
const STACKED_MAX: usize = 16;

/// Detach whatever of ours is mounted at `directory`; true if there was something.
pub(crate) fn unmount(directory: &Path) -> io::Result<bool> {
    let privilege = if geteuid().is_root() { Privilege::Root } else { Privilege::User };
    let mut found = false;
    for _ in 0..STACKED_MAX {
        match mountinfo::mounted_at(directory)? {
            Some(mount) if is_ours(&mount) => detach(directory, privilege)?,
            _ => break,
        }
        found = true;
    }
    Ok(found)
}

/// Never take away what somebody else mounted.
fn is_ours(mount: &mountinfo::MountEntry) -> bool {
    let source = mount.source.as_encoded_bytes();
    match mount.fs_type.as_str() {
        "overlay" => source == b"spanfs",
        "erofs" => true,
        fuse => fuse.starts_with("fuse") && (source == b"soci" || source == b"spanfs"),
    }
}
