//! Images with a SOCI index: containers start before their layers are there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use spanfs_layer::Digest;
use spanfs_registry::{Fault, Faults, Link, Nth, Registry, Rule};
use spanfs_tests::peers::{DockerRegistry, Guarded, ReferrersRegistry, able};

use crate::cri::Cri;
use crate::ctr::LEASE;
use crate::image::{Image, Layer, noise};
use crate::node::{Node, Setup};
use crate::versions::{Version, on_each_containerd};

on_each_containerd!(
    changes_on_lazy_layers_come_back,
    container_starts_before_its_layer_is_there,
    image_that_comes_back_is_lazy_again,
    index_of_version_1_is_found_by_referrers,
    index_of_version_1_is_found_by_tag,
    index_is_named_by_a_label,
    what_comes_whole_does_not_wait_for_ztocs,
);

/// Files of a mebibyte each that nobody reads at once.
pub(crate) const FILES: u64 = 24;
pub(crate) const V1_ONLY: &str =
    "[pull_modes.soci_v1]\n  enable = true\n[pull_modes.soci_v2]\n  enable = false\n";
pub(crate) const REMOTE: &str = "containerd.io/snapshot/remote";

/// Programs, a layer that is large, and a small one on top. All are over the index's minimum but the
/// last.
pub(crate) fn image() -> Image {
    let mut large = Layer::new().directory("data");
    for file in 0..FILES {
        large = large.file(&format!("data/{file}"), 0o644, &noise(file, 1 << 20));
    }
    Image::with_programs()
        .layer(large)
        .layer(Layer::new().directory("app").file("app/data", 0o644, b"small"))
}

/// An image for CRI's sandboxes.
pub(crate) fn pause(registry: &Registry) -> String {
    let image = Image::with_programs().command(&["/bin/sleep", "1000000"]);
    image.push(registry, "test/pause", "1")
}

/// Pulls through CRI, which is how both containerds pull lazily; the image is in `k8s.io` then.
pub(crate) fn pull_by_cri(node: &Node, image: &str) {
    let mut cri = Cri::connect(node, "run/containerd/containerd.sock");
    cri.pull(image, None).unwrap_or_else(|status| panic!("pulling {image}: {status}"));
}

/// Mounts of layers that come on demand.
#[track_caller]
pub(crate) fn assert_lazy(node: &Node, count: usize) {
    let mounts = node.mounts();
    let fuse: Vec<_> = mounts.iter().filter(|(_, kind, _)| kind == "fuse.rawBridge").collect();
    assert_eq!(fuse.len(), count, "lazy layers in {mounts:?}");
    assert!(fuse.iter().all(|(.., source)| source == "soci"), "{fuse:?}");
}

fn container_starts_before_its_layer_is_there(version: Version) {
    // 24 MB take 10 s on this link.
    let registry = Registry::builder().start().expect("a registry");
    let image = image();
    let (reference, _) = image.push_indexed(&registry, "test/lazy", "v2");
    let pause = pause(&registry);
    let (large, size) = image.blob(1);
    registry.set_link(Link { bytes_per_second: Some(2_500_000), ..Link::UNLIMITED });
    registry.reset_stats();
    let node = Node::start(&Setup { sandbox: &pause, ..Setup::of(version) });
    let before = node.mounts();
    pull_by_cri(&node, &reference);
    assert_lazy(&node, 2);
    let ctr = node.within("k8s.io");
    assert_eq!(ctr.run(&reference, "first", &[]), "ready\n");
    let fetched: u64 =
        registry.stats().blob(&large).iter().map(|range| range.end - range.start).sum();
    assert!(fetched < size / 2, "{fetched} of {size} bytes were fetched before the first line");

    let labels = ctr.snapshot(&image.chain(1));
    assert!(labels.contains(REMOTE), "{labels}");
    // Everything reads right, whatever was fetched when.
    registry.set_link(Link::UNLIMITED);
    let read = ["/bin/sh", "-c", "cat /data/7 /data/23 /app/data | sha256sum"];
    let said = ctr.run(&reference, "reads", &read);
    let content = [noise(7, 1 << 20), noise(23, 1 << 20), b"small".to_vec()].concat();
    assert_eq!(said, format!("{}  -\n", Digest::of(&content).hex()));

    ctr.remove(&ctr.images());
    assert_eq!(node.mounts(), before, "every mount is gone with the image");
    assert!(node.directories().is_empty(), "{:?}", node.directories());
}

/// What was known of an image is still known when it is pulled again; its zTOCs went with it.
fn image_that_comes_back_is_lazy_again(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let (reference, _) = image().push_indexed(&registry, "test/again", "v2");
    let node = Node::start(&Setup::of(version));
    for _ in 0..2 {
        pull_by_cri(&node, &reference);
        assert_lazy(&node, 2);
        let ctr = node.within("k8s.io");
        ctr.remove(&ctr.images());
        assert_lazy(&node, 0);
    }
}

/// The index is one that containerd itself does not fetch.
fn what_comes_whole_does_not_wait_for_ztocs(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let image = image();
    let (reference, index) = image.push_indexed(&registry, "test/early", "v1");
    let index = registry.manifest("test/early", &index).expect("the index");
    let index: serde_json::Value = serde_json::from_slice(&index).expect("JSON");
    let ztocs = index["layers"].as_array().expect("zTOCs").iter();
    let stalled = ztocs.filter_map(|ztoc| {
        Some(Rule::get(ztoc["digest"].as_str()?, Nth::Every, Fault::Stall { after: 0 }))
    });
    registry.set_faults(Faults::script(stalled));
    let (small, _) = image.blob(2);
    let node = Node::start(&Setup { config: V1_ONLY, ..Setup::of(version) });
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while registry.stats().blob(&small).is_empty() && !is_over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
            registry.set_faults(Faults::none());
        });
        pull_by_cri(&node, &reference);
        is_over.store(true, Ordering::Relaxed);
    });
    assert_lazy(&node, 2);
}

/// A container's changes as a layer on layers that were never fetched, pushed to where these are.
fn changes_on_lazy_layers_come_back(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let base = image();
    let (reference, _) = base.push_indexed(&registry, "test/lazy", "v2");
    let changed = registry.reference("test/lazy", "changed");
    let node = Node::start(&Setup::of(version));
    pull_by_cri(&node, &reference);
    assert_lazy(&node, 2);
    let ctr = node.within("k8s.io");
    let script = "echo new > /app/new; echo more >> /data/3; rm /data/4; mv /app/data /app/moved";
    ctr.try_run(&[], &reference, "changes", &["/bin/sh", "-c", script]).expect("it runs");
    let image = ctr.commit("changes", &base, &changed);
    if version == Version::One {
        // As nerdctl does: its push looks at every blob, also at those that are there already.
        ctr.ctr(&["content", "fetch", "--plain-http", &reference]);
    }
    ctr.ctr(&["images", "push", "--plain-http", &changed]);
    ctr.ctr(&["containers", "rm", &node.named("changes")]);
    ctr.remove(&ctr.images());
    assert_lazy(&node, 0);

    pull_by_cri(&node, &changed);
    assert_eq!(image.layers(), 4);
    let script = "cat /app/new /app/moved; sha256sum /data/3; ls /app; ls /data | wc -l";
    let said = ctr.run(&changed, "looks", &["/bin/sh", "-c", script]);
    let digest = Digest::of(&[noise(3, 1 << 20), b"more\n".to_vec()].concat());
    let hex = digest.hex();
    assert_eq!(said, format!("new\nsmall{hex}  /data/3\nmoved\nnew\n23\n"));
}

/// Debian's registry lacks the referrers API: the index is found by the fall-back tag.
fn index_of_version_1_is_found_by_tag(version: Version) {
    if able(&["docker-registry", "skopeo"], false) {
        let registry = DockerRegistry::start(&Guarded::default());
        run_with_version_1(version, &registry.address);
    }
}

fn index_of_version_1_is_found_by_referrers(version: Version) {
    // Built together with containerd 2.
    if able(&["skopeo"], false)
        && let Some(programs) = Version::Two.programs().filter(|_| Version::Two.is_here())
    {
        run_with_version_1(version, &ReferrersRegistry::start(&programs).address);
    }
}

fn run_with_version_1(version: Version, address: &str) {
    let reference = image().push_indexed_to(address, "test/old", "v1");
    let node = Node::start(&Setup { config: V1_ONLY, ..Setup::of(version) });
    pull_by_cri(&node, &reference);
    assert_lazy(&node, 2);
    assert_eq!(node.within("k8s.io").run(&reference, "first", &[]), "ready\n");
}

/// What nerdctl and `soci image rpull` do with an index that is named: labels of their own beside
/// containerd's, on each extraction.
fn index_is_named_by_a_label(version: Version) {
    let registry = Registry::builder().without_referrers().start().expect("a registry");
    let image = image();
    let (reference, index) = image.push_indexed(&registry, "test/named", "v1");
    // Nothing but the label says which index it is: the registry has lost its list of referrers.
    let manifest = image.manifest_digest();
    let list = manifest.to_string().replace(':', "-");
    let empty = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let media_type = "application/vnd.oci.image.index.v1+json";
    registry.put_manifest("test/named", Some(&list), media_type, &empty[..]).expect("a manifest");

    let node = Node::start(&Setup { config: V1_ONLY, ..Setup::of(version) });
    pull_with_index(&node, &image, &reference, &index.to_string());
    assert_lazy(&node, 2);
    assert_eq!(node.default().run(&reference, "first", &[]), "ready\n");
}

/// What nerdctl's own pull does, in the namespace `default`, with an index that its user names.
pub(crate) fn pull_with_index(node: &Node, image: &Image, reference: &str, index: &str) {
    let ctr = node.default();
    let manifest = image.manifest_digest();
    ctr.ctr(&["leases", "create", "--id", LEASE]);
    ctr.ctr(&["content", "fetch", "--plain-http", reference]);
    let layers: Vec<_> = (0..3).map(|layer| image.blob(layer)).collect();
    let list = |from: usize, of: fn(&(Digest, u64)) -> String| {
        layers[from..].iter().map(of).collect::<Vec<_>>().join(",")
    };
    for (position, (digest, size)) in layers.iter().enumerate() {
        let chain = image.chain(position);
        let parent = position.checked_sub(1).map(|below| image.chain(below)).unwrap_or_default();
        let name = |label: &str, value: String| (format!("containerd.io/snapshot{label}"), value);
        let labels = [
            name(".ref", chain.clone()),
            name("/cri.image-ref", reference.to_owned()),
            name("/cri.manifest-digest", manifest.to_string()),
            name("/cri.layer-digest", digest.to_string()),
            name("/cri.image-layers", list(position, |(digest, _)| digest.to_string())),
            name("/remote/image.layers.size", list(position, |(_, size)| size.to_string())),
            name("/remote/soci.size", size.to_string()),
            name("/remote/soci.index.digest", index.to_string()),
        ];
        ctr.prepare_layer(&format!("extract-1-{position} {chain}"), &parent, &labels);
    }
}

/// What the node uses once the start set of what was pulled has come, and what can be made anew is on the
/// disk, which is brought there a second later.
fn settled_disk(node: &Node) -> u64 {
    let mut used = node.disk_used();
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(2500));
        let before = std::mem::replace(&mut used, node.disk_used());
        if used == before {
            return used;
        }
    }
    panic!("the disk is still written to: {used} bytes");
}

/// The same layers for two namespaces are one lazy mount each, and stay for one when they go for the
/// other.
/// (On 2.3 alone: the `ctr` of 1.6 sends no labels, so its namespaces unpack, each for itself.)
#[test]
fn two_namespaces_share_layers() {
    if !Version::Two.is_here() {
        return;
    }
    let registry = Registry::builder().start().expect("a registry");
    let (reference, _) = image().push_indexed(&registry, "test/shared", "v2");
    let config = "[background_fetch]\n  disable = true\n";
    let node = Node::start(&Setup { config, ..Setup::of(Version::Two) });
    let (first, second) = (node.default(), node.within("other"));
    first.pull(&reference);
    assert_lazy(&node, 2);
    let disk = settled_disk(&node);
    second.pull(&reference);
    assert_lazy(&node, 2);
    let more = settled_disk(&node).saturating_sub(disk);
    assert!(more < 1 << 20, "{more} bytes of disk more for the second namespace");
    assert_eq!(second.run(&reference, "second", &[]), "ready\n");
    first.remove(&[&reference]);
    assert_lazy(&node, 2);
    assert_eq!(second.run(&reference, "third", &[]), "ready\n");
    second.remove(&[&reference]);
    assert_lazy(&node, 0);
    assert!(node.directories().is_empty(), "{:?}", node.directories());
}
