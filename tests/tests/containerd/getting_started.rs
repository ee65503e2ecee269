//! The way through the peer's first pages, with our two programs in place of its own: pull, create,
//! look, push, pull lazily, run; convert, push, pull lazily, run.

use std::fs;

use serde_json::Value;
use spanfs_layer::Digest;
use spanfs_tests::peers::{DockerRegistry, Guarded, ReferrersRegistry, able};

use crate::image::{Image, noise};
use crate::lazy::{assert_lazy, image, pull_by_cri, pull_with_index};
use crate::node::{Node, Setup};
use crate::versions::{Version, on_each_containerd};

on_each_containerd!(with_a_registry_that_knows_referrers, with_a_registry_that_does_not);

/// What is complete has no FUSE mount, so nothing is fetched that nobody reads.
const CONFIG: &str =
    "[pull_modes.soci_v1]\n  enable = true\n[background_fetch]\n  disable = true\n";
/// Two of the image's three layers are larger.
const BUILD: [&str; 4] = ["--min-layer-size", "1000000", "--span-size", "262144"];

fn with_a_registry_that_knows_referrers(version: Version) {
    // Built together with containerd 2.
    if able(&["skopeo"], false)
        && let Some(programs) = Version::Two.programs().filter(|_| Version::Two.is_here())
    {
        getting_started(version, &ReferrersRegistry::start(&programs).address);
    }
}

/// Debian's registry: what refers to an image stands under a tag.
fn with_a_registry_that_does_not(version: Version) {
    if able(&["docker-registry", "skopeo"], false) {
        getting_started(version, &DockerRegistry::start(&Guarded::default()).address);
    }
}

fn getting_started(version: Version, address: &str) {
    let image = image();
    let name = image.push_to(address, "team/app", "1");
    let node = Node::start(&Setup { config: CONFIG, ..Setup::of(version) });
    let said = node.soci(&["--version"]);
    assert!(said.starts_with("soci version v0.15."), "{said}");

    pull_whole(&node, &name);
    let index = create(&node, &image, &name);
    let said = node.soci(&["push", "--plain-http", &name]);
    assert!(said.contains(&format!("pushing soci index with digest: {index}\n")), "{said}");
    forget(&node);
    // Each way to pull that the containerd at hand has for lazy layers.
    node.soci(&["image", "rpull", "--plain-http", &name]);
    run_lazily(&node, &name);
    pull_with_index(&node, &image, &name, &index);
    run_lazily(&node, &name);
    if version == Version::Two {
        node.default().pull(&name);
        run_lazily(&node, &name);
    }
    by_cri(&node, &name);

    let converted = format!("{address}/team/app:1-soci");
    pull_whole(&node, &name);
    node.soci(&[&["convert"], &BUILD[..], &[&name, &converted]].concat());
    node.default().ctr(&["images", "push", "--plain-http", &converted]);
    forget(&node);
    node.soci(&["image", "rpull", "--plain-http", &converted]);
    run_lazily(&node, &converted);
    by_cri(&node, &converted);
}

/// As every image comes without the snapshotter.
fn pull_whole(node: &Node, name: &str) {
    let pull = ["images", "pull", "--plain-http", "--snapshotter", "overlayfs", name];
    node.default().ctr(&pull);
}

/// Makes an index, and looks at it with every command that there is for that. Its digest.
fn create(node: &Node, image: &Image, name: &str) -> String {
    let said = node.soci(&[&["create"], &BUILD[..], &[name]].concat());
    assert_eq!(said.lines().filter(|line| line.contains(" -> ztoc sha256:")).count(), 2, "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("ztoc skipped")).count(), 1, "{said}");
    let index = node.soci(&["index", "list", "-q", "--ref", name]).trim().to_owned();
    let table = node.soci(&["index", "list"]);
    assert!(table.lines().any(|row| row.starts_with(&index) && row.contains(name)), "{table}");
    let info: Value = json(&node.soci(&["index", "info", &index]));
    assert_eq!(info["subject"]["digest"], image.manifest_digest().to_string());
    assert_eq!(info["layers"].as_array().map(Vec::len), Some(2), "{info}");

    let large = image.blob(1).0.to_string();
    let ztocs = node.soci(&["ztoc", "list", "--image-ref", name]);
    assert_eq!(ztocs.lines().count(), 3, "{ztocs}");
    let row = ztocs.lines().find(|row| row.contains(&large)).expect("the large layer's zTOC");
    let ztoc = row.split_whitespace().next().expect("a digest");
    let info: Value = json(&node.soci(&["ztoc", "info", ztoc]));
    assert_eq!((info["version"].as_str(), info["num_files"].as_u64()), (Some("0.9"), Some(25)));
    let file = node.path("tmp/file");
    let output = file.to_str().expect("text");
    node.soci(&["ztoc", "get-file", "--output", output, ztoc, "data/7"]);
    assert_eq!(Digest::of(&fs::read(&file).expect("the file")), Digest::of(&noise(7, 1 << 20)));
    index
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn run_lazily(node: &Node, name: &str) {
    assert_lazy(node, 2);
    let ctr = node.default();
    let script = ["/bin/sh", "-c", "echo ready; cat /data/9 /app/data | sha256sum"];
    let digest = Digest::of(&[noise(9, 1 << 20), b"small".to_vec()].concat());
    assert_eq!(ctr.run(name, "app", &script), format!("ready\n{}  -\n", digest.hex()));
    // As the pages of old releases have it.
    let container = node.named("old");
    let group = format!("/{container}");
    assert_eq!(node.soci(&["run", "--rm", "--cgroup", &group, name, &container]), "ready\n");
    forget(node);
    assert_lazy(node, 0);
}

fn by_cri(node: &Node, name: &str) {
    pull_by_cri(node, name);
    assert_lazy(node, 2);
    let ctr = node.within("k8s.io");
    assert_eq!(ctr.run(name, "pod", &[]), "ready\n");
    ctr.remove(&ctr.images());
    assert_lazy(node, 0);
}

/// Removes all images, and with them their layers.
fn forget(node: &Node) {
    let ctr = node.default();
    for lease in ctr.ctr(&["leases", "ls", "-q"]).lines() {
        ctr.ctr(&["leases", "rm", lease]);
    }
    let images = ctr.images();
    if !images.is_empty() {
        ctr.remove(&images);
    }
    ctr.collect_garbage();
}
