//! A directory for one test, and what the test needs of the machine.

use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;
use spanfs_mount::transport::Transport;
use spanfs_mount::{mountinfo, probe};

/// A directory that is gone afterwards with every mount below it, also when the test fails.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap().keep().canonicalize().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// An empty directory called `name`.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Mount points below, in mount order.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let all = mountinfo::mounts().unwrap().into_iter();
        all.map(|mount| mount.mount_point).filter(|path| path.starts_with(&self.0)).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for mount_point in self.mounts().into_iter().rev() {
            let _gone = rustix::mount::unmount(mount_point, UnmountFlags::DETACH);
        }
        if self.mounts().is_empty() {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }
}

/// True if this process may mount; else says so, or fails where nothing may be skipped.
pub(crate) fn may_mount(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let has_fuse = std::fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if is_root && has_fuse {
        return true;
    }
    let missing = if is_root { "/dev/fuse" } else { "root" };
    assert!(!is_strict(), "{test} needs {missing}");
    eprintln!("{test} skipped: it needs {missing}");
    false
}

/// The long versions are wanted: `tests/run --soak`.
pub(crate) fn is_soak() -> bool {
    std::env::var("SPANFS_TEST_SOAK").as_deref() == Ok("1")
}

/// Nothing may be skipped, as in CI: `tests/run --strict`.
pub(crate) fn is_strict() -> bool {
    std::env::var("SPANFS_TEST_STRICT").as_deref() == Ok("1")
}

/// True if this machine has the transport; FUSE over io_uring is switched on where it is off.
pub(crate) fn has(transport: Transport) -> bool {
    if transport != Transport::Uring {
        return true;
    }
    let _refused = probe::enable_uring(); // What counts is what is found now.
    match probe::uring() {
        Ok(()) => true,
        Err(why) => {
            assert!(!is_strict(), "no uring: {why}");
            eprintln!("uring left out: {why}");
            false
        }
    }
}
