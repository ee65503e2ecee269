//! Lazy now, whole soon: images that started lazily end in containerd's content store.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use spanfs_layer::Digest;
use spanfs_registry::{Link, Registry};

use crate::ctr::Ctr;
use crate::image::{Image, noise};
use crate::lazy::{V1_ONLY, assert_lazy, image, pull_by_cri};
use crate::node::{Node, PATIENCE, Setup};
use crate::process::wait_for;
use crate::versions::{Version, on_each_containerd};

on_each_containerd!(
    what_started_lazily_can_be_exported_and_was_fetched_once,
    a_killed_daemon_leaves_blobs_to_the_next_one,
    an_image_removed_in_the_middle_leaves_nothing,
    what_is_complete_stays_where_containerd_discards_layers,
);

const WHOLE_SOON: &str = r#"
[content_store]
  type = "containerd"
[spanfs]
  complete_blobs = true
"#;
const CONTENT: &str = "lib/containerd/io.containerd.content.v1.content";
const CACHE: &str = "lib/soci-snapshotter-grpc/spanfs/cache/layers/sha256";
/// The large layer takes 6 s.
const SLOW: Link = Link { bytes_per_second: Some(4 << 20), ..Link::UNLIMITED };

/// A node, and the registry with an image whose zTOCs cut it into spans of 256 KiB.
///
/// 1.6 pulls only one manifest of an index, so that it can't export an image with a SOCI index inside,
/// however its layers came: there the index is a referrer.
fn start(version: Version, repository: &str, link: Link) -> (Node, Registry, Image, String) {
    start_at(Setup::of(version), repository, link)
}

fn start_at(setup: Setup<'_>, repository: &str, link: Link) -> (Node, Registry, Image, String) {
    let version = setup.version;
    let (registry, image) = (Registry::builder().start().expect("a registry"), image());
    let (format, mode) = match version {
        Version::One => ("v1", V1_ONLY),
        Version::Two => ("v2", ""),
    };
    let (reference, _) = image.push_indexed(&registry, repository, format);
    registry.reset_stats();
    registry.set_link(link);
    let config = format!("{WHOLE_SOON}{mode}");
    let node = Node::start(&Setup { config: &config, ..setup });
    pull_by_cri(&node, &reference);
    (node, registry, image, reference)
}

fn wait_for_blobs(ctr: &Ctr<'_>, image: &Image) -> String {
    wait_for("all blobs", PATIENCE, || {
        let listed = ctr.ctr(&["content", "ls"]);
        let has = |layer| line(&listed, &image.blob(layer).0).is_some();
        (0..image.layers()).all(has).then_some(listed)
    })
}

/// What containerd's list of its content says of a blob; labels of others name it as well.
fn line<'l>(listed: &'l str, blob: &Digest) -> Option<&'l str> {
    let name = blob.to_string();
    listed.lines().find(|line| line.starts_with(&name))
}

fn fetched(registry: &Registry, layer: &Digest) -> u64 {
    registry.stats().blob(layer).iter().map(|range| range.end - range.start).sum()
}

/// Names of what is below a directory of the node that has names of digests.
fn entries(node: &Node, path: &str) -> Vec<String> {
    let entries = fs::read_dir(node.path(path)).into_iter().flatten();
    entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect()
}

/// No layer of the cache has its compressed bytes beside it.
fn has_second_copies(node: &Node) -> bool {
    entries(node, CACHE)
        .iter()
        .any(|layer| node.path(CACHE).join(layer).join("compressed").exists())
}

fn what_started_lazily_can_be_exported_and_was_fetched_once(version: Version) {
    let (node, registry, image, reference) = start(version, "test/soon", Link::UNLIMITED);
    assert_lazy(&node, 2);
    let ctr = node.within("k8s.io");
    assert_eq!(ctr.run(&reference, "runs", &[]), "ready\n");
    let listed = wait_for_blobs(&ctr, &image);
    for layer in 0..image.layers() {
        let (digest, size) = image.blob(layer);
        let line = line(&listed, &digest).expect("it was waited for");
        for label in [
            "containerd.io/distribution.source.127.0.0.1=test/soon".to_owned(),
            format!("containerd.io/uncompressed={}", image.diff_id(layer)),
        ] {
            assert!(line.contains(&label), "{label} is not in {line}");
        }
        let name = digest.hex().to_string();
        let file = fs::read(node.path(CONTENT).join("blobs/sha256").join(name)).expect("a blob");
        assert_eq!((Digest::of(&file), file.len() as u64), (digest, size));
        // Neighbouring spans share a byte, and no other comes twice.
        let requests = registry.stats().blob(&digest).len() as u64;
        let again = registry.stats().refetched_bytes(&digest);
        assert!(again <= requests, "{again} bytes of layer {layer} came twice, in {requests}");
    }
    wait_for("the end of second copies", PATIENCE, || (!has_second_copies(&node)).then_some(()));
    let log = node.read_log("daemon");
    assert!(log.contains("\"linked\":true"), "{log}");
    ctr.collect_garbage();
    ctr.ctr(&["images", "export", "/dev/null", &reference]);
    assert!(ctr.ctr(&["leases", "ls"]).lines().all(|line| !line.contains("spanfs-")), "leases");

    // What is there need not come again, for this image or another of the same layers.
    registry.reset_stats();
    node.stop_daemon(Signal::TERM);
    node.start_daemon();
    node.wait_for_reconnection();
    std::thread::sleep(Duration::from_secs(1));
    let again: u64 = (0..3).map(|layer| fetched(&registry, &image.blob(layer).0)).sum();
    assert_eq!(again, 0, "a start fetches nothing of a complete image");
    ctr.remove(&ctr.images());
    ctr.collect_garbage();
    let left = entries(&node, &format!("{CONTENT}/blobs/sha256"));
    assert!(left.is_empty(), "{left:?} stay behind the image");
}

fn a_killed_daemon_leaves_blobs_to_the_next_one(version: Version) {
    let (node, registry, image, reference) = start(version, "test/killed", SLOW);
    let (large, size) = image.blob(1);
    wait_for("half of the layer", PATIENCE, || {
        (fetched(&registry, &large) > size / 2).then_some(())
    });
    node.stop_daemon(Signal::KILL);
    let before = fetched(&registry, &large);
    registry.set_link(Link::UNLIMITED);
    node.start_daemon();
    node.wait_for_reconnection();
    let ctr = node.within("k8s.io");
    wait_for_blobs(&ctr, &image);
    // What was on its way when the daemon died comes again: some spans, and connections' buffers.
    let again = registry.stats().refetched_bytes(&large);
    assert!(before > size / 2 && again < size / 4, "{again} of {before} bytes came twice");
    ctr.ctr(&["images", "export", "/dev/null", &reference]);
    let read = ["/bin/sh", "-c", "cat /data/7 /data/23 /app/data | sha256sum"];
    let content = [noise(7, 1 << 20), noise(23, 1 << 20), b"small".to_vec()].concat();
    let said = ctr.run(&reference, "reads", &read);
    assert_eq!(said, format!("{}  -\n", Digest::of(&content).hex()));
}

fn an_image_removed_in_the_middle_leaves_nothing(version: Version) {
    let (node, registry, image, _) = start(version, "test/removed", SLOW);
    let (large, size) = image.blob(1);
    wait_for("a part of the layer", PATIENCE, || {
        (fetched(&registry, &large) > size / 4).then_some(())
    });
    let ctr = node.within("k8s.io");
    assert_eq!(line(&ctr.ctr(&["content", "ls"]), &large), None, "it was there already");
    ctr.remove(&ctr.images());
    registry.set_link(Link::UNLIMITED);
    wait_for("the end of all layers", PATIENCE, || entries(&node, CACHE).is_empty().then_some(()));
    let fetched_then = fetched(&registry, &large);
    // Long enough for whoever should still be at it.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(fetched(&registry, &large), fetched_then, "somebody still fetches");
    for left in [&format!("{CONTENT}/blobs/sha256"), &format!("{CONTENT}/ingest"), CACHE] {
        assert!(entries(&node, left).is_empty(), "{left}: {:?}", entries(&node, left));
    }
    assert_lazy(&node, 0);
    assert!(ctr.ctr(&["leases", "ls"]).lines().all(|line| !line.contains("spanfs-")), "leases");
}

/// CRI's `discard_unpacked_layers` is for layers that containerd fetched: the settings want these.
fn what_is_complete_stays_where_containerd_discards_layers(version: Version) {
    let setup = Setup { discards: true, ..Setup::of(version) };
    let (node, _registry, image, _) = start_at(setup, "test/discards", Link::UNLIMITED);
    let ctr = node.within("k8s.io");
    wait_for_blobs(&ctr, &image);
    wait_for("the end of second copies", PATIENCE, || (!has_second_copies(&node)).then_some(()));
    for _ in 0..2 {
        ctr.collect_garbage();
        let listed = ctr.ctr(&["content", "ls"]);
        for layer in 0..image.layers() {
            let digest = image.blob(layer).0;
            assert!(line(&listed, &digest).is_some(), "layer {layer}, {digest}, in {listed}");
        }
    }
    ctr.remove(&ctr.images());
    ctr.collect_garbage();
    let left = entries(&node, &format!("{CONTENT}/blobs/sha256"));
    assert!(left.is_empty(), "{left:?} stay behind the image");
}
