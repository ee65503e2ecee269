//! Layers unpacked into directories.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use spanfs_layer::Kind;
use spanfs_mount::front::files::{Devices, UnpackError, UnpackOptions, unpack};

use crate::content::noise;
use crate::layers::{Maker, rich};
use crate::snapshot;

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let strict = std::env::var_os("SPANFS_TEST_STRICT").is_some_and(|it| it == "1");
    assert!(is_root || !strict, "root is needed");
    if !is_root {
        eprintln!("skipped: root is needed");
    }
    is_root
}

fn run(maker: &Maker, into: &Path, threads: usize, stop: &AtomicBool) -> Result<(), UnpackError> {
    let data = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(data.path(), &maker.bytes).unwrap();
    let data = File::open(data.path()).unwrap();
    let devices = Devices::Make;
    unpack(&maker.tree(), data.as_fd(), into, UnpackOptions { threads, stop, devices })
}

#[test]
fn everything_is_as_the_layer_says() {
    if !is_root() {
        return;
    }
    let mut maker = rich();
    maker
        .sparse("holes", 1 << 22, &[(4096, 1000), (1 << 20, 300_000)])
        .sparse("all hole", 1 << 20, &[])
        .directory("last", 0o500)
        .hardlink("last/big", "big");
    for threads in [1, 4] {
        let directory = tempfile::tempdir().unwrap();
        let into = directory.path().join("into");
        std::fs::create_dir(&into).unwrap();
        run(&maker, &into, threads, &AtomicBool::new(false)).unwrap();
        snapshot::assert_same(&snapshot::of(&into), &maker.model, &format!("{threads} threads"));
        let blocks = std::fs::metadata(into.join("holes")).unwrap().blocks();
        assert!(blocks * 512 < 1 << 21, "{blocks} blocks for a file of holes");
    }
}

#[test]
fn whiteouts_have_the_form_of_overlayfs() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut maker = Maker::default();
    maker.directory("a", 0o755).whiteout("a/.wh..wh..opq").whiteout(".wh.gone");
    run(&maker, directory.path(), 2, &AtomicBool::new(false)).unwrap();
    let gone = std::fs::symlink_metadata(directory.path().join("gone")).unwrap();
    assert_eq!((gone.mode() & 0o170_000, gone.rdev()), (0o20_000, 0));
    let opaque = &snapshot::xattrs(&directory.path().join("a"))[&b"trusted.overlay.opaque"[..]];
    assert_eq!(opaque, b"y");
}

/// What the layer's root and directories without an entry hide was shown by this front.
#[test]
fn directories_without_an_entry_hide_what_lies_below() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut maker = Maker::default();
    maker.whiteout("implied/.wh..wh..opq").whiteout(".wh..wh..opq");
    run(&maker, directory.path(), 2, &AtomicBool::new(false)).unwrap();
    for path in ["", "implied"] {
        let xattrs = snapshot::xattrs(&directory.path().join(path));
        assert_eq!(xattrs[&b"trusted.overlay.opaque"[..]], b"y", "{path:?}");
    }
}

#[test]
fn directories_that_are_only_implied_are_plain_and_the_root_is_not_touched() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mode = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(directory.path(), mode).unwrap();
    let mut maker = Maker::default();
    maker.file("deep/er/file", 0o640, noise(10, 1));
    run(&maker, directory.path(), 1, &AtomicBool::new(false)).unwrap();
    for (path, mode) in [("", 0o711), ("deep", 0o755), ("deep/er", 0o755), ("deep/er/file", 0o640)]
    {
        let found = std::fs::metadata(directory.path().join(path)).unwrap().mode() & 0o7777;
        assert_eq!(found, mode, "{path:?}");
    }
}

#[test]
fn a_stop_ends_it() {
    let directory = tempfile::tempdir().unwrap();
    let error = run(&rich(), directory.path(), 2, &AtomicBool::new(true)).unwrap_err();
    assert!(matches!(error, UnpackError::Stopped), "{error}");
}

/// A file system of our own, of that size and with that many inodes.
struct Small(tempfile::TempDir);

impl Small {
    fn new(options: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(directory.path());
        assert!(mount.status().unwrap().success());
        Self(directory)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let mut umount = std::process::Command::new("umount");
        assert!(umount.arg("-l").arg(self.0.path()).status().unwrap().success());
    }
}

#[test]
fn a_disk_without_room_or_inodes_is_named_with_the_file() {
    if !is_root() {
        return;
    }
    let mut large = Maker::default();
    large.directory("d", 0o755).file("d/large", 0o644, noise(1 << 20, 1));
    for (options, maker, what) in [
        ("size=256k", &large, "d/large"),
        ("size=64m,nr_inodes=100", &rich(), "making"),
        ("size=64m,ro", &large, "Read-only"),
    ] {
        let small = Small::new(options);
        let error = run(maker, small.0.path(), 2, &AtomicBool::new(false)).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        let text = format!("{error}: {}", source.unwrap_or_default());
        assert!(text.contains(what), "{options}: {text}");
    }
}

#[test]
fn a_name_that_stands_there_is_never_followed() {
    if !is_root() {
        return;
    }
    // The directory is to be empty. Even if it is not, nothing is reached through what is there.
    let (directory, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::os::unix::fs::symlink(outside.path(), directory.path().join("d")).unwrap();
    let mut maker = Maker::default();
    maker.directory("d", 0o755).file("d/file", 0o644, noise(10, 1)).device("x", Kind::Fifo, 0, 0);
    let error = run(&maker, directory.path(), 2, &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(error, UnpackError::Disk { .. }), "{error}");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}
