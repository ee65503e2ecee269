use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use prost_types::{FieldMask, Timestamp};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Server};

use super::proto::snapshots::snapshots_client::SnapshotsClient;
use super::proto::snapshots::*;
use super::{SnapshotsService, server};
use crate::snapshotter::Snapshotter;

const REF: &str = "containerd.io/snapshot.ref";

struct Node {
    client: SnapshotsClient<Channel>,
    _root: TempDir,
}

impl Node {
    async fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        let client = serve(root.path()).await;
        Self { client, _root: root }
    }

    async fn prepare(&mut self, key: &str, parent: &str, labels: &[(&str, &str)]) -> Code {
        let (key, parent, labels) = (key.into(), parent.into(), pairs(labels));
        let snapshotter = "soci".to_owned();
        let request = PrepareSnapshotRequest { snapshotter, key, parent, labels };
        code(self.client.prepare(request).await)
    }

    async fn view(&mut self, key: &str, parent: &str) -> Code {
        let (key, parent) = (key.into(), parent.into());
        let request = ViewSnapshotRequest { key, parent, ..Default::default() };
        code(self.client.view(request).await)
    }

    async fn commit(&mut self, name: &str, key: &str, labels: &[(&str, &str)]) -> Code {
        let (name, key, labels) = (name.into(), key.into(), pairs(labels));
        let request = CommitSnapshotRequest { name, key, labels, ..Default::default() };
        code(self.client.commit(request).await)
    }

    async fn remove(&mut self, key: &str) -> Code {
        let request = RemoveSnapshotRequest { key: key.into(), ..Default::default() };
        code(self.client.remove(request).await)
    }

    async fn stat(&mut self, key: &str) -> Result<Info, Code> {
        let request = StatSnapshotRequest { key: key.into(), ..Default::default() };
        let answer = self.client.stat(request).await.map_err(|status| status.code())?;
        Ok(answer.into_inner().info.unwrap())
    }

    async fn mounts(&mut self, key: &str) -> Code {
        let request = MountsRequest { key: key.into(), ..Default::default() };
        code(self.client.mounts(request).await)
    }

    /// Names, message by message.
    async fn list(&mut self, filters: &[&str]) -> Result<Vec<Vec<String>>, Code> {
        let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
        let request = ListSnapshotsRequest { filters, ..Default::default() };
        let mut stream =
            self.client.list(request).await.map_err(|status| status.code())?.into_inner();
        let mut messages = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            messages.push(message.infos().unwrap().into_iter().map(|info| info.name).collect());
        }
        Ok(messages)
    }
}

async fn serve(root: &Path) -> SnapshotsClient<Channel> {
    let snapshotter = Arc::new(Snapshotter::open(root, Vec::new()).unwrap());
    let socket = root.join("socket");
    let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let service = server(SnapshotsService::new(snapshotter));
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    SnapshotsClient::new(endpoint.connect().await.unwrap())
}

fn pairs(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn code<T>(answer: Result<T, tonic::Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test]
async fn codes() {
    let mut node = Node::start().await;
    assert_eq!(node.stat("x").await, Err(Code::NotFound), "nothing is there yet");
    assert_eq!(node.prepare("", "", &[]).await, Code::InvalidArgument);
    assert_eq!(node.prepare("a", "nobody", &[]).await, Code::NotFound);
    assert_eq!(node.prepare("a", "", &[]).await, Code::Ok);
    assert_eq!(node.prepare("a", "", &[]).await, Code::AlreadyExists);
    assert_eq!(node.view("a", "").await, Code::AlreadyExists);
    assert_eq!(node.prepare("b", "a", &[]).await, Code::InvalidArgument);
    assert_eq!(node.commit("A", "nobody", &[]).await, Code::NotFound);
    assert_eq!(node.commit("A", "a", &[]).await, Code::Ok);
    assert_eq!(node.commit("A", "a", &[]).await, Code::AlreadyExists);
    assert_eq!(node.commit("B", "A", &[]).await, Code::FailedPrecondition);
    assert_eq!(node.mounts("A").await, Code::FailedPrecondition);
    assert_eq!(node.mounts("nobody").await, Code::NotFound);
    assert_eq!(node.view("v", "A").await, Code::Ok);
    assert_eq!(node.commit("V", "v", &[]).await, Code::FailedPrecondition);
    assert_eq!(node.remove("A").await, Code::FailedPrecondition);
    assert_eq!(node.remove("v").await, Code::Ok);
    assert_eq!(node.remove("v").await, Code::NotFound);
    assert_eq!(node.remove("A").await, Code::Ok);
    let long = "v".repeat(4090);
    assert_eq!(node.prepare("l", "", &[("longlabel", &long)]).await, Code::InvalidArgument);
    let mapping = [
        ("containerd.io/snapshot/uidmapping", "0:1000:1"),
        ("containerd.io/snapshot/gidmapping", "1:1000:1"),
    ];
    assert_eq!(node.prepare("m", "", &mapping).await, Code::InvalidArgument);
    assert_eq!(node.list(&["kind="]).await, Err(Code::InvalidArgument));
    assert_eq!(code(node.client.cleanup(CleanupRequest::default()).await), Code::Ok);
}

#[tokio::test]
async fn a_parent_with_children_stays_and_says_remove() {
    let mut node = Node::start().await;
    node.prepare("a", "", &[]).await;
    node.commit("A", "a", &[]).await;
    node.prepare("b", "A", &[]).await;
    let request = RemoveSnapshotRequest { key: "A".into(), ..Default::default() };
    let status = node.client.remove(request).await.unwrap_err();
    assert!(status.message().contains("remove"), "{}", status.message());
}

#[tokio::test]
async fn an_update_changes_labels_only() {
    let mut node = Node::start().await;
    node.prepare("a", "", &[("l1", "1"), ("l2", "2")]).await;
    let before = node.stat("a").await.unwrap();
    assert_eq!(before.created_at, before.updated_at);
    // What containerd sends: kind unknown, Go's zero time, and here a wrong parent.
    let zero = Some(Timestamp { seconds: -62_135_596_800, nanos: 0 });
    let info = Info {
        name: "a".into(),
        parent: "bogus".into(),
        kind: 77,
        created_at: zero,
        updated_at: zero,
        labels: pairs(&[("l1", "x"), ("l4", "4")]),
    };
    let mut update = async |paths: &[&str]| {
        let paths = paths.iter().map(|&path| path.to_owned()).collect();
        let update_mask = Some(FieldMask { paths });
        let info = Some(info.clone());
        let request = UpdateSnapshotRequest { info, update_mask, ..Default::default() };
        node.client.update(request).await.map(|answer| answer.into_inner().info.unwrap())
    };
    assert_eq!(update(&["parent"]).await.unwrap_err().code(), Code::InvalidArgument);
    let after = update(&["labels.l1", "labels.l2"]).await.unwrap();
    assert_eq!(after.labels, pairs(&[("l1", "x")]));
    assert_eq!((&*after.parent, after.kind), ("", Kind::Active.into()));
    assert_eq!(after.created_at, before.created_at);
    let nanoseconds = |time: Option<Timestamp>| time.map(|t| (t.seconds, t.nanos));
    assert!(nanoseconds(after.updated_at) > nanoseconds(before.updated_at));
    assert_eq!(update(&[]).await.unwrap().labels, pairs(&[("l1", "x"), ("l4", "4")]));
    assert_eq!(node.stat("a").await.unwrap().labels.len(), 2);
}

#[tokio::test]
async fn a_listing_comes_in_pieces_and_allows_calls_meanwhile() {
    let mut node = Node::start().await;
    assert_eq!(node.list(&[]).await.unwrap(), Vec::<Vec<String>>::new());
    // A message ends after 64 KiB.
    let long = "x".repeat(2048);
    for index in 0..40 {
        assert_eq!(node.prepare(&format!("k/{index:03}"), "", &[("l", &long)]).await, Code::Ok);
    }
    let mut stream = node.client.list(ListSnapshotsRequest::default()).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap().infos().unwrap();
    assert_eq!(first.len(), 32);
    for info in first {
        assert_eq!(node.stat(&info.name).await.unwrap(), info);
        assert_eq!(node.remove(&info.name).await, Code::Ok);
    }
    drop(stream);
    assert_eq!(node.prepare("a", "", &[]).await, Code::Ok);
    let lens: Vec<_> = node.list(&[]).await.unwrap().iter().map(Vec::len).collect();
    assert_eq!(lens, [9]);
    assert_eq!(node.list(&["name==k/039"]).await.unwrap(), [["k/039"]]);
}

#[tokio::test]
async fn an_image_layer_is_made_once_upon_each_parent() {
    let mut node = Node::start().await;
    let base = [(REF, "sha256:b")];
    assert_eq!(node.prepare("ns1/1/extract", "", &base).await, Code::Ok);
    assert_eq!(node.commit("ns1/2/sha256:b", "ns1/1/extract", &base).await, Code::Ok);
    assert_eq!(node.prepare("ns2/1/extract", "", &base).await, Code::AlreadyExists);
    assert_eq!(node.stat("ns2/1/extract").await, Err(Code::NotFound));
    let filter = "labels.\"containerd.io/snapshot.ref\"==sha256:b,parent==\"\"";
    assert_eq!(node.list(&[filter]).await.unwrap(), [["ns1/2/sha256:b"]]);
    let upper = [(REF, "sha256:u")];
    assert_eq!(node.prepare("ns1/3/extract", "ns1/2/sha256:b", &upper).await, Code::Ok);
    assert_eq!(node.commit("ns1/4/sha256:u", "ns1/3/extract", &upper).await, Code::Ok);
    assert_eq!(node.prepare("ns2/2/extract", "", &upper).await, Code::Ok, "another parent");
    assert_eq!(node.view("ns2/3/view", "ns1/4/sha256:u").await, Code::Ok);
}
