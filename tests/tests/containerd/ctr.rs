//! containerd's own client on a node, in one of containerd's namespaces.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use spanfs_snapshotter::grpc::proto::snapshots::PrepareSnapshotRequest;
use spanfs_snapshotter::grpc::proto::snapshots::snapshots_client::SnapshotsClient;
use tonic::transport::Endpoint;
use tonic::{Code, Request};

use crate::image::Image;
use crate::node::{CONTAINERD_SOCKET, Node};

/// What [`Ctr::prepare_layer`] makes its layers part of; the caller creates it.
pub(crate) const LEASE: &str = "pull";
const CALL_PATIENCE: Duration = Duration::from_secs(120);

/// `ctr` with `--namespace`.
#[derive(Clone, Copy)]
pub(crate) struct Ctr<'n> {
    node: &'n Node,
    namespace: &'n str,
}

impl<'n> Ctr<'n> {
    /// The client of a node, in a namespace.
    pub(crate) fn new(node: &'n Node, namespace: &'n str) -> Self {
        Self { node, namespace }
    }

    /// Runs `ctr`: what it printed, or what it complained of.
    pub(crate) fn attempt(&self, arguments: &[&str]) -> Result<String, String> {
        let all = [&["--namespace", self.namespace], arguments].concat();
        let ended = self.node.run("ctr", &all);
        if ended.status.success() { Ok(ended.stdout) } else { Err(ended.stdout + &ended.stderr) }
    }

    /// Runs `ctr` and returns what it printed; panics with its complaint.
    #[track_caller]
    pub(crate) fn ctr(&self, arguments: &[&str]) -> String {
        self.attempt(arguments).unwrap_or_else(|said| panic!("ctr {arguments:?}: {said}"))
    }

    /// Pulls an image as `ctr` does it by itself: on the client's side, or by the transfer service.
    pub(crate) fn try_pull(&self, image: &str) -> Result<String, String> {
        self.attempt(&["images", "pull", "--plain-http", "--snapshotter", "soci", image])
    }

    /// [`Self::try_pull`], or panic.
    #[track_caller]
    pub(crate) fn pull(&self, image: &str) {
        self.try_pull(image).unwrap_or_else(|said| panic!("pulling {image}: {said}"));
    }

    /// Runs a container with more options, under the full form of its name. No command: the image's
    /// own.
    pub(crate) fn try_run(
        &self,
        options: &[&str],
        image: &str,
        name: &str,
        command: &[&str],
    ) -> Result<String, String> {
        let name = self.node.named(name);
        let group = format!("/{name}");
        let usual = ["--snapshotter", "soci", "--cgroup", &group, image, &name];
        self.attempt(&[&["run"], options, &usual, command].concat())
    }

    /// Runs a container to its end and removes it: what it printed.
    #[track_caller]
    pub(crate) fn run(&self, image: &str, name: &str, command: &[&str]) -> String {
        self.try_run(&["--rm"], image, name, command)
            .unwrap_or_else(|said| panic!("running {image}: {said}"))
    }

    /// An image with the changes of a container on top of the one that it was made of.
    #[track_caller]
    pub(crate) fn diff(&self, container: &str, base: &Image) -> Image {
        let (key, diff) = (self.node.named(container), self.node.path("tmp/diff"));
        let command = format!(
            "ctr --namespace {} snapshots --snapshotter soci diff {key} > {}",
            self.namespace,
            diff.display()
        );
        let ended = self.node.run("sh", &["-c", &command]);
        assert!(ended.status.success(), "{ended:?}");
        base.clone().layer_blob(fs::read(diff).expect("the layer"))
    }

    /// Makes an image of a container whose own image was never fetched: only what is new comes into
    /// containerd, as of nerdctl's commit.
    #[track_caller]
    pub(crate) fn commit(&self, container: &str, base: &Image, reference: &str) -> Image {
        let image = self.diff(container, base);
        let archive = self.node.path("tmp/archive.tar");
        fs::write(&archive, image.archive_from(reference, base.layers())).expect("write");
        self.ctr(&["images", "import", "--no-unpack", archive.to_str().expect("text")]);
        image
    }

    /// Names of its images.
    #[track_caller]
    pub(crate) fn images(&self) -> Vec<String> {
        self.ctr(&["images", "ls", "-q"]).lines().map(str::to_owned).collect()
    }

    /// Removes images and waits until all that only they held is gone.
    #[track_caller]
    pub(crate) fn remove(&self, images: &[impl AsRef<str>]) {
        let images: Vec<_> = images.iter().map(AsRef::as_ref).collect();
        self.ctr(&[&["images", "rm", "--sync"], images.as_slice()].concat());
    }

    /// Runs containerd's garbage collector: the removal of a lease can wait for it.
    #[track_caller]
    pub(crate) fn collect_garbage(&self) {
        self.ctr(&["leases", "create", "--id", "collect"]);
        self.ctr(&["leases", "rm", "--sync", "collect"]);
    }

    /// Names of its snapshots.
    #[track_caller]
    pub(crate) fn snapshots(&self) -> Vec<String> {
        let table = self.ctr(&["snapshots", "--snapshotter", "soci", "ls"]);
        let keys = table.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        keys.map(str::to_owned).collect()
    }

    /// What containerd knows of a snapshot, as JSON.
    #[track_caller]
    pub(crate) fn snapshot(&self, key: &str) -> String {
        self.ctr(&["snapshots", "--snapshotter", "soci", "info", key])
    }

    /// Prepares the extraction of a layer with labels of the caller's, as nerdctl's pull does;
    /// panics unless the daemon shows the layer by itself. The lease [`LEASE`] holds it.
    #[track_caller]
    pub(crate) fn prepare_layer(&self, key: &str, parent: &str, labels: &[(String, String)]) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let socket = self.node.path(CONTAINERD_SOCKET);
        let labels: BTreeMap<_, _> = labels.iter().cloned().collect();
        let message = PrepareSnapshotRequest {
            snapshotter: "soci".to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        };
        let mut request = Request::new(message);
        let namespace = self.namespace.parse().expect("a header's value");
        request.metadata_mut().insert("containerd-namespace", namespace);
        // Without it, the garbage collector takes the layer before a container is made of it.
        request.metadata_mut().insert("containerd-lease", LEASE.parse().expect("a header's value"));
        let answer = runtime.block_on(async {
            let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))
                .expect("a socket's path")
                .timeout(CALL_PATIENCE)
                .connect()
                .await
                .expect("containerd listens");
            SnapshotsClient::new(channel).prepare(request).await
        });
        match answer {
            Err(status) if status.code() == Code::AlreadyExists => {}
            other => panic!("the layer of {key} is not shown: {other:?}"),
        }
    }
}
