//! The daemon stopped and started while its layers are mounted.

use rustix::process::Signal;
use spanfs_layer::Digest;
use spanfs_registry::Registry;

use crate::image::noise;
use crate::lazy::{assert_lazy, image, pull_by_cri};
use crate::node::{Node, Setup};
use crate::versions::{Version, on_each_containerd};

on_each_containerd!(layers_come_back_without_the_registry);

fn layers_come_back_without_the_registry(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let (reference, _) = image().push_indexed(&registry, "test/restart", "v2");
    let config = "[background_fetch]\n  disable = true\n";
    let node = Node::start(&Setup { config, ..Setup::of(version) });
    pull_by_cri(&node, &reference);
    assert_lazy(&node, 2);
    let script = ["/bin/sh", "-c", "cat /data/3 /data/4 /app/data | sha256sum"];
    let content = [noise(3, 1 << 20), noise(4, 1 << 20), b"small".to_vec()].concat();
    let expected = format!("{}  -\n", Digest::of(&content).hex());
    assert_eq!(node.within("k8s.io").run(&reference, "before", &script), expected);
    // A container that was made before, and starts afterwards.
    let prepared = node.named("prepared");
    let make = ["containers", "create", "--snapshotter", "soci", &reference, &prepared];
    node.within("k8s.io").ctr(&[&make[..], &["/bin/cat", "/app/data"]].concat());

    drop(registry);
    for (number, signal) in [Signal::TERM, Signal::KILL, Signal::INT].into_iter().enumerate() {
        node.stop_daemon(signal);
        node.start_daemon();
        node.wait_for_reconnection();
        let ctr = node.within("k8s.io");
        let said = ctr.run(&reference, &format!("after-{number}"), &script);
        assert_eq!(said, expected, "after {signal:?}");
    }
    let ctr = node.within("k8s.io");
    assert_eq!(ctr.ctr(&["tasks", "start", &prepared]), "small", "the one made before");
    ctr.ctr(&["containers", "rm", &prepared]);
    ctr.remove(&ctr.images());
    assert_lazy(&node, 0);
    assert!(node.directories().is_empty(), "{:?}", node.directories());
}
