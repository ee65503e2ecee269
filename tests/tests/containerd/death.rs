//! The daemon killed in the middle of pulls, runs and removals.

use std::time::Duration;

use rustix::process::Signal;
use spanfs_registry::Registry;

use crate::image::{Image, Layer, noise};
use crate::node::{Node, Setup};
use crate::own_view::consistent_snapshots;
use crate::process::signal;
use crate::versions::{Version, on_each_containerd, soak};

on_each_containerd!(killed_at_any_moment_it_starts_again);

/// Kills of one test; with the other containerd's, 50 in a long run.
const KILLS: u64 = 3;
const KILLS_SOAK: u64 = 25;
/// A cycle of pull, run and removal takes about so long here.
const CYCLE: Duration = Duration::from_millis(1500);

fn killed_at_any_moment_it_starts_again(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let mut image = Image::with_programs();
    for layer in 0..4 {
        let path = format!("layer{layer}");
        image = image.layer(Layer::new().file(&path, 0o644, &noise(layer, 300_000)));
    }
    let image = image.push(&registry, "test/many", "1");
    let mut node = Node::start(&Setup::of(version));
    let mounts = node.mounts();

    let kills = if soak() { KILLS_SOAK } else { KILLS };
    for round in 0..kills {
        // Every moment of a cycle comes near once; the golden ratio never repeats one.
        let part = (round as f64 * 0.618_034).fract();
        let pid = node.daemon_pid();
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| while cycle(&node, &image, round).is_ok() {});
            std::thread::sleep(CYCLE.mul_f64(part));
            assert!(signal(pid, Signal::KILL), "the daemon ended by itself");
            worker.join().expect("a cycle fails without panic");
        });
        node.stop_daemon(Signal::KILL);
        node.start_daemon();
        node.wait_for_reconnection();
        clear(&node);
        consistent_snapshots(&node);
        cycle(&node, &image, round).unwrap_or_else(|said| panic!("round {round}: {said}"));
        clear(&node);
        let left = consistent_snapshots(&node);
        assert!(left.is_empty(), "round {round}: {left:?}");
        assert_eq!(node.mounts(), mounts, "round {round}");
    }
}

/// Pull, run, remove; an error where one of them fails.
fn cycle(node: &Node, image: &str, round: u64) -> Result<(), String> {
    node.try_ctr(&["images", "pull", "--plain-http", "--snapshotter", "soci", image])?;
    let name = node.named(&format!("cycle-{round}"));
    let group = format!("/{name}");
    let run = ["run", "--rm", "--snapshotter", "soci", "--cgroup", &group, image, &name];
    let said = node.try_ctr(&run)?;
    if said != "ready\n" {
        return Err(format!("the container printed {said:?}"));
    }
    node.try_ctr(&["images", "rm", "--sync", image]).map(drop)
}

/// Removes whatever a cycle has left, as an administrator would.
fn clear(node: &Node) {
    for task in node.ctr(&["tasks", "ls", "-q"]).lines() {
        node.ctr(&["tasks", "rm", "--force", task]);
    }
    for container in node.ctr(&["containers", "ls", "-q"]).lines() {
        node.ctr(&["containers", "rm", container]);
    }
    for image in node.ctr(&["images", "ls", "-q"]).lines() {
        node.ctr(&["images", "rm", image]);
    }
    for lease in node.ctr(&["leases", "ls", "-q"]).lines() {
        node.ctr(&["leases", "rm", lease]);
    }
    // An extraction that was cut off is nobody's any more; what has children comes later.
    for _ in 0..10 {
        for snapshot in node.snapshots() {
            let _ = node.try_ctr(&["snapshots", "--snapshotter", "soci", "rm", &snapshot]);
        }
    }
    // A lease's removal runs the garbage collector.
    node.ctr(&["leases", "create", "--id", "clear"]);
    node.ctr(&["leases", "rm", "--sync", "clear"]);
}
