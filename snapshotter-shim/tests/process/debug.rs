//! What operators ask a running daemon, and settings that change under it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use spanfs_registry::Registry;

use crate::node::{Node, PATIENCE};
use crate::pull::{Containerd, REMOTE, can_mount, image};
use crate::scene::{Root, Scene, start, start_with};

/// The answer to a GET, without its head.
pub(crate) fn get(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{path}: {text}");
    text.split_once("\r\n\r\n").unwrap().1.to_owned()
}

pub(crate) fn json(node: &Node, path: &str) -> Value {
    let text = get(&node.socket.with_extension("debug.sock"), path);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_each_layer_and_why() {
    if !can_mount() {
        return;
    }
    let root = Root::new();
    let registry = Registry::builder().start().unwrap();
    let plain = image(&registry, "plain");
    let (node, mut containerd) = start(root.path(), "default").await;
    let labels = Containerd::labels(&plain, &plain.layers[0]);
    containerd.extract("", labels).await.unwrap().unwrap_err();
    let small = image(&registry, "v2-one-layer");
    containerd.pull(&small).await;

    let socket = node.socket.with_extension("debug.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let layers = json(&node, "/debug/layers");
    let column = |name: &str| -> Vec<String> {
        let layers = layers.as_array().unwrap();
        layers.iter().map(|layer| layer[name].as_str().unwrap_or("none").to_owned()).collect()
    };
    assert_eq!(column("decision"), ["lazy", "whole", "whole"]);
    assert_eq!(column("reason")[1], "no ztoc for layer");
    let chains: Vec<_> = small.layers.iter().map(|layer| layer.chain.clone()).collect();
    assert_eq!(column("name"), chains);
    assert!(column("shown").iter().all(|shown| shown.starts_with("Erofs")), "{layers}");
    let decisions = json(&node, "/debug/decisions");
    let first = &decisions[0];
    assert_eq!(first["outcome"], "deferred");
    assert_eq!(first["layer"], plain.layers[0].blob.to_string());
    assert!(first["reason"].as_str().unwrap().contains("no valid SOCI index found"), "{first}");
    assert!(get(&socket, "/debug/config").contains("mount_timeout_sec = 30"));
    assert!(get(&socket, "/debug/metrics").contains("spanfs_layers 3"));
    assert!(get(&socket, "/debug").contains("/debug/layers"));

    // The decision is still known after a restart.
    node.signal("TERM");
    drop(node.wait());
    assert!(!socket.exists(), "a clean end leaves no socket");
    let (node, _containerd) = start(root.path(), "default").await;
    assert_eq!(json(&node, "/debug/layers")[1]["reason"], "no ztoc for layer");
    // Also about the layer that we do not show.
    assert_eq!(json(&node, "/debug/decisions"), decisions);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_reloaded_as_far_as_they_can() {
    let off = "[pull_modes.soci_v2]\nenable = false\n";
    let Some(scene) = Scene::new("v2", off).await else { return };
    let Scene { root, registry: _registry, image, node, mut containerd } = scene;
    let labels = Containerd::labels(&image, &image.layers[0]);
    containerd.extract("", labels.clone()).await.unwrap().expect_err("left to containerd");

    let config = root.path().join("config.toml");
    let socket = node.socket.with_extension("debug.sock");
    let reload = |text: &str, wanted: &str| {
        fs::write(&config, format!("skip_check_snapshotter_supported = true\n{text}")).unwrap();
        node.signal("HUP");
        let end = Instant::now() + PATIENCE;
        while !get(&socket, "/debug/config").contains(wanted) {
            assert!(Instant::now() < end, "{wanted} is not in force");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    reload("[pull_modes.soci_v2]\nenable = true\n", "[pull_modes.soci_v2]\n    enable = true");
    let name = containerd.extract("", labels).await.unwrap().expect("the layer is shown now");
    assert!(containerd.stat(&name).await.labels.contains_key(REMOTE));
    // What is wrong changes nothing, and what must wait says so.
    fs::write(&config, "nonsense = 1").unwrap();
    node.signal("HUP");
    // The log is read at the end, so that nothing but time tells that the signal has arrived.
    std::thread::sleep(Duration::from_millis(500));
    fs::write(&config, "max_concurrency = 7\nmetrics_address = \"/x\"\n").unwrap();
    node.signal("HUP");
    std::thread::sleep(Duration::from_millis(500));
    node.signal("TERM");
    let (status, log) = node.wait();
    assert!(status.success(), "{log}");
    let said = |text: &str| assert!(log.contains(text), "{text} is not in {log}");
    said("settings reloaded");
    said("\"changed\":\"pull_modes.soci_v2.enable\"");
    said("unknown key nonsense");
    said("settings are not reloaded; the old ones stay");
    said("a changed setting takes effect with the next start");
    said("\"key\":\"metrics_address\"");
}

/// Lists of spans to fetch first are followed where the settings say so, and only there.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_index_wants_first_is_fetched_first() {
    if !can_mount() {
        return;
    }
    let registry = Registry::builder().start().unwrap();
    let image = image(&registry, "v2-prefetch");
    let list = "sha256:a8dbfe1d73cd03dd0dd111c97b5873844115f06c0dc875e700c3f20b1d03fb1a";
    let list = list.parse().unwrap();
    for enable in [false, true] {
        let root = Root::new();
        let settings =
            format!("[background_fetch]\ndisable = true\n[prefetch]\nenable = {enable}\n");
        let (node, mut containerd) = start_with(root.path(), "default", &settings).await;
        containerd.pull(&image).await;
        let present = || {
            let layers = json(&node, "/debug/layers");
            let present = |layer: &Value| layer["spans_present"].as_u64().unwrap_or(0);
            layers.as_array().unwrap().iter().map(present).sum::<u64>()
        };
        if enable {
            let end = Instant::now() + PATIENCE;
            while present() == 0 {
                assert!(Instant::now() < end, "nothing is fetched");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        // The start of the image's program has spans fetched either way.
        let asked = registry.stats().blob(&list).len();
        assert_eq!(asked > 0, enable, "the list is asked for where the settings say so");
    }
}
