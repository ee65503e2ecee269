//! The life of a container, from pull to removal, on an image without index.

use std::fs;

use spanfs_registry::Registry;
use spanfs_tests::peers::{DockerRegistry, Guarded, able};

use crate::image::{Image, Layer, noise};
use crate::node::{Node, Setup};
use crate::versions::{Version, on_each_containerd};

on_each_containerd!(
    container_prints_its_line,
    committed_changes_come_back,
    image_unpacked_by_the_client_runs,
    removal_gives_all_back,
);

fn image() -> Image {
    let files = Layer::new().directory("app").file("app/data", 0o644, &noise(1, 100_000)).file(
        "app/gone",
        0o600,
        b"to be removed",
    );
    Image::with_programs().layer(files)
}

fn container_prints_its_line(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let image = image().push(&registry, "test/plain", "1");
    let node = Node::start(&Setup::of(version));
    let ctr = node.default();
    ctr.pull(&image);
    assert_eq!(ctr.run(&image, "once", &[]), "ready\n");
}

/// `ctr images pull --local`: the client fetches and unpacks, also where the server would. The 1.6 of
/// containerd knows no other way, and no flag.
fn image_unpacked_by_the_client_runs(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let image = image().push(&registry, "test/plain", "1");
    let node = Node::start(&Setup::of(version));
    let ctr = node.default();
    let local: &[&str] = match version {
        Version::One => &[],
        Version::Two => &["--local"],
    };
    let usual = ["--plain-http", "--snapshotter", "soci", &image];
    ctr.ctr(&[&["images", "pull"], local, &usual].concat());
    assert_eq!(ctr.snapshots().len(), 2, "a layer each");
    let said = ctr.try_run(&[], &image, "stays", &["/bin/sha256sum", "/app/data"]);
    let digest = spanfs_layer::Digest::of(&noise(1, 100_000));
    assert_eq!(said.as_deref(), Ok(format!("{}  /app/data\n", digest.hex()).as_str()));

    // The container's upper directory may be mounted a second time, to copy volumes up.
    let key = node.named("stays");
    let mount = ctr.ctr(&["snapshots", "--snapshotter", "soci", "mounts", "/mnt", &key]);
    let has_index = std::path::Path::new("/sys/module/overlay/parameters/index").exists();
    assert!(mount.starts_with("mount -t overlay overlay /mnt -o "), "{mount}");
    assert_eq!(mount.contains(",index=off"), has_index, "{mount}");
}

/// A container's changes as a layer, pushed to a registry by one node and pulled by another.
fn committed_changes_come_back(version: Version) {
    if !able(&["docker-registry"], false) {
        return;
    }
    let registry = Registry::builder().start().expect("a registry");
    let target = DockerRegistry::start(&Guarded::default());
    let base = image();
    let reference = base.push(&registry, "test/base", "1");
    let changed = format!("{}/test/changed:1", target.address);
    {
        let node = Node::start(&Setup::of(version));
        let ctr = node.default();
        ctr.pull(&reference);
        let script = "echo new > /app/new; echo more >> /app/data; rm /app/gone; chmod 700 /tmp";
        ctr.try_run(&[], &reference, "changes", &["/bin/sh", "-c", script]).expect("it runs");
        let archive = node.path("tmp/archive.tar");
        let image = ctr.diff("changes", &base);
        fs::write(&archive, image.archive(&changed)).expect("write");
        ctr.ctr(&["images", "import", "--no-unpack", archive.to_str().expect("text")]);
        ctr.ctr(&["images", "push", "--plain-http", &changed]);
    }
    let node = Node::start(&Setup::of(version));
    let ctr = node.default();
    ctr.pull(&changed);
    let script = "cat /app/new; sha256sum /app/data; ls -d /tmp -l | cut -c1-10; ls /app";
    let said = ctr.run(&changed, "looks", &["/bin/sh", "-c", script]);
    let data = [noise(1, 100_000), b"more\n".to_vec()].concat();
    let digest = spanfs_layer::Digest::of(&data).to_string();
    let digest = digest.trim_start_matches("sha256:");
    assert_eq!(said, format!("new\n{digest}  /app/data\ndrwx------\ndata\nnew\n"));
}

fn removal_gives_all_back(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let image = image().push(&registry, "test/plain", "1");
    let node = Node::start(&Setup::of(version));
    let (mounts, disk) = (node.mounts(), node.disk_used());
    let ctr = node.default();
    assert!(ctr.snapshots().is_empty() && node.directories().is_empty());

    ctr.pull(&image);
    let usage = ctr.ctr(&["snapshots", "--snapshotter", "soci", "usage", "-b"]);
    let used: u64 = usage
        .lines()
        .skip(1)
        .map(|line| {
            line.split_whitespace().nth(1).expect("bytes").parse::<u64>().expect("a number")
        })
        .sum();
    assert!(used > 2_000_000, "busybox and 100 kB at least: {usage}");
    ctr.try_run(&[], &image, "stays", &["/bin/sh", "-c", "echo x > /app/x"]).expect("it runs");
    assert_eq!(ctr.snapshots().len(), 3, "two layers and a container");
    assert_eq!(node.directories().len(), 3);

    ctr.ctr(&["containers", "rm", &node.named("stays")]);
    ctr.remove(&[&image]);
    assert_eq!(ctr.snapshots(), Vec::<String>::new());
    assert_eq!(node.directories(), Default::default(), "nothing is left on disk");
    assert_eq!(node.mounts(), mounts);
    let left = node.disk_used().saturating_sub(disk);
    assert!(left < 64 << 10, "{left} bytes of disk are left behind");
}
