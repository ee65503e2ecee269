//! What a layer's snapshot says is on the disk before anybody is told of it; what can be made anew from
//! that follows a moment later, and may be lost.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tonic::Code;

use crate::node::{Node, end_holder};
use crate::parallel::PARALLEL;
use crate::pull::mounts_below;
use crate::scene::{Scene, check_tree, count, start, start_with};

/// Files below `directory` whose name `is_one`.
fn files(directory: &Path, is_one: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        // What is mounted is no state of ours.
        if entry.file_type().unwrap().is_dir() && entry.file_name() != "fs" {
            found.extend(files(&entry.path(), is_one));
        } else if entry.file_name().to_str().is_some_and(is_one) {
            found.push(entry.path());
        }
    }
    found
}

fn remove(directory: &Path, is_one: &dyn Fn(&str) -> bool) {
    files(directory, is_one).iter().for_each(|path| fs::remove_file(path).unwrap());
}

/// Killed before anything was brought to the disk for good: the kernel has it all.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_right_after_the_pull_needs_no_registry() {
    let Some(scene) = Scene::new("v2", "").await else { return };
    let Scene { root, registry, image, node, mut containerd } = scene;
    containerd.pull(&image).await;
    node.signal("KILL");
    drop((node.wait(), registry));
    // What comes a second later has not come.
    let state = root.path().join("state");
    remove(&state.join("spanfs/cache/ztocs"), &|_| true);
    remove(&state.join("snapshotter/snapshots"), &|name| name.ends_with("-upon.json"));
    remove(&state.join("snapshotter/snapshots"), &|name| name.ends_with("-lowest.json"));
    let (node, _containerd) = start(root.path(), "default").await;
    assert_eq!(count(root.path(), "erofs"), 3, "before anybody asks");
    node.signal("INT");
    let (_, log) = node.wait();
    assert!(!log.contains("failed to restore"), "{log}");
}

/// A power cut takes what was not brought to the disk, or parts of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_right_after_the_pull_costs_ztocs_and_indexes() {
    let Some(scene) = Scene::new("v2", "").await else { return };
    let Scene { root, registry: _registry, image, node, mut containerd } = scene;
    let top = containerd.pull(&image).await;
    node.signal("KILL");
    drop(node.wait());
    end_holder(root.path());
    for (at, _) in mounts_below(root.path()).iter().rev() {
        assert!(std::process::Command::new("umount").arg("-l").arg(at).status().unwrap().success());
    }
    let state = root.path().join("state");
    let (cache, snapshots) = (state.join("spanfs/cache"), state.join("snapshotter/snapshots"));
    remove(&cache.join("ztocs"), &|_| true);
    remove(&snapshots, &|name| name.ends_with("-upon.json") || name.ends_with("-lowest.json"));
    let is_torn = |name: &str| ["ztoc", "spans", "journal"].contains(&name);
    let torn = files(&cache.join("layers"), &is_torn);
    let indexes = files(&snapshots, &|name| name.ends_with("-upon") || name.ends_with("-lowest"));
    assert_eq!(indexes.len(), 3, "{indexes:?}");
    assert!(torn.len() >= 6, "{torn:?}");
    for path in torn.iter().chain(&indexes) {
        let len = fs::metadata(path).unwrap().len();
        fs::write(path, vec![0; usize::try_from(len / 2).unwrap()]).unwrap();
    }
    let (node, mut containerd) = start(root.path(), "default").await;
    assert_eq!(count(root.path(), "fuse.rawBridge"), 3, "all come lazily, as before");
    let rootfs = containerd.rootfs(&top, &root.path().join("rootfs")).await;
    check_tree(&rootfs.0, "v2");
    drop(rootfs);
    node.signal("INT");
    let (_, log) = node.wait();
    assert!(!log.contains("comes whole"), "{log}");
}

/// Whole layers are given out before the disk has them. A power cut leaves holes: no zero of them is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_right_after_a_whole_pull_costs_what_it_takes() {
    let Some(scene) = Scene::new("plain", PARALLEL).await else { return };
    let Scene { root, registry: _registry, image, node, mut containerd } = scene;
    let top = containerd.pull(&image).await;
    node.signal("KILL");
    drop(node.wait());
    for (at, _) in mounts_below(root.path()).iter().rev() {
        assert!(std::process::Command::new("umount").arg("-l").arg(at).status().unwrap().success());
    }
    let cache = root.path().join("state/spanfs/cache");
    remove(&cache.join("ztocs"), &|_| true);
    let layers = files(&cache.join("layers"), &|name| name == "layer");
    assert_eq!(layers.len(), 3, "{layers:?}");
    for path in &layers {
        let mut bytes = fs::read(path).unwrap();
        let len = bytes.len();
        bytes[len / 3..].fill(0);
        fs::write(path, bytes).unwrap();
    }
    let (node, mut containerd) = start_with(root.path(), "default", PARALLEL).await;
    let rootfs = containerd.rootfs(&top, &root.path().join("rootfs")).await;
    check_tree(&rootfs.0, "plain");
    drop(rootfs);
    node.signal("INT");
    let (_, log) = node.wait();
    assert!(!log.contains("failed to restore"), "{log}");
}

/// A layer that can't come back stops the start, unless the settings allow it; the others come back first.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_lost_stops_the_start_unless_that_is_allowed() {
    let Some(scene) = Scene::new("v2", "").await else { return };
    let Scene { root, registry, image, node, mut containerd } = scene;
    let top = containerd.pull(&image).await;
    node.signal("INT");
    drop((node.wait(), registry));
    let note = root.path().join("state/snapshotter/snapshots/3/layer.json");
    fs::write(&note, "{").unwrap();

    let (status, log) = Node::start(root.path()).wait();
    assert!(!status.success(), "{log}");
    for words in ["1 layers can't be restored", "snapshot 3", "allow_invalid_mounts_on_restart"] {
        assert!(log.contains(words), "{words} is not in {log}");
    }
    assert_eq!(count(root.path(), "erofs"), 2, "the others came back, and stay");

    let allowed = "[snapshotter]\nallow_invalid_mounts_on_restart = true\n";
    let (node, mut containerd) = start_with(root.path(), "default", allowed).await;
    assert_eq!(count(root.path(), "erofs"), 2);
    let refused = containerd.container_with(&top, BTreeMap::new()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    containerd.collect_garbage().await;
    node.signal("INT");
    assert!(node.wait().0.success());
}

/// Nor does a registry that is away: what needs it comes when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_needs_an_absent_registry_does_not_stop_the_start() {
    let Some(scene) = Scene::new("v2", "").await else { return };
    let Scene { root, registry, image, node, mut containerd } = scene;
    let top = containerd.pull(&image).await;
    node.signal("INT");
    drop((node.wait(), registry));
    fs::remove_dir_all(root.path().join("state/spanfs/cache")).unwrap();

    let (node, mut containerd) = start(root.path(), "default").await;
    let refused = containerd.container_with(&top, BTreeMap::new()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    node.signal("INT");
    let (status, log) = node.wait();
    assert!(status.success() && log.contains("failed to restore remote snapshot"), "{log}");
}
