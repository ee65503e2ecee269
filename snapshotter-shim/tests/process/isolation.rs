//! What comes from outside reaches neither the file system nor the log unchecked.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use spanfs_snapshotter::grpc::proto::snapshots::{
    CommitSnapshotRequest, ListSnapshotsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
    UpdateSnapshotRequest, ViewSnapshotRequest,
};
use tonic::Code;

use crate::pull::{CRI, REF, can_mount};
use crate::scene::{Root, start};

const NAMES: [&str; 9] = [
    "/etc/passwd",
    "../../../../outside",
    "..",
    "a:b,c\\d\"e",
    "new\nline\u{0}zero",
    "lowerdir=/etc,upperdir=/tmp",
    "snapshotter/snapshots/1/fs",
    "\u{202e}right-to-left",
    "%s%n${HOME}`id`$(id)",
];

#[tokio::test(flavor = "multi_thread")]
async fn names_are_only_names() {
    if !can_mount() {
        return;
    }
    let root = Root::new();
    let before: Vec<_> = fs::read_dir("/").unwrap().map(|it| it.unwrap().file_name()).collect();
    let (node, mut containerd) = start(root.path(), "default").await;
    let client = &mut containerd.client;
    let long = "x".repeat(1 << 20);
    for name in NAMES.iter().copied().chain([long.as_str()]) {
        let key = format!("key {name}");
        let request = PrepareSnapshotRequest { key: key.clone(), ..Default::default() };
        let mounts = client.prepare(request).await.unwrap().into_inner().mounts;
        let source = mounts[0].source.strip_prefix(root.path().to_str().unwrap()).unwrap();
        let number = source.strip_prefix("/state/snapshotter/snapshots/").unwrap();
        let number = number.strip_suffix("/fs").unwrap();
        assert!(number.parse::<u64>().is_ok(), "{source}");
        let commit = CommitSnapshotRequest { name: name.into(), key, ..Default::default() };
        client.commit(commit).await.unwrap();
        let view = ViewSnapshotRequest {
            key: format!("view {name}"),
            parent: name.into(),
            ..Default::default()
        };
        let mounts = client.view(view).await.unwrap().into_inner().mounts;
        let options = mounts[0].options.join(",");
        assert!(!options.contains("outside") && !options.contains("etc"), "{options}");
        let filters = vec![format!("name=={name}")];
        // A filter is read or refused; either way the next call is answered.
        let listed = client.list(ListSnapshotsRequest { filters, ..Default::default() }).await;
        assert!(listed.is_ok() || listed.unwrap_err().code() == Code::InvalidArgument);
    }
    for name in NAMES.iter().copied().chain([long.as_str()]) {
        for key in [format!("view {name}"), name.to_owned()] {
            client.remove(RemoveSnapshotRequest { key, ..Default::default() }).await.unwrap();
        }
    }
    let update = UpdateSnapshotRequest::default();
    assert_eq!(client.update(update).await.unwrap_err().code(), Code::NotFound);
    let after: Vec<_> = fs::read_dir("/").unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(before, after);
    for directory in ["state/snapshotter", "state/snapshotter/snapshots", "state/spanfs"] {
        let mode = fs::metadata(root.path().join(directory)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700, "{directory}");
    }
    node.signal("TERM");
    let (status, log) = node.wait();
    assert!(status.success(), "{log}");
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line)
            .unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

/// Labels that name no layer leave the extraction to containerd; nothing is asked of anybody.
#[tokio::test(flavor = "multi_thread")]
async fn labels_that_name_no_layer_do_nothing() {
    if !can_mount() {
        return;
    }
    let root = Root::new();
    let (_node, mut containerd) = start(root.path(), "default").await;
    let digest = format!("sha256:{}", "1".repeat(64));
    let good = [
        ("image-ref", "127.0.0.1:1/team/app:1".to_owned()),
        ("manifest-digest", digest.clone()),
        ("layer-digest", digest.clone()),
    ];
    let bad = [
        ("image-ref", "file:///etc/passwd"),
        ("image-ref", "127.0.0.1:1/../../etc:1"),
        ("image-ref", "127.0.0.1:1/a?b=c#d"),
        ("image-ref", "user:secret@127.0.0.1:1/a"),
        ("image-ref", ""),
        ("manifest-digest", "sha256:../../../../etc/passwd"),
        ("layer-digest", "sha256:12"),
        ("layer-digest", "md5:d41d8cd98f00b204e9800998ecf8427e"),
        (
            "layer-digest",
            "sha256:11111111111111111111111111111111111111111111111111111111111111\u{0}1",
        ),
    ];
    for (name, value) in bad {
        let mut labels: BTreeMap<_, _> =
            good.iter().map(|(name, value)| (format!("{CRI}{name}"), value.clone())).collect();
        labels.insert(format!("{CRI}{name}"), value.to_owned());
        labels.insert(REF.to_owned(), digest.clone());
        let mounts = containerd.extract("", labels).await.unwrap();
        let mounts = mounts.expect_err("left to containerd");
        assert_eq!(mounts[0].r#type, "bind", "{name} {value:?}");
    }
    // A value longer than containerd's own limit is refused as containerd does.
    let labels = BTreeMap::from([("containerd.io/snapshot/long".to_owned(), "x".repeat(5000))]);
    let status = containerd.container_with("", labels).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
}
