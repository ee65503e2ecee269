//! Calls of real containerds, recorded between them and the peer, made again to our daemon in the order of
//! the recording: equal codes, mounts of equal shape, equal labels.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use serde_json::{Map, Value, json};
use spanfs_layer::Digest;
use spanfs_registry::Registry;
use spanfs_snapshotter::grpc::proto::snapshots::snapshots_client::SnapshotsClient;
use spanfs_snapshotter::grpc::proto::snapshots::*;
use spanfs_snapshotter::grpc::proto::types::Mount;
use spanfs_tests::peers::fixture;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::lazy::{V1_ONLY, assert_lazy};
use crate::node::{DAEMON_SOCKET, Node, Setup};
use crate::versions::Version;

/// Where the recordings' registry was.
const THEIR_REGISTRY: &str = "127.0.0.1:5077";
/// The peer's state directory in the recordings.
const THEIR_ROOT: &str = "$ROOT/soci/snapshotter/snapshots/";
const OUR_ROOT: &str = "/var/lib/soci-snapshotter-grpc/snapshotter/snapshots/";
/// What the peer says itself of a remote snapshot; which namespace it was for is of no use to others.
const NAMESPACE_LABEL: &str = "containerd.io/snapshot/remote/namespace";

#[test]
fn a_plain_image_is_pulled_and_run() {
    with_node("plain", "plain", "", |replay| replay.all(&["plain", "plain-run"]));
}

#[test]
fn a_converted_image_is_pulled_run_and_removed_over_a_restart() {
    with_node("v2", "v2", "", |replay| {
        replay.all(&["lazy-v2"]);
        assert_lazy(replay.node, 3);
        replay.all(&["run", "ctr-run", "usage-and-list", "lazy-v2-again"]);
        replay.node.stop_daemon(rustix::process::Signal::TERM);
        replay.node.start_daemon();
        replay.connect();
        replay.all(&["restart-run", "rm"]);
        assert_lazy(replay.node, 0);
        assert!(replay.node.directories().is_empty(), "{:?}", replay.node.directories());
    });
}

#[test]
fn an_image_with_a_pushed_index_is_pulled() {
    with_node("v1lazy", "v1", V1_ONLY, |replay| {
        replay.all(&["lazy-v1-digest"]);
        assert_lazy(replay.node, 3);
    });
}

/// The peer refuses them, for containerd 1.6 names no namespace. It stands in the key.
#[test]
fn calls_without_a_namespace_are_lazy_too() {
    for (name, layout, recording, config) in [
        ("v2", "v2", "containerd1-lazy-v2", ""),
        ("v1lazy", "v1", "containerd1-lazy-v1-digest", V1_ONLY),
    ] {
        with_node(name, layout, config, |replay| {
            let calls = replay.recorded(recording);
            assert_eq!(calls.len(), 1, "the peer's refusal ended it");
            let answer = replay.call(&calls[0]);
            assert_eq!(answer.unwrap_err().code(), Code::AlreadyExists, "{recording}");
            assert_lazy(replay.node, 1);
        });
    }
}

fn with_node(name: &str, layout: &str, config: &str, work: impl FnOnce(&mut Replay<'_>)) {
    // Any containerd will do: it only stands beside.
    if !Version::One.is_here() {
        return;
    }
    let registry = Registry::builder().start().expect("a registry");
    serve(&registry, &format!("fx/{name}"), layout);
    let node = Node::start(&Setup { config, ..Setup::of(Version::One) });
    work(&mut Replay::new(&node, registry.addr().to_string()));
}

/// Puts a golden image into the registry; an index of version 1 lies beside the plain image.
fn serve(registry: &Registry, repository: &str, name: &str) {
    let image = fixture("images").join(if name == "v1" { "plain" } else { name });
    registry.put_image(repository, &image).expect("a layout");
    let index = fs::read(image.join("index.json")).expect("an index");
    let index: Value = serde_json::from_slice(&index).expect("JSON");
    let root: Digest = index["manifests"][0]["digest"].as_str().unwrap().parse().expect("a digest");
    registry.tag(repository, "1", root).expect("it is there");
    if name != "v1" {
        return;
    }
    for blob in fs::read_dir(fixture("images/v1/blobs/sha256")).expect("blobs") {
        let bytes = fs::read(blob.expect("a blob").path()).expect("a blob");
        if bytes.starts_with(b"{\"") && bytes.len() > 2 {
            let media_type = "application/vnd.oci.image.manifest.v1+json";
            registry.put_manifest(repository, None, media_type, bytes).expect("an index");
        } else {
            registry.put_blob(repository, bytes).expect("a zTOC");
        }
    }
}

/// One daemon that gets the calls.
struct Replay<'n> {
    node: &'n Node,
    registry: String,
    runtime: tokio::runtime::Runtime,
    client: SnapshotsClient<Channel>,
    ours: Ids,
    theirs: Ids,
}

/// What a call comes to, as the recordings write it.
type Answer = Result<Value, Status>;

impl<'n> Replay<'n> {
    fn new(node: &'n Node, registry: String) -> Self {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client = client(&runtime, node);
        let (ours, theirs) = (Ids::below(OUR_ROOT), Ids::below(THEIR_ROOT));
        Self { node, registry, runtime, client, ours, theirs }
    }

    /// To a daemon that was started again.
    fn connect(&mut self) {
        self.client = client(&self.runtime, self.node);
    }

    fn recorded(&self, name: &str) -> Vec<Value> {
        let path = fixture(&format!("grpc/{name}.jsonl"));
        let text = fs::read_to_string(path).expect("a recording");
        let text = text.replace(THEIR_REGISTRY, &self.registry);
        let lines = text.lines().skip(1).map(|line| serde_json::from_str(line).expect("JSON"));
        let mut calls: Vec<Value> = lines.collect();
        calls.sort_by_key(|call| call["seq"].as_u64());
        calls
    }

    fn all(&mut self, names: &[&str]) {
        for name in names {
            let calls = self.recorded(name);
            assert!(calls.len() > 2, "{name}");
            for call in &calls {
                let ours = self.call(call);
                self.compare(name, call, ours);
            }
        }
    }

    fn compare(&mut self, name: &str, call: &Value, ours: Answer) {
        let code = call["error"]["code"].as_str();
        let ours = match (ours, code) {
            (Ok(ours), None) => ours,
            (Err(status), Some(code)) => {
                assert_eq!(format!("{:?}", status.code()), code, "{name}: {call}");
                return;
            }
            (ours, _) => panic!("{name}: {ours:?} to {call}"),
        };
        let theirs = &call["response"];
        match call["method"].as_str().unwrap_or_default() {
            "Prepare" | "View" | "Mounts" => {
                let (ours, theirs) = (self.ours.mounts(&ours), self.theirs.mounts(theirs));
                assert_eq!(ours, theirs, "{name}: {call}");
            }
            "Stat" => assert_eq!(ours["info"], info(&theirs["info"]), "{name}: {call}"),
            "List" => {
                let mut theirs: Vec<_> = rows(theirs, "info").map(info).collect();
                theirs.sort_by_key(|info| info["name"].to_string());
                assert_eq!(ours["info"], Value::Array(theirs), "{name}: {call}");
            }
            _ => {}
        }
    }

    fn call(&mut self, call: &Value) -> Answer {
        let r = &call["request"];
        let headers = call["headers"].as_object().cloned().unwrap_or_default();
        let (snapshotter, key, parent) =
            (text(&r["snapshotter"]), text(&r["key"]), text(&r["parent"]));
        let labels: BTreeMap<String, String> = r["labels"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), text(v)))
            .collect();
        let client = &mut self.client;
        fn with<T>(headers: &Map<String, Value>, message: T) -> Request<T> {
            let mut request = Request::new(message);
            for (name, value) in headers.iter().filter(|(name, _)| *name == "containerd-namespace")
            {
                let name = tonic::metadata::AsciiMetadataKey::from_bytes(name.as_bytes());
                let value: AsciiMetadataValue = text(value).parse().expect("a header's value");
                request.metadata_mut().insert(name.expect("a header's name"), value);
            }
            request
        }
        self.runtime.block_on(async {
            Ok(match call["method"].as_str().unwrap_or_default() {
                "Prepare" => {
                    let message = PrepareSnapshotRequest { snapshotter, key, parent, labels };
                    mounts(client.prepare(with(&headers, message)).await?.into_inner().mounts)
                }
                "View" => {
                    let message = ViewSnapshotRequest { snapshotter, key, parent, labels };
                    mounts(client.view(with(&headers, message)).await?.into_inner().mounts)
                }
                "Mounts" => {
                    let message = MountsRequest { snapshotter, key };
                    mounts(client.mounts(with(&headers, message)).await?.into_inner().mounts)
                }
                "Commit" => {
                    let name = text(&r["name"]);
                    let message = CommitSnapshotRequest { snapshotter, name, key, labels, parent };
                    client.commit(with(&headers, message)).await?;
                    Value::Null
                }
                "Remove" => {
                    client
                        .remove(with(&headers, RemoveSnapshotRequest { snapshotter, key }))
                        .await?;
                    Value::Null
                }
                "Cleanup" => {
                    client.cleanup(with(&headers, CleanupRequest { snapshotter })).await?;
                    Value::Null
                }
                "Usage" => {
                    client.usage(with(&headers, UsageRequest { snapshotter, key })).await?;
                    Value::Null
                }
                "Stat" => {
                    let message = StatSnapshotRequest { snapshotter, key };
                    let found = client.stat(with(&headers, message)).await?.into_inner();
                    json!({ "info": our_info(found.info.unwrap_or_default()) })
                }
                "List" => {
                    let filters = rows(r, "filters").map(text).collect();
                    let message = ListSnapshotsRequest { snapshotter, filters };
                    let mut stream = client.list(with(&headers, message)).await?.into_inner();
                    let mut found = Vec::new();
                    while let Some(message) = stream.message().await? {
                        let infos = message.infos().expect("entries");
                        found.extend(infos.into_iter().map(our_info));
                    }
                    found.sort_by_key(|info| info["name"].to_string());
                    json!({ "info": found })
                }
                other => panic!("{other} is not replayed"),
            })
        })
    }
}

fn client(runtime: &tokio::runtime::Runtime, node: &Node) -> SnapshotsClient<Channel> {
    let socket = format!("unix://{}", node.path(DAEMON_SOCKET).display());
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(socket).expect("a socket's path");
        SnapshotsClient::new(endpoint.connect().await.expect("the daemon listens"))
    })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn rows<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = &'v Value> {
    value[name].as_array().into_iter().flatten()
}

fn mounts(mounts: Vec<Mount>) -> Value {
    let mounts = mounts.into_iter().map(
        |mount| json!({ "type": mount.r#type, "source": mount.source, "options": mount.options }),
    );
    json!({ "mounts": mounts.collect::<Vec<_>>() })
}

/// What of an `Info` is the same whoever serves it.
fn info(info: &Value) -> Value {
    let mut kept = json!({ "labels": {} });
    for name in ["name", "parent", "kind", "labels"] {
        if let Some(value) = info.get(name).filter(|value| **value != json!("")) {
            kept[name] = value.clone();
        }
    }
    kept["labels"].as_object_mut().map(|labels| labels.remove(NAMESPACE_LABEL));
    kept
}

fn our_info(found: Info) -> Value {
    let kind = found.kind().as_str_name();
    info(
        &json!({ "name": found.name, "parent": found.parent, "kind": kind, "labels": found.labels }),
    )
}

/// Ids of snapshots in the order of their appearance: both sides count in their own way.
struct Ids {
    root: &'static str,
    seen: HashMap<String, usize>,
}

impl Ids {
    fn below(root: &'static str) -> Self {
        Self { root, seen: HashMap::new() }
    }

    fn mounts(&mut self, answer: &Value) -> Value {
        let mut shape = |text: &Value| {
            let text = text.as_str().unwrap_or_default();
            let parts = text.split(self.root).enumerate().map(|(index, part)| {
                let Some((id, rest)) = part.split_once('/').filter(|_| index > 0) else {
                    return part.to_owned();
                };
                let count = self.seen.len();
                format!("@{}/{rest}", self.seen.entry(id.to_owned()).or_insert(count))
            });
            parts.collect::<String>()
        };
        let shaped = rows(answer, "mounts").map(|mount| {
            // As containerd's own overlay snapshotter, and unlike the peer, we say it where the kernel knows it.
            let options = rows(mount, "options").filter(|option| **option != json!("index=off"));
            let options: Vec<_> = options.map(&mut shape).collect();
            json!({ "type": mount["type"], "source": shape(&mount["source"]), "options": options })
        });
        shaped.collect()
    }
}
