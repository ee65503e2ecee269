//! What people ask on a node: is it well, and why is this layer not lazy?

use rustix::process::Signal;
use serde_json::Value;
use spanfs_registry::Registry;
use spanfs_tests::peers::{DockerRegistry, Guarded, able};

use crate::image::{Image, Layer};
use crate::lazy::{V1_ONLY, image, pull_by_cri};
use crate::node::{Node, Setup};
use crate::versions::{Version, on_each_containerd};

on_each_containerd!(doctor_knows_a_node_that_is_well, why_tells_how_each_layer_comes);

/// What `spanfs` says in JSON, and its exit status.
fn spanfs(node: &Node, arguments: &[&str]) -> (Option<i32>, Value) {
    let ended = node.run("spanfs", &[&["--json"], arguments].concat());
    let said = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
    (ended.status.code(), said)
}

/// Changes the daemon's settings, which nobody has read again.
fn set(node: &Node, text: &str) {
    let script = "printf %s \"$1\" > /etc/soci-snapshotter-grpc/config.toml";
    let ended = node.run("sh", &["-c", script, "sh", text]);
    assert!(ended.status.success(), "{ended:?}");
}

fn verdict<'v>(said: &'v Value, about: &str) -> Option<&'v str> {
    let rows = said["findings"].as_array().expect("findings").iter();
    rows.into_iter().find(|row| row["about"] == about)?["verdict"].as_str()
}

fn doctor_knows_a_node_that_is_well(version: Version) {
    if !able(&["docker-registry"], false) {
        return;
    }
    let registry = DockerRegistry::start(&Guarded::default());
    let node = Node::start(&Setup::of(version));
    let (status, said) = spanfs(&node, &["doctor", "--plain-http", &registry.address]);
    assert_eq!((status, &said["ok"]), (Some(0), &Value::Bool(true)), "{said}");
    for about in
        ["fuse", "overlayfs", "front", "snapshotter", "settings", "containerd", "registry", "clock"]
    {
        assert_eq!(verdict(&said, about), Some("ok"), "{about}: {said}");
    }
    for about in ["kernel", "io_uring", "disk"] {
        assert!(verdict(&said, about).is_some(), "{about}: {said}");
    }
    let rows = said["findings"].as_array().expect("findings");
    let transport = rows.iter().find(|row| row["about"] == "transport").expect("a transport");
    let found = transport["found"].as_str().expect("text");
    assert!(found.starts_with("dev: ") && found.contains("successor"), "{said}");
    node.stop_daemon(Signal::TERM);
    set(&node, "metrics_adress = 'x'\n");
    let (status, said) = spanfs(&node, &["doctor", "--plain-http", "127.0.0.1:1"]);
    assert_eq!((status, &said["ok"]), (Some(1), &Value::Bool(false)), "{said}");
    for about in ["snapshotter", "settings", "registry"] {
        assert_eq!(verdict(&said, about), Some("fault"), "{about}: {said}");
    }
    assert!(said.to_string().contains("did you mean metrics_address?"), "{said}");
}

fn why_tells_how_each_layer_comes(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let image = image();
    let (indexed, _) = image.push_indexed(&registry, "test/lazy", "v2");
    let plain = image.push(&registry, "test/plain", "1");
    let (pushed, _) = image.push_indexed(&registry, "test/pushed", "v1");
    let node = Node::start(&Setup::of(version));
    let why = |name: &str| {
        let (status, said) = spanfs(&node, &["why", name]);
        assert_eq!(status, Some(0), "{said}");
        said["layers"].as_array().expect("layers").clone()
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows = why(&indexed);
    assert_eq!(
        rows.iter().map(|row| text(&row["comes"])).collect::<Vec<_>>(),
        ["lazy", "lazy", "whole"]
    );
    assert!(rows.iter().all(|row| text(&row["here"]).starts_with("no snapshot")), "{rows:?}");
    pull_by_cri(&node, &indexed);
    let rows = why(&indexed);
    for (row, how) in rows.iter().zip(["lazy", "lazy", "whole"]) {
        assert!(text(&row["here"]).contains(&format!(" shows it, {how}: ")), "{row}");
    }
    // One that has no index, and was pulled.
    let other = Layer::new().file("other", 0o644, b"other");
    let other = Image::with_programs().layer(other).push(&registry, "test/other", "1");
    pull_by_cri(&node, &other);
    let rows = why(&other);
    let here = text(&rows[1]["here"]);
    assert!(here.starts_with("deferred when it was pulled: "), "{here}");
    assert!(here.contains("no valid SOCI index found"), "{here}");
    for row in why(&plain) {
        assert_eq!(row["comes"], "containerd", "{row}");
    }
    // Its index would have to be looked for, and that is off.
    for row in why(&pushed) {
        assert_eq!(row["comes"], "containerd", "{row}");
        assert!(text(&row["because"]).contains("soci_v1 is off"), "{row}");
    }
    set(&node, V1_ONLY);
    // The daemon still goes by what it has read; without one the file counts.
    assert_eq!(why(&pushed)[1]["comes"], "containerd");
    node.stop_daemon(Signal::TERM);
    assert_eq!(why(&pushed)[1]["comes"], "lazy");
    let parallel =
        "[content_store]\ntype = 'containerd'\n[pull_modes.parallel_pull_unpack]\nenable = true\n";
    set(&node, parallel);
    assert!(why(&indexed).iter().all(|row| row["comes"] == "parallel"));
}
