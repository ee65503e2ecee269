//! Images that want credentials.

use std::fs;

use spanfs_layer::Digest;
use spanfs_registry::{Auth, Credentials, Registry};

use crate::cri::Cri;
use crate::image::{Image, Layer, noise};
use crate::lazy::{V1_ONLY, assert_lazy};
use crate::node::{CONTAINERD_SOCKET, DAEMON_SOCKET, Node, Setup};
use crate::versions::{Version, on_each_containerd};

on_each_containerd!(
    image_with_credentials_of_docker_is_lazy,
    image_with_credentials_of_its_pull_is_lazy,
    image_with_credentials_of_containerd_alone_runs,
);

fn registry() -> Registry {
    let auth = Auth::Basic(Credentials::new("user", "secret"));
    Registry::builder().auth(auth).start().expect("a registry")
}

fn push(registry: &Registry) -> String {
    let files = Layer::new().file("data", 0o644, &noise(50, 3 << 20));
    Image::with_programs().layer(files).push_indexed(registry, "test/private", "v1").0
}

fn pull(node: &Node, reference: &str, image_socket: &str) {
    let mut cri = Cri::connect(node, image_socket);
    cri.pull(reference, None).expect_err("nobody gets it without a password");
    cri.pull(reference, Some(("user", "secret"))).expect("the password is right");
}

fn image_with_credentials_of_docker_is_lazy(version: Version) {
    let registry = registry();
    let reference = push(&registry);
    let node = Node::start(&Setup { config: V1_ONLY, ..Setup::of(version) });
    let login = serde_json::json!({
        "auths": {registry.addr().to_string(): {"auth": "dXNlcjpzZWNyZXQ="}}
    });
    fs::write(node.path("home/.docker/config.json"), login.to_string()).expect("write");
    pull(&node, &reference, CONTAINERD_SOCKET);
    assert_lazy(&node, 2);
    assert_eq!(node.within("k8s.io").run(&reference, "once", &[]), "ready\n");
}

/// The kubelet asks us for images; what it gives containerd's service passes by.
fn image_with_credentials_of_its_pull_is_lazy(version: Version) {
    let registry = registry();
    let reference = push(&registry);
    let config = format!("{V1_ONLY}[cri_keychain]\n  enable_keychain = true\n");
    let node = Node::start(&Setup { config: &config, ..Setup::of(version) });
    pull(&node, &reference, DAEMON_SOCKET);
    assert_lazy(&node, 2);
    assert_eq!(node.within("k8s.io").run(&reference, "once", &["/bin/sha256sum", "/data"]), {
        let digest = Digest::of(&noise(50, 3 << 20));
        format!("{}  /data\n", digest.hex())
    });
    for log in ["daemon", "containerd"] {
        let text = node.read_log(log);
        assert!(!text.contains("secret") && !text.contains("dXNlcjpzZWNyZXQ"), "{log}: {text}");
    }
}

/// We can't fetch for ourselves, so containerd has to: what it was given never reaches us.
fn image_with_credentials_of_containerd_alone_runs(version: Version) {
    let registry = registry();
    let reference = push(&registry);
    let node = Node::start(&Setup { config: V1_ONLY, ..Setup::of(version) });
    pull(&node, &reference, CONTAINERD_SOCKET);
    assert_lazy(&node, 0);
    assert_eq!(node.within("k8s.io").run(&reference, "once", &[]), "ready\n");
    for log in ["daemon", "containerd"] {
        let text = node.read_log(log);
        assert!(!text.contains("secret") && !text.contains("dXNlcjpzZWNyZXQ"), "{log}: {text}");
    }
}
