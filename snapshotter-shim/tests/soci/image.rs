//! The fixtures' images: into containerd, and into a registry.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use spanfs_layer::oci::{Descriptor, Document, media_type};
use spanfs_layer::{Digest, oci};
use spanfs_registry::Registry;
use spanfs_snapshotter::containerd::{Client, GC_REF_CONTENT, ImageRecord};

/// Longer than any test.
pub(crate) const LEASE_TIME: Duration = Duration::from_secs(600);

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/images")
}

pub(crate) fn layout(name: &str) -> PathBuf {
    directory().join(name)
}

pub(crate) fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(directory().join(name)).unwrap()
}

fn blob(name: &str, digest: &Digest) -> Vec<u8> {
    fixture(&format!("{name}/blobs/{}/{}", digest.algorithm().name(), digest.hex()))
}

fn root(name: &str) -> Descriptor {
    let index = oci::Index::parse(&fixture(&format!("{name}/index.json"))).unwrap();
    let mut root = index.manifests[0].clone();
    root.annotations.clear();
    root
}

/// The digest of a file's content in the base layer, by those who made it.
pub(crate) fn sha256_of(path: &str) -> String {
    let tree = String::from_utf8(fixture("tree.jsonl")).unwrap();
    let rows = tree.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let row = rows.into_iter().find(|row| row["path"] == format!("/{path}")).unwrap();
    row["sha256"].as_str().unwrap().to_owned()
}

/// What a document names, with the label by which it keeps it.
fn named(media_type: &str, bytes: &[u8]) -> Vec<(String, Descriptor)> {
    match Document::parse(media_type, bytes) {
        Ok(Document::Index(index)) => {
            let numbered = index.manifests.into_iter().enumerate();
            numbered.map(|(n, it)| (format!("m.{n}"), it)).collect()
        }
        Ok(Document::Manifest(manifest)) => {
            let layers = manifest.layers.into_iter().enumerate();
            let layers = layers.map(|(n, it)| (format!("l.{n}"), it));
            std::iter::once(("config".to_owned(), manifest.config)).chain(layers).collect()
        }
        Err(_) => Vec::new(),
    }
}

fn is_document(media_type: &str) -> bool {
    media_type::is_manifest(media_type) || media_type::is_index(media_type)
}

/// Put an image into containerd as a pull does: all its blobs, with labels, under a name.
pub(crate) async fn load(client: &Client, name: &str, reference: &str) {
    let target = root(name);
    let lease = client.leases().create(reference, LEASE_TIME).await.unwrap();
    let content = lease.client().unwrap().content();
    let mut waiting = vec![target.clone()];
    while let Some(descriptor) = waiting.pop() {
        let bytes = blob(name, &descriptor.digest);
        let mut labels = BTreeMap::new();
        if is_document(&descriptor.media_type) {
            for (key, child) in named(&descriptor.media_type, &bytes) {
                labels.insert(format!("{GC_REF_CONTENT}.{key}"), child.digest.to_string());
                waiting.push(child);
            }
        }
        content.put(&bytes, &labels).await.unwrap();
    }
    let record = ImageRecord { name: reference.to_owned(), target, labels: BTreeMap::new() };
    client.images().put(&record).await.unwrap();
    lease.end(true).await.unwrap();
}

/// Put an image into a registry.
pub(crate) fn serve(registry: &Registry, name: &str, repository: &str, tag: &str) {
    registry.put_image(repository, &layout(name)).unwrap();
    registry.tag(repository, tag, root(name).digest).unwrap();
}
