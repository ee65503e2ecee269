//! Whole layers where the disk, the kernel or the image stands in the way: an error that says so, nothing
//! that stays behind, and a daemon that goes on.

use std::path::Path;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use spanfs_registry::Registry;

use crate::node::{Node, PROGRAM};
use crate::parallel::{GZIP, PARALLEL, put, put_blobs, snapshot_files, tar_of, wait_until};
use crate::pull::{Containerd, Image, can_mount};
use crate::scene::{Root, start_with};

const MIB: u64 = 1 << 20;

/// Whole layers, unpacked.
fn files() -> String {
    format!("{PARALLEL}[spanfs]\nfront = \"files\"\n[blob]\nmax_retries = 1\nmin_wait_msec = 10\n")
}

fn mount(arguments: &[&str], at: &Path) {
    let output = Command::new("mount").args(arguments).arg(at).output().unwrap();
    assert!(output.status.success(), "mount {arguments:?}: {output:?}");
}

/// A small file system for a node, with room for the daemon's own files.
fn small(root: &Root, options: &str) {
    mount(&["-t", "tmpfs", "-o", options, "tmpfs"], root.path());
}

/// A tar of so many files, in one directory.
fn tar_of_files(count: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for number in 0..count {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(1);
        builder.append_data(&mut header, format!("d/{number}"), &b"x"[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A layer fails with these words, and leaves nothing but what a later try goes on with.
async fn fails(containerd: &mut Containerd, image: &Image, root: &Path, words: &[&str]) {
    let labels = Containerd::labels(image, &image.layers[0]);
    let status = containerd.extract("", labels).await.map(drop).unwrap_err();
    for part in words {
        assert!(status.message().contains(part), "no {part:?} in {status}");
    }
    wait_until("an end without left-overs", || snapshot_files(root).is_empty()).await;
}

async fn comes(containerd: &mut Containerd, image: &Image) {
    let labels = Containerd::labels(image, &image.layers[0]);
    containerd.extract("", labels).await.unwrap().expect("containerd need not unpack it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_room_for_it_helps() {
    if !can_mount() {
        return;
    }
    for settings in [files(), PARALLEL.to_owned()] {
        let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
        small(&root, "size=24m");
        let image = put(&registry, "large", &[tar_of(401, 32 * MIB)]);
        let (_node, mut containerd) = start_with(root.path(), "default", &settings).await;
        fails(&mut containerd, &image, root.path(), &["No space left on device"]).await;
        let little = put(&registry, "little", &[tar_of(402, MIB)]);
        comes(&mut containerd, &little).await;
        mount(&["-o", "remount,size=200m"], root.path());
        comes(&mut containerd, &image).await;
        containerd.collect_garbage().await;
    }
}

/// A file system for a node of which it may use so many bytes, gone with its mount. None where there are no
/// tools for it: of all that this can be had with, btrfs alone counts what root writes, too.
fn limited(root: &Root, disk: &Path, bytes: u64) -> Option<()> {
    if Command::new("mkfs.btrfs").arg("--version").output().is_err() {
        let is_strict = std::env::var_os("SPANFS_TEST_STRICT").is_some_and(|it| it == "1");
        assert!(!is_strict, "btrfs-progs is not installed");
        eprintln!("left out: btrfs-progs is not installed");
        return None;
    }
    std::fs::File::create(disk).unwrap().set_len(256 * MIB).unwrap();
    let made = Command::new("mkfs.btrfs").arg("-q").arg(disk).status().unwrap();
    assert!(made.success());
    mount(&["-o", "loop", disk.to_str().unwrap()], root.path());
    btrfs(&["quota", "enable"], root.path());
    btrfs(&["qgroup", "limit", &bytes.to_string()], root.path());
    Some(())
}

fn btrfs(arguments: &[&str], at: &Path) {
    let output = Command::new("btrfs").args(arguments).arg(at).output().unwrap();
    assert!(output.status.success(), "btrfs {arguments:?}: {output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_told_and_a_larger_one_helps() {
    if !can_mount() {
        return;
    }
    for settings in [files(), PARALLEL.to_owned()] {
        let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
        let disks = tempfile::tempdir().unwrap();
        let Some(()) = limited(&root, &disks.path().join("disk"), 24 * MIB) else { return };
        let image = put(&registry, "large", &[tar_of(404, 32 * MIB)]);
        let (_node, mut containerd) = start_with(root.path(), "default", &settings).await;
        fails(&mut containerd, &image, root.path(), &["Disk quota exceeded"]).await;
        btrfs(&["qgroup", "limit", "none"], root.path());
        comes(&mut containerd, &image).await;
        containerd.collect_garbage().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_inodes_is_told_and_more_of_them_help() {
    if !can_mount() {
        return;
    }
    let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
    small(&root, "size=64m,nr_inodes=600");
    let image = put(&registry, "many", &[tar_of_files(2000)]);
    let (_node, mut containerd) = start_with(root.path(), "default", &files()).await;
    let words = ["making file d/", "No space left on device"];
    fails(&mut containerd, &image, root.path(), &words).await;
    mount(&["-o", "remount,nr_inodes=100000"], root.path());
    comes(&mut containerd, &image).await;
    containerd.collect_garbage().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_read_only_is_told() {
    if !can_mount() {
        return;
    }
    let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
    let image = put(&registry, "any", &[tar_of_files(3)]);
    let (_node, mut containerd) = start_with(root.path(), "default", &files()).await;
    let snapshots = root.path().join("state/snapshotter/snapshots");
    mount(&["--bind", snapshots.to_str().unwrap()], &snapshots);
    mount(&["-o", "remount,bind,ro"], &snapshots);
    let labels = || Containerd::labels(&image, &image.layers[0]);
    let status = containerd.extract("", labels()).await.map(drop).unwrap_err();
    assert!(status.message().contains("Read-only file system"), "{status}");
    mount(&["-o", "remount,bind,rw"], &snapshots);
    comes(&mut containerd, &image).await;
    containerd.collect_garbage().await;
}

/// Half a gigabyte of zeros in half a megabyte: it takes what the disk has, and gives it back.
#[tokio::test(flavor = "multi_thread")]
async fn a_tar_bomb_takes_the_disk_for_a_moment_only() {
    if !can_mount() {
        return;
    }
    let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
    small(&root, "size=48m");
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(512 * MIB);
    header.set_path("bomb").unwrap();
    header.set_cksum();
    let mut tar = header.as_bytes().to_vec();
    tar.resize(tar.len() + 512 * MIB as usize + 1024, 0);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    std::io::copy(&mut tar.as_slice(), &mut encoder).unwrap();
    let blob = encoder.finish().unwrap();
    assert!((blob.len() as u64) < 4 * MIB, "{} bytes are no bomb", blob.len());
    let bomb =
        put_blobs(&registry, "bomb", GZIP, &[(blob.as_slice(), spanfs_layer::Digest::of(&tar))]);
    let (node, mut containerd) = start_with(root.path(), "default", &files()).await;
    fails(&mut containerd, &bomb, root.path(), &["No space left on device"]).await;
    // Its neighbours have the room that they had before.
    let image = put(&registry, "large", &[tar_of(403, 12 * MIB)]);
    comes(&mut containerd, &image).await;
    containerd.collect_garbage().await;
    node.signal("TERM");
    let (status, log) = node.wait();
    assert!(status.success() && !log.contains("panicked"), "{log}");
}

/// A device, a whiteout, and a file.
fn tar_with_device() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Char);
    header.set_mode(0o666);
    header.set_size(0);
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    builder.append_data(&mut header, "dev/null", &[][..]).unwrap();
    for path in ["dev/.wh.zero", "dev/file"] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(0);
        builder.append_data(&mut header, path, &[][..]).unwrap();
    }
    builder.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_nobody_may_make_is_named() {
    if !can_mount() {
        return;
    }
    let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
    let image = put(&registry, "device", &[tar_with_device()]);
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-mknod", "--inh-caps=-mknod", PROGRAM]);
    let mut node = Node::start_by(root.path(), &files(), command);
    let mut containerd = Containerd::new(node.connect().await, "default");
    let words = ["making device dev/null", "Operation not permitted"];
    fails(&mut containerd, &image, root.path(), &words).await;
}

/// As containerd does it: nobody may make devices in a user namespace, so nobody expects them there.
#[tokio::test(flavor = "multi_thread")]
async fn devices_are_left_out_in_a_user_namespace() {
    if !can_mount() {
        return;
    }
    let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
    let image = put(&registry, "device", &[tar_of_files(1), tar_with_device()]);
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", PROGRAM]);
    let mut node = Node::start_by(root.path(), &files(), command);
    let mut containerd = Containerd::new(node.connect().await, "default");
    containerd.pull(&image).await;
    let layers = snapshot_files(root.path());
    let directory = layers.iter().map(|layer| layer.join("dev")).find(|it| it.exists());
    let entries = std::fs::read_dir(directory.unwrap()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["file", "zero"], "the whiteout and the file");
    containerd.collect_garbage().await;
}
