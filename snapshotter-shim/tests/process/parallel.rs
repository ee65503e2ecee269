//! Whole layers: pulls that are given up, killed, shared, decompressed by a program, unpacked.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use spanfs_layer::Digest;
use spanfs_registry::{Link, Registry};

use crate::lazy::{Root, check_tree, count, start_with};
use crate::node::PATIENCE;
use crate::pull::{self, Containerd, Image, Layer, Rootfs, can_mount};

const PARALLEL: &str = "[pull_modes.parallel_pull_unpack]\nenable = true\n\
                        discard_unpacked_layers = true\nconcurrent_download_chunk_size = \"1mb\"\n";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const MIB: u64 = 1 << 20;

/// A tar of one file of bytes that a seed makes.
fn tar_of(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let content: Vec<u8> = (0..len / 8).flat_map(|_| next()).collect();
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, format!("file-{seed}"), content.as_slice()).unwrap();
    builder.into_inner().unwrap()
}

/// An image of layers that are tars, in a registry.
fn put(registry: &Registry, tag: &str, tars: &[Vec<u8>]) -> Image {
    let descriptor = |media_type: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes).to_string();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let diff_ids: Vec<_> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux", "created": tag,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string().into_bytes();
    let layers: Vec<_> = tars.iter().map(|tar| descriptor(TAR, tar)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config), "layers": layers,
    });
    let manifest = manifest.to_string().into_bytes();
    for blob in tars.iter().chain([&config]) {
        registry.put_blob(pull::REPOSITORY, blob.clone()).unwrap();
    }
    let digest = Digest::of(&manifest);
    registry.put_manifest(pull::REPOSITORY, Some(tag), MANIFEST, manifest).unwrap();
    let mut chain = String::new();
    let layers = tars.iter().map(|tar| {
        let blob = Digest::of(tar);
        chain = match chain.as_str() {
            "" => blob.to_string(),
            below => Digest::of(format!("{below} {blob}").as_bytes()).to_string(),
        };
        Layer { blob, chain: chain.clone() }
    });
    let layers = layers.collect();
    Image { reference: registry.reference(pull::REPOSITORY, tag), manifest: digest, layers }
}

fn fetched(registry: &Registry, layer: &Digest) -> u64 {
    registry.stats().blob(layer).iter().map(|range| range.end - range.start).sum()
}

async fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Begin to pull a one-layer image, and let go of it once `bytes` have come.
async fn give_up_after(registry: &Registry, containerd: &Containerd, image: &Image, bytes: u64) {
    let mut other = Containerd::new(containerd.client.clone(), "default");
    let labels = Containerd::labels(image, &image.layers[0]);
    let pulling = tokio::spawn(async move { other.extract("", labels).await.map(drop) });
    wait_until("part of the layer", || fetched(registry, &image.layers[0].blob) >= bytes).await;
    pulling.abort();
    assert!(pulling.await.unwrap_err().is_cancelled(), "it was not done yet");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_pull_stops_within_a_second_and_the_next_one_goes_on() {
    if !can_mount() {
        return;
    }
    let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
    let image = put(&registry, "big", &[tar_of(1, 24 * MIB)]);
    let layer = image.layers[0].blob;
    let (_node, mut containerd) = start_with(root.path(), "default", PARALLEL).await;
    registry.set_link(Link { bytes_per_second: Some(8 << 20), ..Link::UNLIMITED });
    give_up_after(&registry, &containerd, &image, 8 * MIB).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = fetched(&registry, &layer);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fetched(&registry, &layer), before, "somebody still fetches");
    assert!(before < 20 * MIB, "{before} bytes had come, nothing was left to stop");
    registry.set_link(Link::UNLIMITED);
    containerd.pull(&image).await;
    let again = registry.stats().refetched_bytes(&layer);
    assert!(again <= 4 * MIB, "{again} bytes were fetched twice, of {before}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_pull_goes_on_after_the_restart() {
    if !can_mount() {
        return;
    }
    let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
    let image = put(&registry, "big", &[tar_of(2, 64 * MIB)]);
    let layer = image.layers[0].blob;
    registry.set_link(Link { bytes_per_second: Some(20 << 20), ..Link::UNLIMITED });
    {
        let (node, mut containerd) = start_with(root.path(), "default", PARALLEL).await;
        let labels = Containerd::labels(&image, &image.layers[0]);
        let pulling = tokio::spawn(async move { containerd.extract("", labels).await.map(drop) });
        wait_until("half of the layer", || fetched(&registry, &layer) >= 40 * MIB).await;
        node.signal("KILL");
        assert!(pulling.await.unwrap().is_err());
    }
    registry.set_link(Link::UNLIMITED);
    let (_node, mut containerd) = start_with(root.path(), "default", PARALLEL).await;
    let top = containerd.pull(&image).await;
    let (again, size) = (registry.stats().refetched_bytes(&layer), 64 * MIB);
    assert!(again < size / 2, "{again} of {size} bytes were fetched twice");
    let (_, mount) = containerd.container(&top).await;
    let rootfs = Rootfs::mount(&mount, &root.path().join("rootfs"));
    let found = Digest::of(&std::fs::read(rootfs.0.join("file-2")).unwrap());
    assert_eq!(found, Digest::of(&tar_of(2, 64 * MIB)[512..512 + 64 * MIB as usize]));
    drop(rootfs);
    containerd.collect_garbage().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_two_images_is_fetched_once_also_when_one_is_given_up() {
    if !can_mount() {
        return;
    }
    let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
    let shared = tar_of(3, 16 * MIB);
    let images = ["one", "two", "three"].map(|tag| {
        let own = tar_of(tag.len() as u64 + 10, MIB);
        put(&registry, tag, &[shared.clone(), own])
    });
    let layer = images[0].layers[0].blob;
    let (_node, containerd) = start_with(root.path(), "default", PARALLEL).await;
    registry.set_link(Link { bytes_per_second: Some(8 << 20), ..Link::UNLIMITED });
    let pulls: Vec<_> = images[1..]
        .iter()
        .map(|image| {
            let mut client = Containerd::new(containerd.client.clone(), "default");
            let labels = Containerd::labels(image, &image.layers[0]);
            tokio::spawn(async move { client.extract("", labels).await })
        })
        .collect();
    give_up_after(&registry, &containerd, &images[0], 4 * MIB).await;
    for pull in pulls {
        pull.await.unwrap().unwrap().expect("containerd need not unpack it");
    }
    let again = registry.stats().refetched_bytes(&layer);
    assert!(again <= 4 * MIB, "{again} bytes were fetched twice");
}

/// What programs are called on this machine; `tests/run` installs them.
fn gzip_by(program: &str, args: &str) -> String {
    let table = "[pull_modes.parallel_pull_unpack.decompress_streams.gzip]";
    format!("{PARALLEL}{table}\npath = \"{program}\"\nargs = {args}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_decompresses() {
    if !can_mount() {
        return;
    }
    let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
    let image = pull::image(&registry, "plain");
    let settings = gzip_by("/bin/gzip", "[\"-d\", \"-c\"]");
    let (node, mut containerd) = start_with(root.path(), "default", &settings).await;
    let top = containerd.pull(&image).await;
    let (_, mount) = containerd.container(&top).await;
    let rootfs = Rootfs::mount(&mount, &root.path().join("rootfs"));
    check_tree(&rootfs.0, "plain");
    drop(rootfs);
    containerd.collect_garbage().await;
    node.signal("TERM");
    let (_, log) = node.wait();
    assert!(log.contains("it was decompressed by /"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_fails_is_named_with_its_words() {
    if !can_mount() {
        return;
    }
    let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
    let image = pull::image(&registry, "plain");
    let settings = gzip_by("/bin/sh", "[\"-c\", \"echo no luck today >&2; exit 9\"]");
    let (_node, mut containerd) = start_with(root.path(), "default", &settings).await;
    let labels = Containerd::labels(&image, &image.layers[0]);
    let status = containerd.extract("", labels).await.unwrap_err();
    for part in ["exit status: 9", "no luck today"] {
        assert!(status.message().contains(part), "{status}");
    }
}

fn snapshot_files(root: &Path) -> Vec<PathBuf> {
    let snapshots = root.join("state/snapshotter/snapshots");
    let entries = std::fs::read_dir(snapshots).unwrap();
    entries.map(|entry| entry.unwrap().path().join("fs")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_unpacked_where_the_settings_say_so() {
    if !can_mount() {
        return;
    }
    let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
    let image = pull::image(&registry, "plain");
    let settings = format!("{PARALLEL}[spanfs]\nfront = \"files\"\n");
    let (node, mut containerd) = start_with(root.path(), "default", &settings).await;
    let top = containerd.pull(&image).await;
    assert_eq!(count(root.path(), "erofs") + count(root.path(), "fuse.rawBridge"), 0);
    let usage = containerd.usage(&top).await;
    assert!(usage.size > 0 && usage.inodes > 1, "{usage:?}");
    assert!(snapshot_files(root.path()).iter().all(|fs| fs.read_dir().unwrap().count() > 0));
    let layers = root.path().join("state/spanfs/cache/layers/sha256");
    assert_eq!(layers.read_dir().unwrap().count(), 0, "the tars are not needed any more");
    node.signal("KILL");
    drop((node, registry));

    let (_node, mut containerd) = start_with(root.path(), "default", &settings).await;
    let (_, mount) = containerd.container(&top).await;
    let rootfs = Rootfs::mount(&mount, &root.path().join("rootfs"));
    check_tree(&rootfs.0, "plain");
    assert!(rootfs.run(&["/bin/ready"]).contains("ready"));
    drop(rootfs);
    containerd.collect_garbage().await;
    let gone = || snapshot_files(root.path()).is_empty();
    wait_until("the end of all directories", gone).await;
}

/// The store `soci` is a layout: blobs of layers that came whole stand there as long as the layers.
#[tokio::test(flavor = "multi_thread")]
async fn blobs_of_small_layers_are_kept_with_them() {
    if !can_mount() {
        return;
    }
    let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
    let image = pull::image(&registry, "v2");
    let settings = "[snapshotter]\nmin_layer_size = 1000000000\n";
    let (_node, mut containerd) = start_with(root.path(), "default", settings).await;
    containerd.pull(&image).await;
    let blobs = root.path().join("state/content/blobs/sha256");
    let has = |layer: &Layer| blobs.join(layer.blob.hex().to_string()).exists();
    assert!(image.layers.iter().all(has));
    containerd.collect_garbage().await;
    wait_until("the end of the blobs", || !image.layers.iter().any(has)).await;
}
