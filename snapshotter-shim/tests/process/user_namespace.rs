//! The daemon in a user namespace, where EROFS can't be mounted and overlayfs keeps its marks in
//! `user.` attributes: with real mounts, looked at from within.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use spanfs_registry::Registry;

use crate::node::{Node, PROGRAM};
use crate::pull::{Containerd, can_mount, image, layout};
use crate::scene::Root;

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_shown_in_a_user_namespace() {
    if !can_mount() {
        return;
    }
    let root = Root::new();
    let registry = Registry::builder().start().unwrap();
    let image = image(&registry, "v2");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", PROGRAM]);
    let mut node = Node::start_by(root.path(), "", command);
    let mut containerd = Containerd::new(node.connect().await, "default");
    let top = containerd.pull(&image).await;
    let (_, mount) = containerd.container(&top).await;
    assert!(mount.options.iter().any(|option| option == "userxattr"), "{:?}", mount.options);

    let (mut files, mut sums) = (BTreeSet::new(), String::new());
    for line in fs::read_to_string(layout(".").join("tree.jsonl")).unwrap().lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        let path = entry["path"].as_str().unwrap().to_owned();
        if let Some(sum) = entry["sha256"].as_str() {
            sums += &format!("{sum}  .{path}\n");
        }
        files.insert(path);
    }
    fs::write(root.path().join("sums"), sums).unwrap();
    fs::create_dir(root.path().join("rootfs")).unwrap();
    let script = "set -e
        cd \"$2\"
        mount -t overlay -o \"$1\" overlay rootfs
        cd rootfs
        sha256sum --quiet -c ../sums >&2
        echo changed > app/data.txt
        find . | cut -c2-";
    let output = Command::new("nsenter")
        .args(["--target", &node.child.id().to_string(), "--user", "--mount"])
        .args(["--preserve-credentials", "--", "sh", "-c", script, "sh"])
        .arg(mount.options.join(","))
        .arg(root.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let found = String::from_utf8(output.stdout).unwrap();
    let found: BTreeSet<_> = found
        .lines()
        .map(|path| if path.is_empty() { "/".to_owned() } else { path.to_owned() })
        .collect();
    assert_eq!(found, files, "what is removed or hidden stays so");
}
