//! Containers in user namespaces: layers with owners of theirs, on the kernel's own mounts.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use spanfs_snapshotter::grpc::proto::snapshots::{CommitSnapshotRequest, PrepareSnapshotRequest};
use tonic::Code;

use crate::pull::{Rootfs, can_mount, layout, mounts_below};
use crate::scene::{Root, Scene, check_tree, count, start};

const USERS: u32 = 100_000;
const GROUPS: u32 = 200_000;

fn labels(users: &str, groups: &str) -> BTreeMap<String, String> {
    let label = |name: &str, map: &str| (format!("containerd.io/snapshot/{name}"), map.to_owned());
    BTreeMap::from([label("uidmapping", users), label("gidmapping", groups)])
}

fn mapping() -> BTreeMap<String, String> {
    labels(&format!("0:{USERS}:65536"), &format!("0:{GROUPS}:65536"))
}

/// Every file of the image belongs to whom its layers say, so many ids further.
fn check_owners(root: &Path, users: u32, groups: u32) {
    let text = fs::read_to_string(layout(".").join("tree.jsonl")).unwrap();
    for line in text.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        let path = root.join(entry["path"].as_str().unwrap().trim_start_matches('/'));
        let found = fs::symlink_metadata(&path).unwrap();
        let id = |name: &str| u32::try_from(entry[name].as_u64().unwrap()).unwrap();
        let wanted = (id("uid") + users, id("gid") + groups);
        assert_eq!((found.uid(), found.gid()), wanted, "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_owners_of_its_own_and_nothing_is_copied() {
    let Some(scene) = Scene::new("v2", "").await else { return };
    let Scene { root, registry: _registry, image, node, mut containerd } = scene;
    let top = containerd.pull(&image).await;
    // A layer that containerd unpacked lies in an ordinary directory, and is mapped as well.
    let (key, mount) = containerd.container(&top).await;
    let plain = Rootfs::mount(&mount, &root.path().join("plain"));
    fs::write(plain.0.join("unpacked"), "by containerd").unwrap();
    check_owners(&plain.0, 0, 0);
    drop(plain);
    let commit = CommitSnapshotRequest { key, name: "above".into(), ..Default::default() };
    containerd.client.commit(commit).await.unwrap();

    let (key, mount) = containerd.container_with("above", mapping()).await.unwrap();
    assert_eq!(count(root.path(), "erofs"), 3 + 3, "the layers, and once more for the container");
    let rootfs = Rootfs::mount(&mount, &root.path().join("rootfs"));
    check_tree(&rootfs.0, "v2");
    check_owners(&rootfs.0, USERS, GROUPS);
    let unpacked = fs::metadata(rootfs.0.join("unpacked")).unwrap();
    assert_eq!((unpacked.uid(), unpacked.gid()), (USERS, GROUPS));
    let top_directory = fs::metadata(&rootfs.0).unwrap();
    assert_eq!((top_directory.uid(), top_directory.gid()), (USERS, GROUPS));
    fs::write(rootfs.0.join("unpacked"), "changed").unwrap();
    assert_eq!(fs::metadata(rootfs.0.join("unpacked")).unwrap().uid(), USERS, "copied up");

    // Other containers see nothing of it.
    let other = containerd.rootfs("above", &root.path().join("other")).await;
    check_owners(&other.0, 0, 0);
    drop(other);

    // A restart brings it back, and who runs has kept it.
    node.signal("TERM");
    drop(node.wait());
    let (node, mut containerd) = start(root.path(), "default").await;
    let mount = containerd.mounts(&key).await.unwrap();
    assert_eq!(containerd.mounts(&key).await.unwrap(), mount, "asked again");
    let again = Rootfs::mount(&mount, &root.path().join("again"));
    check_owners(&again.0, USERS, GROUPS);
    check_tree(&again.0, "v2");
    drop((again, rootfs));

    containerd.collect_garbage().await;
    assert_eq!(mounts_below(root.path()), []);
    let snapshots = root.path().join("state/snapshotter/snapshots");
    assert_eq!(fs::read_dir(snapshots).unwrap().count(), 0);
    drop(node);
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_that_are_none_are_refused_and_leave_nothing() {
    if !can_mount() {
        return;
    }
    let root = Root::new();
    let (_node, mut containerd) = start(root.path(), "default").await;
    for (users, groups) in [("0:1", "0:0:1"), ("1:5:5", "0:0:1"), ("0:0:4294967296", "0:0:1")] {
        let status = containerd.container_with("", labels(users, groups)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("mapping"), "{status}");
    }
    let snapshots = root.path().join("state/snapshotter/snapshots");
    assert_eq!(fs::read_dir(&snapshots).unwrap().count(), 0);
    // Without layers below, the directory itself belongs to the container's root.
    let request = PrepareSnapshotRequest {
        key: "default/1/scratch".into(),
        labels: mapping(),
        ..Default::default()
    };
    let mount = containerd.client.prepare(request).await.unwrap().into_inner().mounts.remove(0);
    assert_eq!(
        (mount.r#type.as_str(), fs::metadata(&mount.source).unwrap().uid()),
        ("bind", USERS)
    );
}
