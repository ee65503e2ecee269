//! Calls of a real containerd, recorded between it and the peer, made again to us.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::*;

/// The peer's state directory in the recordings.
const THEIR_ROOT: &str = "$ROOT/soci/snapshotter/snapshots/";

fn recorded(name: &str) -> Vec<Value> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/grpc");
    let text = std::fs::read_to_string(format!("{directory}/{name}.jsonl")).unwrap();
    let lines = text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap());
    let mut calls: Vec<Value> = lines.collect();
    calls.sort_by_key(|call| call["seq"].as_u64());
    calls
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn label_map(value: &Value) -> BTreeMap<String, String> {
    let labels = value.as_object().into_iter().flatten();
    labels.map(|(key, value)| (key.clone(), text(value))).collect()
}

/// Mounts as the recordings write them, with snapshot ids in order of their appearance.
struct Ids {
    root: String,
    seen: HashMap<String, usize>,
}

impl Ids {
    fn new(root: String) -> Self {
        Self { root, seen: HashMap::new() }
    }

    fn mounts(&mut self, mounts: &[(String, String, Vec<String>)]) -> Value {
        let mut shape = |text: &str| {
            let parts = text.split(&self.root).enumerate().map(|(index, part)| {
                if index == 0 {
                    return part.to_owned();
                }
                let (id, rest) = part.split_once('/').unwrap();
                let count = self.seen.len();
                let id = *self.seen.entry(id.to_owned()).or_insert(count);
                format!("@{id}/{rest}")
            });
            parts.collect::<String>()
        };
        let mounts = mounts.iter().map(|(fs_type, source, options)| {
            let options: Vec<_> = options.iter().map(|option| shape(option)).collect();
            json!({ "type": fs_type, "source": shape(source), "options": options })
        });
        mounts.collect()
    }
}

fn their_mounts(response: &Value) -> Vec<(String, String, Vec<String>)> {
    let mounts = response["mounts"].as_array().unwrap().iter();
    let options = |mount: &Value| mount["options"].as_array().unwrap().iter().map(text).collect();
    mounts.map(|mount| (text(&mount["type"]), text(&mount["source"]), options(mount))).collect()
}

fn our_mounts(mounts: Vec<crate::grpc::proto::types::Mount>) -> Vec<(String, String, Vec<String>)> {
    mounts.into_iter().map(|mount| (mount.r#type, mount.source, mount.options)).collect()
}

/// What of an `Info` is the same whoever serves it.
fn our_info(info: Info) -> Value {
    let kind = info.kind().as_str_name();
    let mut value = json!({ "name": info.name, "kind": kind, "labels": info.labels });
    if !info.parent.is_empty() {
        value["parent"] = info.parent.into();
    }
    value
}

fn their_info(info: &Value) -> Value {
    let keep = ["name", "parent", "kind", "labels"];
    let fields = info.as_object().unwrap().iter().filter(|(key, _)| keep.contains(&key.as_str()));
    let mut info: Map<String, Value> = fields.map(|(k, v)| (k.clone(), v.clone())).collect();
    info.entry("labels").or_insert_with(|| json!({}));
    if let Some(labels) = info["labels"].as_object_mut() {
        // The peer's own; what we will need to mount a layer again is ours to choose.
        labels.remove("containerd.io/snapshot/remote/namespace");
    }
    Value::Object(info)
}

/// Makes one call and compares what both answered.
async fn replay(node: &mut Node, call: &Value, ours: &mut Ids, theirs: &mut Ids) {
    let r = &call["request"];
    let (key, parent) = (text(&r["key"]), text(&r["parent"]));
    let labels = label_map(&r["labels"]);
    let client = &mut node.client;
    let mut mounts = None;
    match call["method"].as_str().unwrap() {
        "Prepare" => {
            let request = PrepareSnapshotRequest { key, parent, labels, ..Default::default() };
            mounts = Some(client.prepare(request).await.unwrap().into_inner().mounts);
        }
        "View" => {
            let request = ViewSnapshotRequest { key, parent, labels, ..Default::default() };
            mounts = Some(client.view(request).await.unwrap().into_inner().mounts);
        }
        "Mounts" => {
            let request = MountsRequest { key, ..Default::default() };
            mounts = Some(client.mounts(request).await.unwrap().into_inner().mounts);
        }
        "Commit" => {
            let name = text(&r["name"]);
            let request = CommitSnapshotRequest { name, key, labels, parent, ..Default::default() };
            client.commit(request).await.unwrap();
        }
        "Remove" => assert_eq!(node.remove(&key).await, Code::Ok, "{call}"),
        "Cleanup" => drop(client.cleanup(CleanupRequest::default()).await.unwrap()),
        "Stat" => {
            let info = our_info(node.stat(&key).await.unwrap());
            assert_eq!(info, their_info(&call["response"]["info"]), "{call}");
        }
        "List" => {
            let ours: Vec<String> = node.list(&[]).await.unwrap().concat();
            let theirs = call["response"]["info"].as_array().unwrap().iter();
            let mut theirs: Vec<_> = theirs.map(|info| text(&info["name"])).collect();
            theirs.sort();
            assert_eq!(ours, theirs, "{call}");
        }
        other => panic!("{other} is not replayed"),
    }
    if let Some(mounts) = mounts {
        let ours = ours.mounts(&our_mounts(mounts));
        assert_eq!(ours, theirs.mounts(&their_mounts(&call["response"])), "{call}");
    }
}

#[tokio::test]
async fn a_plain_image_is_pulled_and_run_as_with_the_peer() {
    let mut node = Node::start().await;
    let root = format!("{}/snapshotter/snapshots/", node._root.path().display());
    let (mut ours, mut theirs) = (Ids::new(root), Ids::new(THEIR_ROOT.to_owned()));
    for name in ["plain", "plain-run"] {
        let calls = recorded(name);
        assert!(calls.len() > 5, "{name}");
        for call in calls {
            replay(&mut node, &call, &mut ours, &mut theirs).await;
        }
    }
}
