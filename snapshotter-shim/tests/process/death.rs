//! Killed in the middle of anything, it starts again with all that callers were told of.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use spanfs_snapshotter::grpc::proto::snapshots::snapshots_client::SnapshotsClient;
use spanfs_snapshotter::grpc::proto::snapshots::*;
use tonic::transport::Channel;

use crate::node::Node;

const ROUNDS: u64 = 25;
const WORKERS: usize = 4;

/// What one caller was told of its snapshots; in doubt is what had no answer.
#[derive(Default)]
struct Told {
    there: BTreeSet<String>,
    gone: BTreeSet<String>,
}

/// Prepare, commit, stack and remove until the connection breaks.
async fn work(mut client: SnapshotsClient<Channel>, name: String) -> Told {
    let mut told = Told::default();
    let mut parent = String::new();
    for count in 0.. {
        let (key, layer) = (format!("{name}/{count}/key"), format!("{name}/{count}"));
        let request = PrepareSnapshotRequest {
            key: key.clone(),
            parent: parent.clone(),
            labels: BTreeMap::from([("label".to_owned(), layer.clone())]),
            ..Default::default()
        };
        if client.prepare(request).await.is_err() {
            break;
        }
        told.there.insert(key.clone());
        if count % 3 == 2 {
            told.there.remove(&key);
            let request = RemoveSnapshotRequest { key: key.clone(), ..Default::default() };
            if client.remove(request).await.is_err() {
                break;
            }
            told.gone.insert(key);
            continue;
        }
        told.there.remove(&key);
        let request =
            CommitSnapshotRequest { name: layer.clone(), key: key.clone(), ..Default::default() };
        if client.commit(request).await.is_err() {
            break;
        }
        told.gone.insert(key);
        told.there.insert(layer.clone());
        parent = layer;
    }
    told
}

async fn listed(client: &mut SnapshotsClient<Channel>) -> Vec<Info> {
    let mut stream = client.list(ListSnapshotsRequest::default()).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        all.extend(message.infos().unwrap());
    }
    all
}

fn directories(root: &Path) -> usize {
    std::fs::read_dir(root.join("state/snapshotter/snapshots")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_told_is_lost() {
    let root = tempfile::tempdir().unwrap();
    let mut there = BTreeSet::new();
    let mut gone = BTreeSet::new();
    for round in 0..ROUNDS {
        let mut node = Node::start(root.path());
        let client = node.connect().await;
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| tokio::spawn(work(client.clone(), format!("{round}/{worker}"))))
            .collect();
        // Spread over everything that a round does, and never at the same place twice.
        tokio::time::sleep(Duration::from_micros(1_000 + round * 7_919)).await;
        node.child.kill().unwrap();
        for worker in workers {
            let told = worker.await.unwrap();
            there.extend(told.there);
            gone.extend(told.gone);
        }
        drop(node);

        let mut node = Node::start(root.path());
        let mut client = node.connect().await;
        let infos = listed(&mut client).await;
        let names: BTreeSet<_> = infos.iter().map(|info| info.name.clone()).collect();
        let lost: Vec<_> = there.difference(&names).collect();
        assert!(lost.is_empty(), "round {round}: lost {lost:?}");
        let risen: Vec<_> = gone.intersection(&names).collect();
        assert!(risen.is_empty(), "round {round}: back again {risen:?}");
        for info in infos.iter().filter(|info| !info.parent.is_empty()) {
            assert!(names.contains(&info.parent), "round {round}: {info:?} is an orphan");
        }
        client.cleanup(CleanupRequest::default()).await.unwrap();
        assert_eq!(directories(root.path()), names.len(), "round {round}: one directory each");
        for info in infos.iter().filter(|info| info.kind() == Kind::Active) {
            let key = info.name.clone();
            let mounts = client.mounts(MountsRequest { key, ..Default::default() }).await.unwrap();
            check_mount(&mounts.into_inner().mounts[0]);
        }
        node.signal("KILL");
        there = names;
    }
    assert!(there.len() > 20, "the kills came too early to mean anything: {}", there.len());
}

/// Every directory that a mount names is there.
fn check_mount(mount: &spanfs_snapshotter::grpc::proto::types::Mount) {
    let named = mount
        .options
        .iter()
        .filter_map(|option| option.split_once("dir="))
        .flat_map(|(_, d)| d.split(':'));
    let bind = Some(mount.source.as_str()).filter(|_| mount.r#type == "bind");
    for path in named.chain(bind) {
        assert!(Path::new(path).is_dir(), "{path} of {mount:?}");
    }
}
