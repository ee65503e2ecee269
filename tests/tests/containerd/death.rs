//! The daemon killed in the middle of pulls, runs and removals.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use spanfs_layer::Digest;
use spanfs_registry::Registry;

use crate::cri::Cri;
use crate::image::{Image, Layer, noise};
use crate::node::{Node, Setup};
use crate::own_view::consistent_snapshots;
use crate::process::signal;
use crate::versions::{Version, on_each_containerd, soak};

on_each_containerd!(killed_at_any_moment_it_starts_again, killed_while_layers_are_lazy);

/// Kills of one test; the four together make 50 in a long run.
const KILLS: u64 = 2;
const KILLS_SOAK: u64 = 13;
/// A cycle of pull, run and removal takes about so long here.
const CYCLE: Duration = Duration::from_millis(1500);
/// CRI's: its pulls are lazy on both containerds.
const NAMESPACE: &str = "k8s.io";

fn killed_at_any_moment_it_starts_again(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let reference = image().push(&registry, "test/many", "1");
    kill_and_look(version, &reference);
}

fn killed_while_layers_are_lazy(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let (reference, _) = image().push_indexed_from(&registry, "test/many", "v2", "100K");
    kill_and_look(version, &reference);
}

fn image() -> Image {
    let mut image = Image::with_programs();
    for layer in 0..4 {
        let path = format!("layer{layer}");
        image = image.layer(Layer::new().file(&path, 0o644, &noise(layer, 300_000)));
    }
    image
}

fn kill_and_look(version: Version, image: &str) {
    let node = Node::start(&Setup::of(version));
    let mounts = node.mounts();
    let kills = if soak() { KILLS_SOAK } else { KILLS };
    for round in 0..kills {
        // Every moment of a cycle comes near once; the golden ratio never repeats one.
        let part = (0.3 + round as f64 * 0.618_034).fract();
        let pid = node.daemon_pid();
        let killed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                while cycle(&node, image, round).is_ok() && !killed.load(Ordering::Relaxed) {}
            });
            std::thread::sleep(CYCLE.mul_f64(part));
            assert!(signal(pid, Signal::KILL), "the daemon ended by itself");
            killed.store(true, Ordering::Relaxed);
            // A container that reads waits for the next daemon; it may well end as if nothing were.
            node.stop_daemon(Signal::KILL);
            node.start_daemon();
            worker.join().expect("a cycle fails without panic");
        });
        node.wait_for_reconnection();
        clear(&node);
        consistent_snapshots(&node);
        cycle(&node, image, round).unwrap_or_else(|said| panic!("round {round}: {said}"));
        clear(&node);
        let left = consistent_snapshots(&node);
        assert!(left.is_empty(), "round {round}: {left:?}");
        assert_eq!(node.mounts(), mounts, "round {round}");
    }
}

/// Pull, run, remove; an error where one of them fails.
fn cycle(node: &Node, image: &str, round: u64) -> Result<(), String> {
    let mut cri = Cri::connect(node, "run/containerd/containerd.sock");
    cri.pull(image, None).map_err(|status| status.to_string())?;
    let ctr = node.within(NAMESPACE);
    let script = ["/bin/sh", "-c", "cat /layer* | sha256sum"];
    let said = ctr.try_run(&["--rm"], image, &format!("cycle-{round}"), &script)?;
    let content: Vec<u8> = (0..4).flat_map(|layer| noise(layer, 300_000)).collect();
    if said != format!("{}  -\n", Digest::of(&content).hex()) {
        return Err(format!("the container printed {said:?}"));
    }
    let images = ctr.attempt(&["images", "ls", "-q"])?;
    let images: Vec<_> = images.lines().collect();
    ctr.attempt(&[&["images", "rm", "--sync"], images.as_slice()].concat()).map(drop)
}

/// Removes whatever a cycle has left, as an administrator would.
fn clear(node: &Node) {
    let ctr = node.within(NAMESPACE);
    for task in ctr.ctr(&["tasks", "ls", "-q"]).lines() {
        ctr.ctr(&["tasks", "rm", "--force", task]);
    }
    for container in ctr.ctr(&["containers", "ls", "-q"]).lines() {
        ctr.ctr(&["containers", "rm", container]);
    }
    for image in ctr.images() {
        ctr.ctr(&["images", "rm", &image]);
    }
    for lease in ctr.ctr(&["leases", "ls", "-q"]).lines() {
        ctr.ctr(&["leases", "rm", lease]);
    }
    // An extraction that was cut off is nobody's any more; what has children comes later.
    for _ in 0..10 {
        for snapshot in ctr.snapshots() {
            let _ = ctr.attempt(&["snapshots", "--snapshotter", "soci", "rm", &snapshot]);
        }
    }
    ctr.collect_garbage();
}
