//! Whole layers: pulls that are given up, killed, shared, decompressed by a program, unpacked.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use spanfs_layer::Digest;
use spanfs_registry::{Auth, Bearer, Credentials, Fault, Faults, Link, Nth, Registry, Rule};

use crate::node::PATIENCE;
use crate::pull::{self, Containerd, Image, Layer, Rootfs, can_mount};
use crate::scene::{Root, Scene, check_tree, count, start_with};

pub(crate) const PARALLEL: &str = "[pull_modes.parallel_pull_unpack]\nenable = true\n\
                        discard_unpacked_layers = true\nconcurrent_download_chunk_size = \"1mb\"\n";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MIB: u64 = 1 << 20;

/// A tar of one file of bytes that a seed makes.
pub(crate) fn tar_of(seed: u64, len: u64) -> Vec<u8> {
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
pub(crate) fn put(registry: &Registry, tag: &str, tars: &[Vec<u8>]) -> Image {
    let layers: Vec<_> =
        tars.iter().map(|tar| (tar.as_slice(), Digest::of(tar), tar.len() as u64)).collect();
    put_layers(registry, tag, TAR, &layers)
}

/// An image of layers of that media type, with the digests of their tars.
pub(crate) fn put_blobs(
    registry: &Registry,
    tag: &str,
    media_type: &str,
    blobs: &[(&[u8], Digest)],
) -> Image {
    let layers: Vec<_> =
        blobs.iter().map(|(blob, diff_id)| (*blob, *diff_id, blob.len() as u64)).collect();
    put_layers(registry, tag, media_type, &layers)
}

/// An image of one layer, of which its documents promise another diffID or another size.
fn put_as(registry: &Registry, tag: &str, tar: &[u8], diff_id: &Digest, size: u64) -> Image {
    put_layers(registry, tag, TAR, &[(tar, *diff_id, size)])
}

fn put_layers(
    registry: &Registry,
    tag: &str,
    media_type: &str,
    tars: &[(&[u8], Digest, u64)],
) -> Image {
    let descriptor = |media_type: &str, bytes: &[u8], size: u64| {
        let digest = Digest::of(bytes).to_string();
        json!({"mediaType": media_type, "digest": digest, "size": size})
    };
    let diff_ids: Vec<_> = tars.iter().map(|(_, diff_id, _)| diff_id.to_string()).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux", "created": tag,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string().into_bytes();
    let layers: Vec<_> =
        tars.iter().map(|(tar, _, size)| descriptor(media_type, tar, *size)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
        "config": descriptor(CONFIG, &config, config.len() as u64),
    });
    let manifest = manifest.to_string().into_bytes();
    for blob in tars.iter().map(|(tar, ..)| *tar).chain([config.as_slice()]) {
        registry.put_blob(pull::REPOSITORY, blob.to_vec()).unwrap();
    }
    let digest = Digest::of(&manifest);
    registry.put_manifest(pull::REPOSITORY, Some(tag), MANIFEST, manifest).unwrap();
    let mut chain = String::new();
    let layers = tars.iter().map(|(tar, diff_id, _)| {
        chain = match chain.as_str() {
            "" => diff_id.to_string(),
            below => Digest::of(format!("{below} {diff_id}").as_bytes()).to_string(),
        };
        Layer { blob: Digest::of(tar), chain: chain.clone() }
    });
    let layers = layers.collect();
    Image { reference: registry.reference(pull::REPOSITORY, tag), manifest: digest, layers }
}

fn fetched(registry: &Registry, layer: &Digest) -> u64 {
    registry.stats().blob(layer).iter().map(|range| range.end - range.start).sum()
}

pub(crate) async fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
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

/// Killed between two layers, whoever pulls gives nothing up; the removal of what came does.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_removed_takes_its_jobs_along() {
    if !can_mount() {
        return;
    }
    let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
    let image = put(&registry, "big", &[tar_of(4, 8 << 10), tar_of(5, 64 * MIB)]);
    // The first layer is not to wait for the second one's turn to end.
    let settings = format!("{PARALLEL}max_concurrent_unpacks_per_image = 2\n");
    let (_node, mut containerd) = start_with(root.path(), "default", &settings).await;
    registry.set_link(Link { bytes_per_second: Some(2 << 20), ..Link::UNLIMITED });
    let labels = Containerd::labels(&image, &image.layers[0]);
    containerd.extract("", labels).await.unwrap().expect("containerd need not unpack it");
    let layer = image.layers[1].blob;
    wait_until("the first bytes of the next layer", || fetched(&registry, &layer) > 0).await;
    containerd.collect_garbage().await;
    let mut before = 0;
    let deadline = Instant::now() + PATIENCE;
    while before != fetched(&registry, &layer) {
        assert!(Instant::now() < deadline, "somebody still fetches");
        before = fetched(&registry, &layer);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert!(before < 60 * MIB, "{before} bytes had come, nothing was left to stop");
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
    let rootfs = containerd.rootfs(&top, &root.path().join("rootfs")).await;
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

/// Also where both are pulled at once and have an index, which whole layers have no use for.
#[tokio::test(flavor = "multi_thread")]
async fn layers_of_two_indexed_images_are_fetched_once() {
    if !can_mount() {
        return;
    }
    let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
    let images = ["v2", "v2-one-layer"].map(|name| pull::image(&registry, name));
    let (_node, mut containerd) = start_with(root.path(), "default", PARALLEL).await;
    registry.set_link(Link { bytes_per_second: Some(400 << 10), ..Link::UNLIMITED });
    let pulls = images.each_ref().map(|image| {
        let mut client = Containerd::new(containerd.client.clone(), "default");
        let labels = Containerd::labels(image, &image.layers[0]);
        tokio::spawn(async move { client.extract("", labels).await })
    });
    for pull in pulls {
        pull.await.unwrap().unwrap().expect("containerd need not unpack it");
    }
    for image in &images {
        containerd.pull(image).await;
        for layer in &image.layers {
            assert_eq!(registry.stats().refetched_bytes(&layer.blob), 0, "{}", layer.blob);
        }
    }
    containerd.collect_garbage().await;
}

/// What programs are called on this machine; `tests/run` installs them.
fn gzip_by(program: &str, args: &str) -> String {
    let table = "[pull_modes.parallel_pull_unpack.decompress_streams.gzip]";
    format!("{PARALLEL}{table}\npath = \"{program}\"\nargs = {args}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_decompresses() {
    let settings = gzip_by("/bin/gzip", "[\"-d\", \"-c\"]");
    let Some(scene) = Scene::new("plain", &settings).await else { return };
    let Scene { root, registry: _registry, image, node, mut containerd } = scene;
    let top = containerd.pull(&image).await;
    let rootfs = containerd.rootfs(&top, &root.path().join("rootfs")).await;
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

pub(crate) fn snapshot_files(root: &Path) -> Vec<PathBuf> {
    let snapshots = root.join("state/snapshotter/snapshots");
    let entries = std::fs::read_dir(snapshots).unwrap();
    entries.map(|entry| entry.unwrap().path().join("fs")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_unpacked_where_the_settings_say_so() {
    let settings = format!("{PARALLEL}[spanfs]\nfront = \"files\"\n");
    let Some(scene) = Scene::new("plain", &settings).await else { return };
    let Scene { root, registry, image, node, mut containerd } = scene;
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
    let rootfs = containerd.rootfs(&top, &root.path().join("rootfs")).await;
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
    let settings = "[snapshotter]\nmin_layer_size = 1000000000\n";
    let Some(scene) = Scene::new("v2", settings).await else { return };
    let Scene { root, registry: _registry, image, node, mut containerd } = scene;
    containerd.pull(&image).await;
    let blobs = root.path().join("state/content/blobs/sha256");
    let has = |layer: &Layer| blobs.join(layer.blob.hex().to_string()).exists();
    let missing = image.layers.iter().filter(|layer| !has(layer)).count();
    if missing > 0 {
        node.signal("TERM");
        panic!("{missing} blobs are missing: {}", node.wait().1);
    }
    containerd.collect_garbage().await;
    wait_until("the end of the blobs", || !image.layers.iter().any(has)).await;
}

/// Faults of requests for a layer that a pull survives.
fn passing() -> Vec<(Nth, Fault)> {
    let soon = Duration::from_secs(1);
    vec![
        (Nth::First(2), Fault::Status(503)),
        (Nth::First(4), Fault::TooManyRequests { retry_after: soon }),
        (Nth::First(3), Fault::Reset { after: 0 }),
        // Every connection ends after 300 kB.
        (Nth::First(40), Fault::Close { after: 300_000 }),
        (Nth::First(2), Fault::Truncate { len: 1000 }),
        (Nth::First(1), Fault::Stall { after: 100_000 }),
        (Nth::First(2), Fault::WrongContentRange),
        // No ranges: one stream.
        (Nth::Every, Fault::WholeForRange),
        (Nth::First(2), Fault::Late { by: soon }),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_that_pass_cost_time_and_nothing_else() {
    if !can_mount() {
        return;
    }
    let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
    let settings = format!("{PARALLEL}[blob]\nmin_wait_msec = 10\n");
    let (_node, mut containerd) = start_with(root.path(), "default", &settings).await;
    for (number, (nth, fault)) in passing().into_iter().enumerate() {
        let tag = format!("passing-{number}");
        let image = put(&registry, &tag, &[tar_of(100 + number as u64, 4 * MIB)]);
        let layer = image.layers[0].blob;
        let rule = Rule::get(layer.to_string(), nth, fault.clone());
        registry.set_faults(Faults::script([rule]));
        let labels = Containerd::labels(&image, &image.layers[0]);
        let outcome = containerd.extract("", labels).await;
        let outcome = outcome.unwrap_or_else(|status| panic!("{fault:?}: {status}"));
        let top = outcome.expect("containerd need not unpack it");
        let (_, mount) = containerd.container(&top).await;
        let rootfs = Rootfs::mount(&mount, &root.path().join(&tag));
        let name = format!("file-{}", 100 + number);
        let found = std::fs::read(rootfs.0.join(name)).unwrap();
        let content = &tar_of(100 + number as u64, 4 * MIB)[512..512 + 4 * MIB as usize];
        assert!(found == content, "{fault:?}");
        registry.set_faults(Faults::none());
    }
    containerd.collect_garbage().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_what_was_promised_is_refused_and_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let (root, registry) = (Root::new(), Registry::builder().start().unwrap());
    let settings = format!("{PARALLEL}[blob]\nmax_retries = 1\nmin_wait_msec = 10\n");
    let (_node, mut containerd) = start_with(root.path(), "default", &settings).await;
    let (right, other) = (tar_of(201, MIB), tar_of(202, MIB));
    let stuff = |tag: &str, config_of: &[u8], size: u64| {
        put_as(&registry, tag, &right, &Digest::of(config_of), size)
    };
    let len = right.len() as u64;
    let cases = [
        ("another diffID", stuff("diff", &other, len), "its tar has digest"),
        ("larger than it is", stuff("large", &right, len + 512), ""),
        ("smaller than it is", stuff("small", &right, len - 512), ""),
    ];
    for (what, image, words) in cases {
        let labels = Containerd::labels(&image, &image.layers[0]);
        let status = containerd.extract("", labels).await.map(drop).unwrap_err();
        assert!(status.message().contains(words), "{what}: {status}");
        let layer = image.layers[0].blob.to_string();
        assert!(status.message().contains(&layer), "{what}: {status}");
    }
    // A byte that is wrong on the way is found by the digest; what is wrong once is read again.
    let image = put(&registry, "right", &[right]);
    let layer = image.layers[0].blob.to_string();
    let flip = |nth| Faults::script([Rule::get(layer.clone(), nth, Fault::Flip { at: 1000 })]);
    registry.set_faults(flip(Nth::Every));
    let labels = || Containerd::labels(&image, &image.layers[0]);
    let status = containerd.extract("", labels()).await.map(drop).unwrap_err();
    assert!(status.message().contains(&layer), "{status}");
    assert!(snapshot_files(root.path()).is_empty(), "nothing stays of what failed");
    registry.set_faults(flip(Nth::Only(0)));
    containerd.extract("", labels()).await.unwrap().expect("containerd need not unpack it");
    containerd.collect_garbage().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_in_the_middle_is_renewed() {
    if !can_mount() {
        return;
    }
    let credentials = Credentials::new("user", "secret");
    let bearer = Bearer { anonymous_pull: true, ..Bearer::new(credentials) };
    let registry = Registry::builder().auth(Auth::Bearer(bearer)).start().unwrap();
    let root = Root::new();
    let image = put(&registry, "big", &[tar_of(301, 16 * MIB)]);
    let layer = image.layers[0].blob;
    let (_node, mut containerd) = start_with(root.path(), "default", PARALLEL).await;
    registry.set_link(Link { bytes_per_second: Some(16 << 20), ..Link::UNLIMITED });
    let labels = Containerd::labels(&image, &image.layers[0]);
    let mut client = Containerd::new(containerd.client.clone(), "default");
    let pulling = tokio::spawn(async move { client.extract("", labels).await });
    wait_until("part of the layer", || fetched(&registry, &layer) >= 4 * MIB).await;
    registry.revoke_tokens();
    pulling.await.unwrap().unwrap().expect("containerd need not unpack it");
    containerd.collect_garbage().await;
}
