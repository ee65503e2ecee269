//! Pods, as the kubelet and crictl make them.

use std::time::Duration;

use spanfs_registry::Registry;

use crate::cri::Cri;
use crate::image::{Image, Layer, noise};
use crate::node::{Node, Setup};
use crate::versions::{Version, on_each_containerd};

on_each_containerd!(pod_runs_and_goes);

fn pod_runs_and_goes(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let pause = Image::with_programs().command(&["/bin/sleep", "1000000"]).push(
        &registry,
        "test/pause",
        "1",
    );
    let image = Image::with_programs()
        .layer(Layer::new().directory("app").file("app/data", 0o644, &noise(2, 100_000)))
        .push(&registry, "test/app", "1");
    let node = Node::start(&Setup { sandbox: &pause, ..Setup::of(version) });
    let mut cri = Cri::connect(&node, "run/containerd/containerd.sock");

    cri.pull(&image, None).expect("the image is there");
    assert!(cri.has(&image));
    let sandbox = cri.run_sandbox("pod").expect("a sandbox");
    let once = cri.start(&sandbox, "once", &image, &[]).expect("a container");
    assert_eq!(cri.exit_status(&once, Duration::from_secs(60)), 0);
    assert_eq!(cri.log("once"), "ready\n");
    let stays = cri.start(&sandbox, "stays", &image, &["/bin/sleep", "1000000"]);
    let stays = stays.expect("a container");
    let (status, said) = cri.exec(&stays, &["/bin/sh", "-c", "cat /app/data | sha256sum"]);
    let digest = spanfs_layer::Digest::of(&noise(2, 100_000)).to_string();
    assert_eq!((status, said), (0, format!("{}  -\n", digest.trim_start_matches("sha256:"))));
    if version == Version::Two {
        // Debian's 1.6.20 does not know `exports`; 1.6.32 does.
        assert_eq!(cri.image_filesystem(), "/var/lib/soci-snapshotter-grpc");
    }

    cri.remove_container(&once);
    cri.remove_container(&stays);
    cri.remove_sandbox(&sandbox);
    cri.remove_image(&image);
    assert!(!cri.has(&image));
}
