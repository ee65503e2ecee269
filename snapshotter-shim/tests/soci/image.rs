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

/// Write a layout of one large layer, which takes a while to index.
pub(crate) fn write_large(path: &Path) {
    let mut noise = vec![0; 64 << 20];
    let mut state = 1_u64;
    for word in noise.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Every other byte is the same: it compresses, so that inflating takes its time.
        word.copy_from_slice(&(state & 0x00ff_00ff_00ff_00ff).to_le_bytes());
    }
    let mut tar = tar::Builder::new(Vec::new());
    for number in 0..4 {
        let mut header = tar::Header::new_ustar();
        header.set_size(noise.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("noise-{number}"), noise.as_slice()).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let mut blob = Vec::new();
    let mut encoder = flate2::write::GzEncoder::new(&mut blob, flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &tar).unwrap();
    encoder.finish().unwrap();
    let writer = spanfs_fetch::LayoutWriter::open(path).unwrap();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&tar)]},
    });
    let config = config.to_string();
    let descriptor = |media_type: &str, bytes: &[u8]| {
        serde_json::json!({
            "mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len(),
        })
    };
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &blob)],
    });
    let manifest = manifest.to_string();
    for bytes in [&blob[..], config.as_bytes(), manifest.as_bytes()] {
        writer.put_bytes(bytes).unwrap();
    }
    let listed = Descriptor::of(media_type::MANIFEST, manifest.as_bytes());
    writer.list(&listed, None).unwrap();
}
