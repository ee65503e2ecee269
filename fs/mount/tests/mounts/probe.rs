//! The probe tries what it claims, and leaves nothing.

use spanfs_mount::policy::{self, Front};
use spanfs_mount::probe::Facts;
use spanfs_mount::transport::Privilege;

use crate::scratch::{Scratch, may_mount};

#[test]
fn this_machine_shows_layers_by_erofs() {
    if !may_mount("probe") {
        return;
    }
    let scratch = Scratch::new();
    let facts = Facts::gather(scratch.path());
    assert!(facts.is_admin);
    assert_eq!(facts.fuse_device, Ok(()));
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    assert!(scratch.mounts().is_empty());
    let choice = policy::choose(&facts, None).unwrap();
    let expected = if facts.erofs.is_ok() { Front::Erofs } else { Front::Inode };
    assert_eq!((choice.front, choice.privilege), (expected, Privilege::Root), "{facts:?}");
}
