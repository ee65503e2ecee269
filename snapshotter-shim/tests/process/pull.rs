//! What containerd does when it pulls and runs an image, in the order that was recorded of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use spanfs_layer::Digest;
use spanfs_layer::oci::{ImageConfig, Index, Manifest, Platform};
use spanfs_registry::Registry;
use spanfs_snapshotter::grpc::proto::snapshots::snapshots_client::SnapshotsClient;
use spanfs_snapshotter::grpc::proto::snapshots::*;
use spanfs_snapshotter::grpc::proto::types;
use tonic::Code;
use tonic::transport::Channel;

pub(crate) const REPOSITORY: &str = "team/app";
pub(crate) const REF: &str = "containerd.io/snapshot.ref";
pub(crate) const REMOTE: &str = "containerd.io/snapshot/remote";
pub(crate) const CRI: &str = "containerd.io/snapshot/cri.";

/// An image in a registry.
pub(crate) struct Image {
    pub(crate) reference: String,
    pub(crate) manifest: Digest,
    pub(crate) layers: Vec<Layer>,
}

pub(crate) struct Layer {
    pub(crate) blob: Digest,
    pub(crate) chain: String,
}

pub(crate) fn layout(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/images").join(name)
}

fn blob(layout: &Path, digest: &Digest) -> Vec<u8> {
    std::fs::read(layout.join("blobs/sha256").join(digest.hex().to_string())).unwrap()
}

/// Put a fixture into a registry, and read what containerd would have read of it.
pub(crate) fn image(registry: &Registry, name: &str) -> Image {
    let layout = layout(name);
    let top = registry.put_image(REPOSITORY, &layout).unwrap()[0].1;
    registry.tag(REPOSITORY, "v1", top).unwrap();
    let mut digest = top;
    while let Ok(index) = Index::parse(&blob(&layout, &digest))
        && let Some(next) = index.select(&Platform::host())
    {
        digest = next.digest;
    }
    let manifest = Manifest::parse(&blob(&layout, &digest)).unwrap();
    let config = ImageConfig::parse(&blob(&layout, &manifest.config.digest)).unwrap();
    let mut chain = String::new();
    let layers = manifest.layers.iter().zip(config.diff_ids()).map(|(layer, diff_id)| {
        chain = match chain.as_str() {
            "" => diff_id.to_string(),
            parent => Digest::of(format!("{parent} {diff_id}").as_bytes()).to_string(),
        };
        Layer { blob: layer.digest, chain: chain.clone() }
    });
    let layers = layers.collect();
    Image { reference: registry.reference(REPOSITORY, "v1"), manifest: digest, layers }
}

/// containerd, as far as the snapshotter sees it.
pub(crate) struct Containerd {
    pub(crate) client: SnapshotsClient<Channel>,
    namespace: &'static str,
    sequence: u64,
}

impl Containerd {
    pub(crate) fn new(client: SnapshotsClient<Channel>, namespace: &'static str) -> Self {
        Self { client, namespace, sequence: 0 }
    }

    fn key(&mut self, name: &str) -> String {
        self.sequence += 1;
        format!("{}/{}/{name}", self.namespace, self.sequence)
    }

    pub(crate) fn labels(image: &Image, layer: &Layer) -> BTreeMap<String, String> {
        let blobs: Vec<_> = image.layers.iter().map(|layer| layer.blob.to_string()).collect();
        BTreeMap::from([
            (REF.to_owned(), layer.chain.clone()),
            (format!("{CRI}image-ref"), image.reference.clone()),
            (format!("{CRI}manifest-digest"), image.manifest.to_string()),
            (format!("{CRI}layer-digest"), layer.blob.to_string()),
            (format!("{CRI}image-layers"), blobs.join(",")),
        ])
    }

    /// Ask for a layer; its name if nobody has to unpack it, else the mounts to unpack it to.
    pub(crate) async fn extract(
        &mut self,
        parent: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<Result<String, Vec<types::Mount>>, tonic::Status> {
        let chain = labels[REF].clone();
        let key = self.key(&format!("extract-1-abcd {chain}"));
        let (parent, snapshotter) = (parent.to_owned(), "soci".to_owned());
        let filter = format!("labels.\"{REF}\"=={chain},parent==\"{parent}\"");
        let request = PrepareSnapshotRequest { snapshotter, key: key.clone(), parent, labels };
        match self.client.prepare(request).await {
            Ok(answer) => return Ok(Err(answer.into_inner().mounts)),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(status),
        }
        let request = ListSnapshotsRequest { filters: vec![filter], ..Default::default() };
        let mut stream = self.client.list(request).await?.into_inner();
        let mut found = Vec::new();
        while let Some(message) = stream.message().await? {
            found.extend(message.infos().unwrap());
        }
        // An extraction that was left to containerd may still be under way.
        found.retain(|info| info.kind() == Kind::Committed);
        assert_eq!(found.len(), 1, "{chain}");
        let request = StatSnapshotRequest { key, ..Default::default() };
        let gone = self.client.stat(request).await.unwrap_err();
        assert_eq!(gone.code(), Code::NotFound, "the key of an extraction is gone");
        Ok(Ok(found.remove(0).name))
    }

    /// Pull an image whose every layer is there without unpacking; the name of its topmost layer.
    pub(crate) async fn pull(&mut self, image: &Image) -> String {
        let mut parent = String::new();
        for layer in &image.layers {
            let labels = Self::labels(image, layer);
            let outcome = self.extract(&parent, labels).await.unwrap();
            parent = outcome.expect("containerd need not unpack it");
        }
        parent
    }

    /// The root filesystem of a container: its key and mounts.
    pub(crate) async fn container(&mut self, parent: &str) -> (String, types::Mount) {
        self.container_with(parent, BTreeMap::new()).await.unwrap()
    }

    /// The same, mounted at `at`.
    pub(crate) async fn rootfs(&mut self, parent: &str, at: &Path) -> Rootfs {
        let (_, mount) = self.container(parent).await;
        Rootfs::mount(&mount, at)
    }

    /// The same with labels.
    pub(crate) async fn container_with(
        &mut self,
        parent: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<(String, types::Mount), tonic::Status> {
        let (key, parent) = (self.key("container"), parent.to_owned());
        let request =
            PrepareSnapshotRequest { key: key.clone(), parent, labels, ..Default::default() };
        let mut mounts = self.client.prepare(request).await?.into_inner().mounts;
        assert_eq!(mounts.len(), 1);
        Ok((key, mounts.remove(0)))
    }

    pub(crate) async fn mounts(&mut self, key: &str) -> Result<types::Mount, tonic::Status> {
        let request = MountsRequest { key: key.to_owned(), ..Default::default() };
        Ok(self.client.mounts(request).await?.into_inner().mounts.remove(0))
    }

    pub(crate) async fn stat(&mut self, key: &str) -> Info {
        let request = StatSnapshotRequest { key: key.to_owned(), ..Default::default() };
        self.client.stat(request).await.unwrap().into_inner().info.unwrap()
    }

    pub(crate) async fn usage(&mut self, key: &str) -> UsageResponse {
        let request = UsageRequest { key: key.to_owned(), ..Default::default() };
        self.client.usage(request).await.unwrap().into_inner()
    }

    /// Remove all that is there, children first, and clean up.
    pub(crate) async fn collect_garbage(&mut self) {
        let mut stream =
            self.client.list(ListSnapshotsRequest::default()).await.unwrap().into_inner();
        let mut left = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            left.extend(message.infos().unwrap());
        }
        while !left.is_empty() {
            let parents: Vec<_> = left.iter().map(|info| info.parent.clone()).collect();
            let (gone, rest) = left.into_iter().partition(|info| !parents.contains(&info.name));
            let gone: Vec<Info> = gone;
            for info in gone {
                let request = RemoveSnapshotRequest { key: info.name, ..Default::default() };
                self.client.remove(request).await.unwrap();
            }
            left = rest;
        }
        self.client.cleanup(CleanupRequest::default()).await.unwrap();
    }
}

/// A root filesystem, mounted as a runtime does it.
pub(crate) struct Rootfs(pub(crate) PathBuf);

impl Rootfs {
    pub(crate) fn mount(mount: &types::Mount, at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", &mount.r#type, "-o", &mount.options.join(","), &mount.source]).arg(at);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(at.to_owned())
    }

    /// What the image's program says.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new("chroot").arg(&self.0).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Rootfs {
    fn drop(&mut self) {
        // It fails only where it is not mounted any more.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Mounts below a directory: where, and of what type.
pub(crate) fn mounts_below(directory: &Path) -> Vec<(PathBuf, String)> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let all = fields.map(|fields| (PathBuf::from(fields[1]), fields[2].to_owned()));
    all.filter(|(at, _)| at.starts_with(directory)).collect()
}

/// Whether mounts can be made here; says so, or fails where they must be.
pub(crate) fn can_mount() -> bool {
    let can = rustix_is_root() && Path::new("/dev/fuse").exists();
    let is_strict = std::env::var_os("SPANFS_TEST_STRICT").is_some_and(|it| it == "1");
    assert!(can || !is_strict, "root and /dev/fuse are needed");
    if !can {
        eprintln!("skipped: root and /dev/fuse are needed");
    }
    can
}

fn rustix_is_root() -> bool {
    rustix::process::geteuid().is_root()
}
