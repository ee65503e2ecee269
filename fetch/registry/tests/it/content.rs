//! Blobs, manifests, tags, referrers, uploads.

use spanfs_layer::Digest;
use spanfs_registry::Registry;

use crate::client::{get, send};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[test]
fn ranges_of_a_blob() {
    let registry = Registry::builder().start().unwrap();
    let content: Vec<u8> = (0..=255).cycle().take(600_000).collect();
    let digest = registry.put_blob("a/b", content.clone()).unwrap();
    let path = format!("/v2/a/b/blobs/{digest}");
    let check = |range: &str, status, expected: std::ops::Range<usize>, content_range: &str| {
        let reply = send(registry.addr(), "GET", &path, &[("Range", range)], b"").unwrap();
        assert_eq!(reply.status, status, "{range}");
        assert_eq!(reply.header("content-range"), content_range, "{range}");
        if status < 400 {
            assert!(reply.body == content[expected], "{range}");
        }
    };
    check("bytes=0-0", 206, 0..1, "bytes 0-0/600000");
    check("bytes=100-599999", 206, 100..600_000, "bytes 100-599999/600000");
    check("bytes=-10", 206, 599_990..600_000, "bytes 599990-599999/600000");
    check("bytes=600000-", 416, 0..0, "bytes */600000");
    check("items=1-2", 200, 0..600_000, "");
    let stats = registry.stats();
    assert_eq!(stats.blob(&digest), [0..1, 100..600_000, 599_990..600_000, 0..600_000]);
    assert_eq!((stats.requests, stats.connections), (5, 5));
    let head = send(registry.addr(), "HEAD", &path, &[], b"").unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, "600000"));
    assert_eq!(get(registry.addr(), &path.replace("a/b", "a/c")).status, 404);
}

#[test]
fn blob_files_are_served_in_place() {
    let registry = Registry::builder().threads(2).start().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..1_000_000_u32).map(|n| (n * 7) as u8).collect();
    let path = directory.path().join("blob");
    std::fs::write(&path, &content).unwrap();
    let digest = Digest::of(&content);
    registry.put_blob_file("a", digest, &path).unwrap();
    let reply = get(registry.addr(), &format!("/v2/a/blobs/{digest}"));
    assert!(reply.body == content);
    assert!(registry.remove_blob(&digest));
    assert_eq!(get(registry.addr(), &format!("/v2/a/blobs/{digest}")).status, 404);
}

#[test]
fn uploads_in_memory_and_in_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    for builder in [Registry::builder(), Registry::builder().directory(directory.path())] {
        let registry = builder.start().unwrap();
        let addr = registry.addr();
        let digest = Digest::of(b"hello world");
        let begun = send(addr, "POST", "/v2/x/blobs/uploads/", &[], b"").unwrap();
        assert_eq!(begun.status, 202);
        let upload = begun.header("location").to_owned();
        let patched = send(addr, "PATCH", &upload, &[("Content-Range", "0-4")], b"hello").unwrap();
        assert_eq!((patched.status, patched.header("range")), (202, "0-4"));
        let gap = send(addr, "PATCH", &upload, &[("Content-Range", "9-9")], b"x").unwrap();
        assert_eq!((gap.status, gap.header("range")), (416, "0-4"));
        let wrong = Digest::of(b"other");
        let put = format!("{upload}?digest={digest}");
        assert_eq!(send(addr, "PUT", &put, &[], b" world").unwrap().status, 201);
        assert_eq!(get(addr, &format!("/v2/x/blobs/{digest}")).body, b"hello world");
        assert_eq!(send(addr, "PUT", &put, &[], b"").unwrap().status, 404, "closed");
        let single = format!("/v2/x/blobs/uploads/?digest={wrong}");
        assert_eq!(send(addr, "POST", &single, &[], b"hello").unwrap().status, 400);
        let mount = format!("/v2/y/blobs/uploads/?mount={digest}&from=x");
        assert_eq!(send(addr, "POST", &mount, &[], b"").unwrap().status, 201);
        assert_eq!(get(addr, &format!("/v2/y/blobs/{digest}")).body, b"hello world");
        let unknown = format!("/v2/y/blobs/uploads/?mount={wrong}&from=x");
        assert_eq!(send(addr, "POST", &unknown, &[], b"").unwrap().status, 202);
    }
    let stored = directory.path().join("blobs/sha256");
    assert_eq!(std::fs::read_dir(stored).unwrap().count(), 1, "one blob, nothing stray");
}

#[test]
fn manifests_tags_and_referrers() {
    let registry = Registry::builder().start().unwrap();
    let addr = registry.addr();
    let config = registry.put_blob("r", b"{}".as_slice()).unwrap();
    let image = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"c/d","digest":"{config}","size":2}},"layers":[]}}"#
    );
    let put = |tag: &str, text: &str| {
        let path = format!("/v2/r/manifests/{tag}");
        send(addr, "PUT", &path, &[("Content-Type", MANIFEST)], text.as_bytes()).unwrap()
    };
    assert_eq!(put("v1", &image).status, 201);
    assert_eq!(put("v2", &image).status, 201);
    assert_eq!(put("v3", "{").status, 400);
    let lacking = image.replace(&config.to_string(), &Digest::of(b"no").to_string());
    assert_eq!(put("v3", &lacking).status, 404);
    let subject = Digest::of(image.as_bytes());
    let got = get(addr, "/v2/r/manifests/v1");
    assert_eq!(got.body, image.as_bytes());
    assert_eq!(got.header("content-type"), MANIFEST);
    assert_eq!(got.header("docker-content-digest"), subject.to_string());
    let artifact = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"soci/index","digest":"{config}","size":2}},"layers":[],"subject":{{"mediaType":"{MANIFEST}","digest":"{subject}","size":1}},"annotations":{{"k":"v"}}}}"#
    );
    let digest = Digest::of(artifact.as_bytes());
    let pushed = put(&digest.to_string(), &artifact);
    assert_eq!((pushed.status, pushed.header("oci-subject")), (201, &*subject.to_string()));
    assert_eq!(put(&subject.to_string(), &artifact).status, 400, "digest of another");

    let path = format!("/v2/r/referrers/{subject}");
    let all = get(addr, &path).json();
    assert_eq!(all["manifests"][0]["digest"], digest.to_string());
    assert_eq!(all["manifests"][0]["artifactType"], "soci/index");
    assert_eq!(all["manifests"][0]["annotations"]["k"], "v");
    let filtered = get(addr, &format!("{path}?artifactType=soci%2Findex"));
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    assert_eq!(filtered.json()["manifests"].as_array().unwrap().len(), 1);
    let none = get(addr, &format!("{path}?artifactType=other")).json();
    assert_eq!(none["manifests"].as_array().unwrap().len(), 0);
    registry.set_referrers(false);
    assert_eq!(get(addr, &path).status, 404);

    assert_eq!(get(addr, "/v2/r/tags/list").json()["tags"], serde_json::json!(["v1", "v2"]));
    let page = get(addr, "/v2/r/tags/list?n=1");
    assert_eq!(page.header("link"), "</v2/r/tags/list?n=1&last=v1>; rel=\"next\"");
    let rest = get(addr, "/v2/r/tags/list?n=1&last=v1");
    assert_eq!(rest.json()["tags"], serde_json::json!(["v2"]));
    assert_eq!(send(addr, "DELETE", "/v2/r/manifests/v1", &[], b"").unwrap().status, 202);
    assert_eq!(get(addr, "/v2/r/manifests/v1").status, 404);
    assert_eq!(get(addr, "/v2/r/manifests/v2").status, 200);
}
