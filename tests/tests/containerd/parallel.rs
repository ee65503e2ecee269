//! The mode that fetches whole layers itself, several ranges and layers at once.

use spanfs_layer::Digest;
use spanfs_registry::Registry;
use spanfs_tests::peers::able;

use crate::image::noise;
use crate::lazy::{assert_lazy, image, pull_by_cri};
use crate::node::{Node, Setup};
use crate::own_view::consistent_snapshots;
use crate::versions::{Version, on_each_containerd};

on_each_containerd!(
    whole_layers_come_without_containerd,
    an_image_without_an_index_comes_whole_where_lazy_is_the_rule,
    unpigz_decompresses,
);

const PARALLEL: &str = r#"
[pull_modes.soci_v1]
  enable = false
[pull_modes.soci_v2]
  enable = false
[pull_modes.parallel_pull_unpack]
  enable = true
  max_concurrent_downloads_per_image = 10
  concurrent_download_chunk_size = "1mb"
  max_concurrent_unpacks_per_image = 4
  discard_unpacked_layers = true
"#;

fn whole_layers_come_without_containerd(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let image = image();
    let reference = image.push(&registry, "test/whole", "1");
    let (large, size) = image.blob(1);
    let node = Node::start(&Setup { config: PARALLEL, ..Setup::of(version) });
    let mounts = node.mounts();
    registry.reset_stats();
    pull_by_cri(&node, &reference);
    assert_lazy(&node, 0);
    let ranges = registry.stats().blob(&large).to_vec();
    let fetched: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    assert!(ranges.len() > 4, "in ranges: {ranges:?}");
    assert!(fetched < size + size / 4, "once, and by us alone: {fetched} of {size} bytes");

    let ctr = node.within("k8s.io");
    let read = ["/bin/sh", "-c", "cat /data/* /app/data | sha256sum"];
    let said = ctr.run(&reference, "reads", &read);
    // In the order of a shell's pattern.
    let mut names: Vec<_> = (0..24).map(|file: u64| (file.to_string(), file)).collect();
    names.sort();
    let files = names.iter().flat_map(|(_, file)| noise(*file, 1 << 20));
    let content: Vec<u8> = files.chain(*b"small").collect();
    assert_eq!(said, format!("{}  -\n", Digest::of(&content).hex()));
    ctr.remove(&ctr.images());
    assert_eq!(node.mounts(), mounts);
    assert!(consistent_snapshots(&node).is_empty());
}

const FALLBACK: &str = r#"
[content_store]
  type = "containerd"
[pull_modes.parallel_pull_unpack]
  enable = false
  experimental_parallel_pull_as_fallback = true
  max_concurrent_downloads_per_image = 10
  concurrent_download_chunk_size = "1mb"
"#;

fn an_image_without_an_index_comes_whole_where_lazy_is_the_rule(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let image = image();
    let plain = image.push(&registry, "test/plain", "1");
    let (indexed, _) = image.push_indexed(&registry, "test/indexed", "v2");
    let (large, size) = image.blob(1);
    let node = Node::start(&Setup { config: FALLBACK, ..Setup::of(version) });
    let ctr = node.within("k8s.io");
    registry.reset_stats();
    pull_by_cri(&node, &plain);
    assert_lazy(&node, 0);
    let ranges = registry.stats().blob(&large).to_vec();
    let fetched: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    assert!(ranges.len() > 4, "in ranges: {ranges:?}");
    assert!(fetched < size + size / 4, "once, and by us alone: {fetched} of {size} bytes");
    assert!(ctr.ctr(&["content", "ls", "-q"]).contains(&large.to_string()), "the blob is kept");
    assert_eq!(ctr.run(&plain, "plain", &[]), "ready\n");
    // From nothing again, as its layers are those of the other.
    ctr.remove(&ctr.images());
    assert!(consistent_snapshots(&node).is_empty());
    pull_by_cri(&node, &indexed);
    assert_lazy(&node, 2);
    assert_eq!(ctr.run(&indexed, "indexed", &[]), "ready\n");
}

/// As the peer's documentation has it.
fn unpigz_decompresses(version: Version) {
    if !able(&["unpigz"], true) {
        return;
    }
    let config = format!(
        "{PARALLEL}\n[pull_modes.parallel_pull_unpack.decompress_streams.gzip]\n  \
         path = \"/usr/bin/unpigz\"\n  args = [\"-d\", \"-c\"]\n"
    );
    let registry = Registry::builder().start().expect("a registry");
    let image = image();
    let reference = image.push(&registry, "test/pigz", "1");
    let node = Node::start(&Setup { config: &config, ..Setup::of(version) });
    pull_by_cri(&node, &reference);
    assert_lazy(&node, 0);
    let read = ["/bin/sh", "-c", "cat /data/7 /data/23 /app/data | sha256sum"];
    let said = node.within("k8s.io").run(&reference, "reads", &read);
    let content = [noise(7, 1 << 20), noise(23, 1 << 20), b"small".to_vec()].concat();
    assert_eq!(said, format!("{}  -\n", Digest::of(&content).hex()));
    let by = "it was decompressed by /usr/bin/";
    let log = node.read_log("daemon");
    assert_eq!(log.matches(by).count(), image.layers(), "{log}");
}
