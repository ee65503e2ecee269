//! Much of everything: cycles, images, layers.

use std::sync::Mutex;
use std::time::Duration;

use spanfs_layer::Digest;
use spanfs_registry::Registry;

use crate::cri::Cri;
use crate::image::{Image, Layer, noise};
use crate::lazy::{assert_lazy, pause, pull_by_cri};
use crate::node::{Node, Setup};
use crate::own_view::consistent_snapshots;
use crate::process::wait_for;
use crate::versions::{Version, on_each_containerd, soak};

on_each_containerd!(
    cycles_leak_nothing,
    many_files_in_one_image,
    many_images_at_once,
    many_layers_in_one_image,
);

const CYCLES: u32 = 16;
const CYCLES_SOAK: u32 = 200;
/// The first cycles fill pools of threads and connections.
const CYCLES_BEFORE: u32 = 4;
/// Less than one a cycle.
const SLACK: usize = 12;
const DISK_SLACK: u64 = 1 << 20;
const RSS_SLACK: usize = 64 << 20;
/// Idle threads and connections go after a while.
const SETTLING: Duration = Duration::from_secs(60);
const IMAGES: usize = 30;
const LAYERS: usize = 127;
const FILES: usize = 20_000;
const FILES_SOAK: usize = 300_000;
const FILES_PER_DIRECTORY: usize = 500;

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    descriptors: usize,
    threads: usize,
    bytes: usize,
}

fn held(pid: u32) -> Held {
    let count = |what: &str| {
        std::fs::read_dir(format!("/proc/{pid}/{what}")).expect("the daemon runs").count()
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon runs");
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let kib: usize = rss.trim().trim_end_matches(" kB").parse().expect("a number");
    Held { descriptors: count("fd"), threads: count("task"), bytes: kib << 10 }
}

fn cycles_leak_nothing(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let files = Layer::new().file("data", 0o644, &noise(9, 3 << 20));
    let image = Image::with_programs().layer(files);
    let (reference, _) = image.push_indexed(&registry, "test/cycle", "v2");
    let node = Node::start(&Setup::of(version));
    let mounts = node.mounts();
    let cycle = |number: u32| {
        pull_by_cri(&node, &reference);
        let ctr = node.within("k8s.io");
        assert_eq!(ctr.run(&reference, &format!("cycle-{number}"), &[]), "ready\n");
        ctr.remove(&ctr.images());
        assert_eq!(node.mounts(), mounts, "after cycle {number}");
    };
    (0..CYCLES_BEFORE).for_each(cycle);
    let (before, disk) = (held(node.daemon_pid()), node.disk_used());
    let cycles = if soak() { CYCLES_SOAK } else { CYCLES };
    (CYCLES_BEFORE..CYCLES_BEFORE + cycles).for_each(cycle);
    let mut after = held(node.daemon_pid());
    let is_flat = |after: &Held| {
        after.descriptors <= before.descriptors + SLACK
            && after.threads <= before.threads + SLACK
            && after.bytes <= before.bytes + RSS_SLACK
    };
    wait_for(&format!("from {before:?} after {cycles} cycles to as little"), SETTLING, || {
        after = held(node.daemon_pid());
        is_flat(&after).then_some(())
    });
    let left = node.disk_used().saturating_sub(disk);
    assert!(left <= DISK_SLACK, "{left} bytes of disk are left of {cycles} cycles");
    assert!(consistent_snapshots(&node).is_empty());
}

fn many_images_at_once(version: Version) {
    let registry = Registry::builder().threads(2).start().expect("a registry");
    let images: Vec<_> = (0..IMAGES)
        .map(|number| {
            let files = Layer::new().file("own", 0o644, &noise(100 + number as u64, 2 << 20));
            let image = Image::with_programs().layer(files);
            image.push_indexed(&registry, &format!("test/image{number}"), "v2").0
        })
        .collect();
    let node = Node::start(&Setup::of(version));
    let before = node.mounts();
    Cri::connect(&node, "run/containerd/containerd.sock").pull_all(&images);
    assert_lazy(&node, IMAGES + 1);
    let next = Mutex::new(images.iter().enumerate());
    let ctr = node.within("k8s.io");
    std::thread::scope(|scope| {
        let run = || {
            loop {
                let Some((number, image)) = next.lock().expect("no panic").next() else { break };
                let said = ctr.run(image, &format!("of-{number}"), &["/bin/sha256sum", "/own"]);
                let digest = Digest::of(&noise(100 + number as u64, 2 << 20));
                assert_eq!(said, format!("{}  /own\n", digest.hex()), "image {number}");
            }
        };
        (0..4).for_each(|_| drop(scope.spawn(run)));
    });
    ctr.remove(&ctr.images());
    assert_eq!(node.mounts(), before);
    assert!(consistent_snapshots(&node).is_empty());
}

fn many_layers_in_one_image(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let mut image = Image::with_programs();
    let mut content = Vec::new();
    for layer in 1..LAYERS {
        let bytes = noise(1000 + layer as u64, 20_000);
        image = image.layer(Layer::new().file(&format!("of/{layer:03}"), 0o644, &bytes));
        content.extend(bytes);
    }
    let (reference, _) = image.push_indexed_from(&registry, "test/deep", "v2", "0");
    let pause = pause(&registry);
    let node = Node::start(&Setup { sandbox: &pause, ..Setup::of(version) });
    pull_by_cri(&node, &reference);
    assert_lazy(&node, LAYERS);
    let ctr = node.within("k8s.io");
    let said = ctr.run(&reference, "reads", &["/bin/sh", "-c", "cat /of/* | sha256sum"]);
    assert_eq!(said, format!("{}  -\n", Digest::of(&content).hex()));
    ctr.remove(&ctr.images());
    assert_lazy(&node, 0);
    assert!(consistent_snapshots(&node).is_empty());
}

fn many_files_in_one_image(version: Version) {
    let files = if soak() { FILES_SOAK } else { FILES };
    let registry = Registry::builder().start().expect("a registry");
    let mut layer = Layer::new();
    for directory in 0..files / FILES_PER_DIRECTORY {
        layer = layer.directory(&format!("of/{directory}"));
        for file in 0..FILES_PER_DIRECTORY {
            let content = format!("{directory}/{file}");
            layer = layer.file(&format!("of/{content}"), 0o644, content.as_bytes());
        }
    }
    let image = Image::with_programs().layer(layer);
    let (reference, _) = image.push_indexed_from(&registry, "test/wide", "v2", "100K");
    let node = Node::start(&Setup::of(version));
    pull_by_cri(&node, &reference);
    assert_lazy(&node, 2);
    let ctr = node.within("k8s.io");
    let script = "find /of -type f | wc -l; cat /of/*/7 | wc -c; cat /of/31/499";
    let said = ctr.run(&reference, "counts", &["/bin/sh", "-c", script]);
    let bytes: usize =
        (0..files / FILES_PER_DIRECTORY).map(|directory| format!("{directory}/7").len()).sum();
    assert_eq!(said, format!("{files}\n{bytes}\n31/499"));
    ctr.remove(&ctr.images());
    assert!(consistent_snapshots(&node).is_empty());
}
