//! A daemon, its registry with an image, and containerd as its client.

use std::fs;
use std::path::Path;

use spanfs_registry::Registry;

use crate::node::Node;
use crate::pull::{Containerd, Image, can_mount, image, mounts_below};

/// What most tests begin with.
pub(crate) struct Scene {
    pub(crate) root: Root,
    pub(crate) registry: Registry,
    pub(crate) image: Image,
    pub(crate) node: Node,
    pub(crate) containerd: Containerd,
}

impl Scene {
    /// With the fixture `image` and these settings; `None` where nothing can be mounted.
    pub(crate) async fn new(name: &str, settings: &str) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
        let image = image(&registry, name);
        let (node, containerd) = start_with(root.path(), "default", settings).await;
        Some(Self { root, registry, image, node, containerd })
    }
}

/// Takes away what a failed test leaves mounted.
pub(crate) struct Root(tempfile::TempDir);

impl Root {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for (at, _) in mounts_below(self.path()).iter().rev() {
            let _ = std::process::Command::new("umount").arg("-l").arg(at).output();
        }
        crate::node::end_holder(self.path());
    }
}

pub(crate) async fn start(root: &Path, namespace: &'static str) -> (Node, Containerd) {
    start_with(root, namespace, "").await
}

pub(crate) async fn start_with(
    root: &Path,
    namespace: &'static str,
    settings: &str,
) -> (Node, Containerd) {
    let mut node = Node::start_with(root, settings);
    let client = node.connect().await;
    (node, Containerd::new(client, namespace))
}

pub(crate) fn count(root: &Path, fs_type: &str) -> usize {
    mounts_below(root).iter().filter(|(_, found)| found == fs_type).count()
}

/// Every file of the image has the content and mode that its layers say.
pub(crate) fn check_tree(root: &Path, image: &str) {
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
