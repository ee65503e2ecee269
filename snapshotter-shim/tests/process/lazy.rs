//! Layers that containerd need not unpack, with real mounts and a registry in this process.

use std::fs;

use spanfs_registry::{Auth, Bearer, Credentials, Fault, Faults, Nth, Registry, Rule};
use tonic::Code;

use crate::pull::{Containerd, Image, REMOTE, Rootfs, can_mount, image, mounts_below};
use crate::scene::{Root, Scene, check_tree, count, start, start_with};
use crate::{cri, debug};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_run_and_removed_without_unpacking() {
    let Some(scene) = Scene::new("v2", "").await else { return };
    let Scene { root, registry: _registry, image, node, mut containerd } = scene;
    let top = containerd.pull(&image).await;
    assert_eq!(top, image.layers.last().unwrap().chain, "named as the peer names it");
    assert_eq!(count(root.path(), "fuse.rawBridge"), 3, "one a layer, as nerdctl's suite counts");
    assert_eq!(count(root.path(), "erofs"), 3);
    let labels = containerd.stat(&top).await.labels;
    assert_eq!(labels[REMOTE], "remote snapshot");
    assert_eq!(labels["containerd.io/snapshot/remote/namespace"], "default");
    assert!(containerd.usage(&top).await.size > 0);

    let (_, mount) = containerd.container(&top).await;
    assert_eq!(mount.r#type, "overlay");
    let rootfs = Rootfs::mount(&mount, &root.path().join("rootfs"));
    check_tree(&rootfs.0, "v2");
    assert!(rootfs.run(&["/bin/ready"]).contains("ready"));
    fs::write(rootfs.0.join("bin/mine"), "mine").unwrap();
    drop(rootfs);

    containerd.collect_garbage().await;
    assert_eq!(mounts_below(root.path()), []);
    let state = root.path().join("state");
    for left in ["snapshotter/snapshots", "spanfs/cache/layers/sha256", "spanfs/mounts/records"] {
        // A layer that is being hashed goes with a later sweep.
        let deadline = std::time::Instant::now() + crate::node::PATIENCE;
        while fs::read_dir(state.join(left)).unwrap().count() > 0 {
            assert!(std::time::Instant::now() < deadline, "{left} is not empty");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    let ztocs: Vec<_> = fs::read_dir(state.join("spanfs/cache/ztocs")).unwrap().collect();
    assert_eq!(ztocs.len(), 1, "the directory of notes: {ztocs:?}");
    node.signal("TERM");
    let (status, log) = node.wait();
    assert!(status.success(), "{log}");
    assert!(log.contains("\"remote-snapshot-prepared\":\"true\""), "{log}");
}

/// After a death the layers come back, from the disk alone.
#[tokio::test(flavor = "multi_thread")]
async fn layers_come_back_without_the_registry() {
    let Some(scene) = Scene::new("v2", "").await else { return };
    let Scene { root, registry, image, node, mut containerd } = scene;
    let top = containerd.pull(&image).await;
    let (key, mount) = containerd.container(&top).await;
    let rootfs = Rootfs::mount(&mount, &root.path().join("rootfs"));
    check_tree(&rootfs.0, "v2");
    drop((rootfs, registry));
    node.signal("KILL");
    drop(node.wait());
    let (node, mut containerd) = start(root.path(), "default").await;
    assert_eq!(count(root.path(), "erofs"), 3, "before anybody asks");
    let mount = containerd.mounts(&key).await.unwrap();
    let rootfs = Rootfs::mount(&mount, &root.path().join("rootfs"));
    check_tree(&rootfs.0, "v2");
    drop(rootfs);
    // Told by a supervisor to end, it leaves the mounts to its successor.
    node.signal("TERM");
    drop(node.wait());
    assert_eq!(count(root.path(), "erofs"), 3);
    let (node, mut containerd) = start(root.path(), "default").await;
    let mount = containerd.mounts(&key).await.unwrap();
    check_tree(&Rootfs::mount(&mount, &root.path().join("rootfs")).0, "v2");
    // By hand, it takes them along.
    node.signal("INT");
    drop(node.wait());
    assert_eq!(mounts_below(root.path()), []);
}

/// Small layers come whole, and stack with lazy ones.
#[tokio::test(flavor = "multi_thread")]
async fn layers_without_ztoc_come_whole() {
    let Some(scene) = Scene::new("v2-one-layer", "").await else { return };
    let Scene { root, registry: _registry, image, node: _node, mut containerd } = scene;
    let top = containerd.pull(&image).await;
    let lazy: Vec<bool> = {
        let mut lazy = Vec::new();
        for layer in &image.layers {
            lazy.push(containerd.stat(&layer.chain).await.labels.contains_key(REMOTE));
        }
        lazy
    };
    assert_eq!(lazy, [true, false, false]);
    let rootfs = containerd.rootfs(&top, &root.path().join("rootfs")).await;
    check_tree(&rootfs.0, "v2-one-layer");
}

/// Layers that come whole are on their way before containerd asks for them.
#[tokio::test(flavor = "multi_thread")]
async fn layers_without_ztoc_are_begun_with_the_first_layer() {
    let Some(scene) = Scene::new("v2-one-layer", "").await else { return };
    let Scene { root: _root, registry, image, node: _node, mut containerd } = scene;
    let labels = Containerd::labels(&image, &image.layers[0]);
    containerd.extract("", labels).await.unwrap().expect("the layer is shown");
    let deadline = std::time::Instant::now() + crate::node::PATIENCE;
    while image.layers[1..].iter().any(|layer| registry.stats().blob(&layer.blob).is_empty()) {
        assert!(std::time::Instant::now() < deadline, "nobody asks for the other layers");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    containerd.pull(&image).await;
    for layer in &image.layers[1..] {
        assert_eq!(registry.stats().refetched_bytes(&layer.blob), 0, "one fetch is for all");
    }
}

/// containerd unpacks images that nobody indexed.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_index_is_left_to_containerd() {
    let Some(scene) = Scene::new("plain", "").await else { return };
    let Scene { root, registry: _registry, image, node, mut containerd } = scene;
    let labels = Containerd::labels(&image, &image.layers[0]);
    let mounts = containerd.extract("", labels).await.unwrap().unwrap_err();
    assert_eq!(mounts[0].r#type, "bind");
    assert_eq!(mounts_below(root.path()), []);
    node.signal("TERM");
    let (_, log) = node.wait();
    assert!(log.contains("no valid SOCI index found"), "{log}");
    assert!(log.contains("\"defer-snapshot-runtime\":\"true\""), "{log}");
}

/// Two namespaces, one set of mounts: also where the header is missing, as with containerd 1.6.
#[tokio::test(flavor = "multi_thread")]
async fn namespaces_share_layers() {
    if !can_mount() {
        return;
    }
    let root = Root::new();
    let registry = Registry::builder().start().unwrap();
    let image: Image = image(&registry, "v2");
    let (mut node, mut first) = start(root.path(), "default").await;
    let mut second = Containerd::new(node.connect().await, "k8s.io");
    let (one, two) = tokio::join!(first.pull(&image), second.pull(&image));
    assert_eq!(one, two);
    assert_eq!(count(root.path(), "erofs"), 3);
}

/// Containers made after a layer is complete need no process of ours; those before keep what they have.
#[tokio::test(flavor = "multi_thread")]
async fn complete_layers_are_shown_by_the_kernel_alone() {
    let settings = "[background_fetch]\nsilence_period_msec = 1\n";
    let Some(scene) = Scene::new("v2", settings).await else { return };
    let Scene { root, registry: _registry, image, node, mut containerd } = scene;
    let top = containerd.pull(&image).await;
    let first = containerd.rootfs(&top, &root.path().join("first")).await;
    check_tree(&first.0, "v2");
    let deadline = std::time::Instant::now() + crate::node::PATIENCE;
    let mount = loop {
        let (_, mount) = containerd.container(&top).await;
        if count(root.path(), "fuse.rawBridge") == 0 {
            break mount;
        }
        assert!(std::time::Instant::now() < deadline, "the layers are never complete");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert_eq!(count(root.path(), "erofs"), 3, "the old mounts are out of sight");
    let second = Rootfs::mount(&mount, &root.path().join("second"));
    check_tree(&first.0, "v2");
    check_tree(&second.0, "v2");
    node.signal("KILL");
    drop(node.wait());
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    check_tree(&second.0, "v2");
}

const PARALLEL: &str = "
[pull_modes.parallel_pull_unpack]
enable = true
discard_unpacked_layers = true
concurrent_download_chunk_size = \"1mb\"
max_concurrent_unpacks_per_image = 3
";

/// Images that nobody indexed come whole, all layers at once, and need no process afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn whole_layers_are_pulled_in_parallel() {
    let Some(scene) = Scene::new("plain", PARALLEL).await else { return };
    let Scene { root, registry: _registry, image, node, mut containerd } = scene;
    let top = containerd.pull(&image).await;
    assert!(!containerd.stat(&top).await.labels.contains_key(REMOTE));
    assert_eq!((count(root.path(), "erofs"), count(root.path(), "fuse.rawBridge")), (3, 0));
    let rootfs = containerd.rootfs(&top, &root.path().join("rootfs")).await;
    // The kernel alone shows it.
    node.signal("KILL");
    drop(node.wait());
    check_tree(&rootfs.0, "plain");
}

/// What is not what its manifest promises is refused, and leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_layer_is_refused_and_the_next_try_works() {
    let Some(scene) = Scene::new("plain", PARALLEL).await else { return };
    let Scene { root, registry, image, node: _node, mut containerd } = scene;
    let flip = Fault::Flip { at: 1000 };
    let path = format!("/blobs/{}", image.layers[0].blob);
    registry.set_faults(Faults::script([Rule::get(path, Nth::Every, flip)]));
    let labels = Containerd::labels(&image, &image.layers[0]);
    let status = containerd.extract("", labels).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains(&image.layers[0].blob.to_string()), "{status}");
    assert_eq!(count(root.path(), "erofs"), 0);
    let snapshots = root.path().join("state/snapshotter/snapshots");
    assert_eq!(fs::read_dir(snapshots).unwrap().count(), 0);
    registry.set_faults(Faults::none());
    containerd.pull(&image).await;
}

/// Credentials that only the kubelet has, by way of our image service; also after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn pulls_with_the_logins_that_cri_brings() {
    if !can_mount() {
        return;
    }
    let root = Root::new();
    let login = Bearer::new(Credentials::new("kubelet", "hush-hush"));
    let registry = Registry::builder().auth(Auth::Bearer(login)).start().unwrap();
    let image = image(&registry, "v2");
    let backend = cri::Backend::start(&root.path().join("cri.sock"));
    let settings = format!(
        "metrics_network = \"unix\"\nmetrics_address = {0:?}\n\
         [cri_keychain]\nenable_keychain = true\nimage_service_path = {1:?}\n",
        root.path().join("metrics.sock"),
        backend.socket
    );
    let (mut node, mut containerd) = start_with(root.path(), "k8s.io", &settings).await;
    let channel = node.channel().await;
    let answer = cri::pull(channel.clone(), &image.reference, "kubelet", "hush-hush").await;
    assert_eq!(answer, backend.id);
    assert_eq!(cri::unknown(channel.clone()).await, "of a newer version");
    containerd.pull(&image).await;
    let metrics = debug::get(&root.path().join("metrics.sock"), "/metrics");
    for name in [
        "soci_fs_operation_duration_milliseconds_count{operation_type=\"mount\",layer=\"sha256:",
        "soci_fs_layer_size_bytes{digest=\"sha256:",
        "soci_fs_operation_count{operation_type=\"fuse_mount_failure_count\",layer=\"\"} 0",
        "spanfs_layers 3",
    ] {
        assert!(metrics.contains(name), "{name} is not in {metrics}");
    }
    node.signal("TERM");
    let (_, log) = node.wait();
    assert!(!log.contains("hush"), "a password is in the log");

    let (mut node, mut containerd) = start_with(root.path(), "k8s.io", &settings).await;
    let top = &image.layers.last().unwrap().chain;
    let (_, mount) = containerd.container(top).await;
    check_tree(&Rootfs::mount(&mount, &root.path().join("rootfs")).0, "v2");
    cri::remove(node.channel().await, &backend.id).await;
    let kept = fs::read_to_string(root.path().join("state/spanfs/logins.json")).unwrap();
    assert!(!kept.contains("hush"), "{kept}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_program_reads_is_fetched_before_it_starts() {
    let settings = "[background_fetch]\ndisable = true\n";
    let Some(scene) = Scene::new("v2", settings).await else { return };
    let Scene { root: _root, registry: _registry, image, node, mut containerd } = scene;
    containerd.pull(&image).await;
    // /bin/ready is in the lowest layer, of two spans at least, and nobody has read anything.
    let deadline = std::time::Instant::now() + crate::node::PATIENCE;
    loop {
        let layers = debug::json(&node, "/debug/layers");
        if layers[0]["spans_present"].as_u64().unwrap() > 0 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "nothing is fetched: {layers}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
