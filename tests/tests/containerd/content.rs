//! What was fetched in full is containerd's as well, and other nodes can have it from there.

use std::fs;
use std::path::Path;

use spanfs_layer::Digest;
use spanfs_node::Network;
use spanfs_registry::Registry;

use crate::image::{Image, noise};
use crate::lazy::{assert_lazy, image, pull_by_cri};
use crate::mirror::Mirror;
use crate::node::{CONTAINERD_SOCKET, Node, Setup};
use crate::versions::{Version, on_each_containerd};

on_each_containerd!(
    layers_are_in_the_content_store_once,
    a_second_node_pulls_from_the_first_while_the_registry_is_down,
    blobs_that_are_there_are_not_fetched,
);

const KEEPING: &str = r#"
[content_store]
  type = "containerd"
[pull_modes.parallel_pull_unpack]
  enable = true
  max_concurrent_downloads_per_image = 10
  concurrent_download_chunk_size = "1mb"
  max_concurrent_unpacks_per_image = 4
"#;
const BLOBS: &str = "lib/containerd/io.containerd.content.v1.content/blobs/sha256";

fn fetched(registry: &Registry, image: &Image) -> u64 {
    let of_layer = |layer| -> u64 {
        let (digest, _) = image.blob(layer);
        registry.stats().blob(&digest).iter().map(|range| range.end - range.start).sum()
    };
    (0..3).map(of_layer).sum()
}

fn size(image: &Image) -> u64 {
    (0..3).map(|layer| image.blob(layer).1).sum()
}

/// Bytes of disk below a directory that hold compressed layers.
fn blob_files(directory: &Path) -> usize {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let count = |entry: fs::DirEntry| match entry.file_type().expect("type").is_dir() {
        true => blob_files(&entry.path()),
        false => usize::from(entry.file_name().to_str().is_some_and(|it| it.starts_with("blob"))),
    };
    entries.map(|entry| count(entry.expect("entry"))).sum()
}

fn layers_are_in_the_content_store_once(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let image = image();
    let reference = image.push(&registry, "test/kept", "1");
    let node = Node::start(&Setup { config: KEEPING, ..Setup::of(version) });
    registry.reset_stats();
    pull_by_cri(&node, &reference);
    assert_lazy(&node, 0);
    let (fetched, size) = (fetched(&registry, &image), size(&image));
    assert!(fetched < size + size / 4, "fetched once: {fetched} of {size} bytes");

    let ctr = node.within("k8s.io");
    // A garbage collection finds them in use.
    ctr.collect_garbage();
    for layer in 0..3 {
        let (digest, size) = image.blob(layer);
        let listed = ctr.ctr(&["content", "ls"]);
        let line = listed.lines().find(|line| line.contains(&digest.to_string()));
        let line = line.unwrap_or_else(|| panic!("{digest} is not in\n{listed}"));
        for label in [
            "containerd.io/distribution.source.127.0.0.1=test/kept".to_owned(),
            format!("containerd.io/uncompressed={}", image.diff_id(layer)),
        ] {
            assert!(line.contains(&label), "{label} is not in {line}");
        }
        let file = fs::read(node.path(BLOBS).join(digest.hex().to_string())).expect("a blob");
        assert_eq!((Digest::of(&file), file.len() as u64), (digest, size));
    }
    assert_eq!(blob_files(&node.path("lib/soci-snapshotter-grpc")), 0, "no second copy");
    // Nobody had to send what a link could do.
    let log = node.read_log("daemon");
    assert!(log.contains("\"linked\":true"), "{log}");
    assert!(ctr.ctr(&["leases", "ls"]).lines().all(|line| !line.contains("spanfs-")), "leases");
    ctr.ctr(&["images", "export", "/dev/null", &reference]);
    assert_eq!(ctr.run(&reference, "runs", &[]), "ready\n");

    ctr.remove(&ctr.images());
    ctr.collect_garbage();
    let blobs = fs::read_dir(node.path(BLOBS)).expect("blobs").count();
    assert_eq!(blobs, 0, "they go with the image");
}

/// The registry's port, where only the first node reaches it; the second has mirrors: one that is
/// dead, one that has nothing, and one that has what the first has.
fn a_second_node_pulls_from_the_first_while_the_registry_is_down(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let image = image();
    let reference = image.push(&registry, "test/spread", "1");
    let port = registry.addr().port();
    let setup = Setup { config: KEEPING, network: Network::Own, ..Setup::of(version) };
    let first = Node::start(&setup);
    registry.also_listen(first.listen(port)).expect("a listener");
    pull_by_cri(&first, &reference);

    let second = Node::start(&setup);
    let ports = [30_019, 30_020, 30_021];
    let hosts = second.path("etc/containerd/certs.d").join(format!("127.0.0.1:{port}"));
    fs::create_dir_all(&hosts).expect("directory");
    let mirrors = ports.map(|port| {
        format!("[host.\"http://127.0.0.1:{port}\"]\n  capabilities = [\"pull\", \"resolve\"]\n")
    });
    let server = format!("server = \"http://127.0.0.1:{port}\"\n{}", mirrors.concat());
    fs::write(hosts.join("hosts.toml"), server).expect("write");
    let nothing = Mirror::start(second.listen(ports[1]), None);
    let all = Mirror::start(second.listen(ports[2]), Some(&first.path(CONTAINERD_SOCKET)));
    registry.reset_stats();
    pull_by_cri(&second, &reference);
    assert_lazy(&second, 0);
    assert_eq!(fetched(&registry, &image), 0, "the registry was down");
    let read = ["/bin/sh", "-c", "cat /data/7 /data/23 /app/data | sha256sum"];
    let said = second.within("k8s.io").run(&reference, "reads", &read);
    let content = [noise(7, 1 << 20), noise(23, 1 << 20), b"small".to_vec()].concat();
    assert_eq!(said, format!("{}  -\n", Digest::of(&content).hex()));

    let (large, _) = image.blob(1);
    let asked = all.asked();
    let of_layer: Vec<_> =
        asked.iter().filter(|it| it.path.ends_with(&format!("/blobs/{large}"))).collect();
    assert!(of_layer.iter().filter(|it| it.status == 206).count() > 4, "in ranges: {of_layer:?}");
    let namespace = [format!("ns=127.0.0.1:{port}"), format!("ns=127.0.0.1%3A{port}")];
    assert!(asked.iter().filter(|it| it.path != "/v2/").all(|it| namespace.contains(&it.query)));
    assert!(nothing.asked().iter().any(|it| it.status == 404), "{:?}", nothing.asked());
    // What the second node has now it can pass on in its turn.
    let listed = second.within("k8s.io").ctr(&["content", "ls", "-q"]);
    assert!(listed.contains(&large.to_string()), "{listed}");
}

/// What somebody else has brought into the store need not come again.
fn blobs_that_are_there_are_not_fetched(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let image = image();
    let reference = image.push(&registry, "test/there", "1");
    let node = Node::start(&Setup { config: KEEPING, ..Setup::of(version) });
    let ctr = node.within("k8s.io");
    ctr.ctr(&["content", "fetch", "--plain-http", &reference]);
    registry.reset_stats();
    pull_by_cri(&node, &reference);
    assert_lazy(&node, 0);
    assert_eq!(fetched(&registry, &image), 0, "all of it was there");
    assert_eq!(ctr.run(&reference, "runs", &[]), "ready\n");
}
