//! Layers that containerd need not unpack, with real mounts and a registry in this process.

use std::fs;
use std::path::Path;

use spanfs_registry::Registry;

use crate::node::Node;
use crate::pull::{Containerd, Image, REMOTE, Rootfs, can_mount, image, mounts_below};

/// Takes away what a failed test leaves mounted.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for (at, _) in mounts_below(self.path()).iter().rev() {
            let _ = std::process::Command::new("umount").arg("-l").arg(at).output();
        }
    }
}

async fn start(root: &Path, namespace: &'static str) -> (Node, Containerd) {
    let mut node = Node::start(root);
    let client = node.connect().await;
    (node, Containerd::new(client, namespace))
}

fn count(root: &Path, fs_type: &str) -> usize {
    mounts_below(root).iter().filter(|(_, found)| found == fs_type).count()
}

/// Every file of the image has the content and mode that its layers say.
fn check_tree(root: &Path, image: &str) {
    let text = fs::read_to_string(crate::pull::layout(".").join("tree.jsonl")).unwrap();
    let mut files = 0;
    for line in text.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        let path = root.join(entry["path"].as_str().unwrap().trim_start_matches('/'));
        let found = fs::symlink_metadata(&path);
        let found = found.unwrap_or_else(|error| panic!("{image}: {}: {error}", path.display()));
        if let Some(sha256) = entry["sha256"].as_str().filter(|_| found.is_file()) {
            let digest = spanfs_layer::Digest::of(&fs::read(&path).unwrap());
            assert_eq!(digest.hex().to_string(), sha256, "{image}: {}", path.display());
            files += 1;
        }
    }
    assert!(files > 3, "{image}: {files} files were compared");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_run_and_removed_without_unpacking() {
    if !can_mount() {
        return;
    }
    let root = Root::new();
    let registry = Registry::builder().start().unwrap();
    let image = image(&registry, "v2");
    let (node, mut containerd) = start(root.path(), "default").await;
    let top = containerd.pull(&image).await;
    assert_eq!(top, image.layers.last().unwrap().chain, "named as the peer names it");
    assert_eq!(count(root.path(), "fuse.rawBridge"), 3, "one a layer, as nerdctl's suite counts");
    assert_eq!(count(root.path(), "erofs"), 3);
    let labels = containerd.stat(&top).await.labels;
    assert_eq!(labels[REMOTE], "remote snapshot");
    assert_eq!(labels["containerd.io/snapshot/remote/namespace"], "default");
    assert!(containerd.usage(&top).await.size > 0);

    let (_, mount) = containerd.container(&top).await;
    assert_eq!(mount.r#type, "overlay");
    let rootfs = Rootfs::mount(&mount, &root.path().join("rootfs"));
    check_tree(&rootfs.0, "v2");
    assert!(rootfs.run(&["/bin/ready"]).contains("ready"));
    fs::write(rootfs.0.join("bin/mine"), "mine").unwrap();
    drop(rootfs);

    containerd.collect_garbage().await;
    assert_eq!(mounts_below(root.path()), []);
    let state = root.path().join("state");
    for left in ["snapshotter/snapshots", "spanfs/cache/layers/sha256", "spanfs/mounts/records"] {
        assert_eq!(fs::read_dir(state.join(left)).unwrap().count(), 0, "{left}");
    }
    let ztocs: Vec<_> = fs::read_dir(state.join("spanfs/cache/ztocs")).unwrap().collect();
    assert_eq!(ztocs.len(), 1, "the directory of notes: {ztocs:?}");
    node.signal("TERM");
    let (status, log) = node.wait();
    assert!(status.success(), "{log}");
    assert!(log.contains("\"remote-snapshot-prepared\":\"true\""), "{log}");
}

/// After a death the layers come back, from the disk alone.
#[tokio::test(flavor = "multi_thread")]
async fn layers_come_back_without_the_registry() {
    if !can_mount() {
        return;
    }
    let root = Root::new();
    let registry = Registry::builder().start().unwrap();
    let image = image(&registry, "v2");
    let (node, mut containerd) = start(root.path(), "default").await;
    let top = containerd.pull(&image).await;
    let (key, mount) = containerd.container(&top).await;
    let rootfs = Rootfs::mount(&mount, &root.path().join("rootfs"));
    check_tree(&rootfs.0, "v2");
    drop((rootfs, registry));
    node.signal("KILL");
    drop(node.wait());
    let (node, mut containerd) = start(root.path(), "default").await;
    assert_eq!(count(root.path(), "erofs"), 3, "before anybody asks");
    let mount = containerd.mounts(&key).await.unwrap();
    let rootfs = Rootfs::mount(&mount, &root.path().join("rootfs"));
    check_tree(&rootfs.0, "v2");
    drop(rootfs);
    // Told by a supervisor to end, it leaves the mounts to its successor.
    node.signal("TERM");
    drop(node.wait());
    assert_eq!(count(root.path(), "erofs"), 3);
    let (node, mut containerd) = start(root.path(), "default").await;
    let mount = containerd.mounts(&key).await.unwrap();
    check_tree(&Rootfs::mount(&mount, &root.path().join("rootfs")).0, "v2");
    // By hand, it takes them along.
    node.signal("INT");
    drop(node.wait());
    assert_eq!(mounts_below(root.path()), []);
}

/// Small layers come whole, and stack with lazy ones.
#[tokio::test(flavor = "multi_thread")]
async fn layers_without_ztoc_come_whole() {
    if !can_mount() {
        return;
    }
    let root = Root::new();
    let registry = Registry::builder().start().unwrap();
    let image = image(&registry, "v2-one-layer");
    let (_node, mut containerd) = start(root.path(), "default").await;
    let top = containerd.pull(&image).await;
    let lazy: Vec<bool> = {
        let mut lazy = Vec::new();
        for layer in &image.layers {
            lazy.push(containerd.stat(&layer.chain).await.labels.contains_key(REMOTE));
        }
        lazy
    };
    assert_eq!(lazy, [true, false, false]);
    let (_, mount) = containerd.container(&top).await;
    let rootfs = Rootfs::mount(&mount, &root.path().join("rootfs"));
    check_tree(&rootfs.0, "v2-one-layer");
}

/// containerd unpacks images that nobody indexed.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_index_is_left_to_containerd() {
    if !can_mount() {
        return;
    }
    let root = Root::new();
    let registry = Registry::builder().start().unwrap();
    let image = image(&registry, "plain");
    let (node, mut containerd) = start(root.path(), "default").await;
    let labels = Containerd::labels(&image, &image.layers[0]);
    let mounts = containerd.extract("", labels).await.unwrap().unwrap_err();
    assert_eq!(mounts[0].r#type, "bind");
    assert_eq!(mounts_below(root.path()), []);
    node.signal("TERM");
    let (_, log) = node.wait();
    assert!(log.contains("no valid SOCI index found"), "{log}");
    assert!(log.contains("\"defer-snapshot-runtime\":\"true\""), "{log}");
}

/// Two namespaces, one set of mounts: also where the header is missing, as with containerd 1.6.
#[tokio::test(flavor = "multi_thread")]
async fn namespaces_share_layers() {
    if !can_mount() {
        return;
    }
    let root = Root::new();
    let registry = Registry::builder().start().unwrap();
    let image: Image = image(&registry, "v2");
    let (mut node, mut first) = start(root.path(), "default").await;
    let mut second = Containerd::new(node.connect().await, "k8s.io");
    let (one, two) = tokio::join!(first.pull(&image), second.pull(&image));
    assert_eq!(one, two);
    assert_eq!(count(root.path(), "erofs"), 3);
}
