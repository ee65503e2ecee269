//! Hosts of a registry, in their order.

use std::path::Path;

use super::*;
use crate::Class;

fn with_hosts(dir: &Path, text: &str) -> RegistryOptions {
    let hosts = dir.join("r.example");
    std::fs::create_dir(&hosts).unwrap();
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    RegistryOptions { hosts_dirs: vec![dir.to_owned()], ..options() }
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_told_for_whom() {
    let mirror = Server::start(|_, _| manifest_reply()).await;
    let dir = tempfile::tempdir().unwrap();
    let text = format!("[host.\"http://{}/cache\"]", mirror.host());
    repository(with_hosts(dir.path(), &text), "r.example").manifest("t").await.unwrap();
    assert_eq!(mirror.lines(), ["GET /cache/v2/a/b/manifests/t?ns=r.example"]);
}

#[tokio::test]
async fn failing_mirrors_are_passed_over() {
    for fault in [
        reply(404, &[], ""),
        reply(403, &[], ""),
        reply(401, &[], ""),
        reply(500, &[], ""),
        reply(200, &[], "<html>"),
        Reply::Cut(Vec::new()),
        Reply::Stall(Vec::new()),
    ] {
        let case = format!("{fault:?}");
        let mirror = Server::start(move |_, _| fault.clone()).await;
        let origin = Server::start(|_, _| manifest_reply()).await;
        let dir = tempfile::tempdir().unwrap();
        let text =
            format!("server = \"http://{}\"\n[host.\"http://{}\"]", origin.host(), mirror.host());
        let found = repository(with_hosts(dir.path(), &text), "r.example").manifest("t").await;
        found.unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!((mirror.seen().len(), origin.seen().len()), (1, 1), "{case}");
    }
}

#[tokio::test]
async fn a_dead_mirror_is_left_alone_for_a_while() {
    let mirror = Server::start(|_, _| Reply::Stall(Vec::new())).await;
    let origin = Server::start(|_, _| manifest_reply()).await;
    let dir = tempfile::tempdir().unwrap();
    let text =
        format!("server = \"http://{}\"\n[host.\"http://{}\"]", origin.host(), mirror.host());
    let repository = repository(with_hosts(dir.path(), &text), "r.example");
    for _ in 0..3 {
        repository.manifest("t").await.unwrap();
    }
    assert_eq!((mirror.seen().len(), origin.seen().len()), (1, 3));
}

#[tokio::test]
async fn capabilities_are_kept() {
    let mirror = Server::start(|_, _| reply(200, &[], "blob")).await;
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "capabilities = []\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]",
        mirror.host()
    );
    let repository = repository(with_hosts(dir.path(), &text), "r.example");
    repository.blob_bytes(&spanfs_layer::Digest::of(b"blob"), 10).await.unwrap();
    let error = repository.manifest("t").await.unwrap_err();
    assert!(error.to_string().contains("no configured host has the capability Resolve"), "{error}");
    assert_eq!(mirror.seen().len(), 1);
}

#[tokio::test]
async fn when_all_fail_each_is_told() {
    let mirror = Server::start(|_, _| reply(403, &[], "")).await;
    let origin = Server::start(|_, _| reply(404, &[], "")).await;
    let dir = tempfile::tempdir().unwrap();
    let text =
        format!("server = \"http://{}\"\n[host.\"http://{}\"]", origin.host(), mirror.host());
    let error =
        repository(with_hosts(dir.path(), &text), "r.example").manifest("t").await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("403 forbidden") && text.contains("not found"), "{text}");
    assert_eq!(error.class(), Class::Gone);
}
