//! What the daemon itself says of its snapshots, beside what is on disk.

use std::collections::BTreeSet;
use std::time::Duration;

use spanfs_snapshotter::grpc::proto::snapshots::snapshots_client::SnapshotsClient;
use spanfs_snapshotter::grpc::proto::snapshots::{
    CleanupRequest, Info, Kind, ListSnapshotsRequest, MountsRequest,
};
use tonic::transport::Endpoint;

use crate::node::{DAEMON_SOCKET, Node};

const PATIENCE: Duration = Duration::from_secs(60);

/// Every snapshot of the daemon, after it was told to clean up; panics where they contradict each
/// other or the disk. Nobody else may use the node meanwhile.
pub(crate) fn consistent_snapshots(node: &Node) -> Vec<Info> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let infos = runtime.block_on(ask(node));
    let names: BTreeSet<_> = infos.iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names.len(), infos.len(), "a name twice in {infos:?}");
    for info in infos.iter().filter(|info| !info.parent.is_empty()) {
        assert!(names.contains(info.parent.as_str()), "{info:?} is an orphan");
    }
    let directories = node.directories();
    assert_eq!(directories.len(), names.len(), "one directory each: {directories:?}, {names:?}");
    infos
}

async fn ask(node: &Node) -> Vec<Info> {
    let socket = node.path(DAEMON_SOCKET);
    let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))
        .expect("a socket's path")
        .timeout(PATIENCE)
        .connect()
        .await
        .expect("the daemon listens");
    let mut client = SnapshotsClient::new(channel);
    client.cleanup(CleanupRequest::default()).await.expect("Cleanup");
    let mut stream = client.list(ListSnapshotsRequest::default()).await.expect("List").into_inner();
    let mut infos = Vec::new();
    while let Some(message) = stream.message().await.expect("List") {
        infos.extend(message.infos().expect("entries"));
    }
    for info in infos.iter().filter(|info| info.kind() != Kind::Committed) {
        let request = MountsRequest { key: info.name.clone(), ..Default::default() };
        let mounts = client.mounts(request).await.expect("Mounts").into_inner().mounts;
        let options = mounts.iter().flat_map(|mount| &mount.options);
        for path in options.filter_map(|option| option.split_once("dir=")).map(|(_, path)| path) {
            for path in path.split(':') {
                let here = node.path("lib").join(path.trim_start_matches("/var/lib/"));
                assert!(here.is_dir(), "{path} of {info:?}");
            }
        }
    }
    infos
}
