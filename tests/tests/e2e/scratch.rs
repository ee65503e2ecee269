//! Where one test keeps its things.

use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;
use tempfile::TempDir;

use crate::peers::{run, spanfs};

/// Scratch of one test: a cache of its own, and mounts that go when it goes.
pub(crate) struct Scratch {
    pub(crate) dir: TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { dir: TempDir::new().expect("temporary directory") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `spanfs` with the cache and runtime directory of this test.
    pub(crate) fn spanfs(&self) -> Command {
        let mut command = Command::new(spanfs());
        command
            .env("SPANFS_CACHE_DIR", self.path("cache"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("DOCKER_CONFIG", self.path("docker"));
        fs::create_dir_all(self.path("run")).expect("directory");
        command
    }

    /// Mounts an image and returns the mount point.
    pub(crate) fn mount(&self, image: &str, options: &[&str]) -> PathBuf {
        let root = self.path("mnt");
        fs::create_dir_all(&root).expect("directory");
        run(self.spanfs().arg("mount").args(options).arg(image).arg(&root));
        root
    }

    /// Makes the next mount a cold one.
    pub(crate) fn forget(&self) {
        let cache = self.path("cache");
        if cache.exists() {
            fs::remove_dir_all(cache).expect("remove");
        }
    }

    pub(crate) fn umount(&self) {
        run(self.spanfs().arg("umount").arg(self.path("mnt")));
    }

    /// What the process of one mount says of it: others may be running on this machine.
    pub(crate) fn status_of(&self, root: &Path) -> Value {
        let text = run(self.spanfs().args(["status", "--json"]).arg(root));
        serde_json::from_str(&text).expect("JSON")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let root = self.path("mnt");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if mounts.contains(root.to_str().expect("text")) {
            let _ = self.spanfs().arg("umount").arg(&root).status();
        }
    }
}

/// A disk that is soon full, gone with this value.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `options` as tmpfs has them: `size=8m`.
    pub(crate) fn mount(at: &Path, options: &CStr) -> Self {
        fs::create_dir_all(at).expect("directory");
        mount(c"tmpfs", at, c"tmpfs", MountFlags::empty(), options).expect("tmpfs");
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("{} stays mounted: {error}", self.0.display());
        }
    }
}
