//! A command that is cut off by a signal or by its time ends its lease, and says what happened.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use spanfs_layer::oci::Descriptor;
use spanfs_snapshotter::containerd::{Client, ImageRecord};

use crate::containerd::Containerd;
use crate::golden::SOCI;
use crate::image;

const IMAGE: &str = "127.0.0.1:5077/fx/large:1";

/// Put a layout with a large layer into containerd.
async fn load(client: &Client, path: &std::path::Path) {
    let lease = client.leases().create("load", image::LEASE_TIME).await.unwrap();
    let content = lease.client().unwrap().content();
    for entry in path.join("blobs/sha256").read_dir().unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let blob = spanfs_layer::Digest::of(&bytes);
        if let Some(mut writer) = content.writer(&blob, bytes.len() as u64).await.unwrap() {
            for piece in bytes.chunks(4 << 20) {
                writer.write(piece).await.unwrap();
            }
            writer.commit(&BTreeMap::new()).await.unwrap();
        }
    }
    let index = std::fs::read(path.join("index.json")).unwrap();
    let index = spanfs_layer::oci::Index::parse(&index).unwrap();
    let listed = &index.manifests[0];
    let target = Descriptor::new(&listed.media_type, listed.digest, listed.size);
    let record = ImageRecord { name: IMAGE.to_owned(), target, labels: BTreeMap::new() };
    client.images().put(&record).await.unwrap();
    // It holds the blobs, which no label does; the test's end takes all with it.
}

#[test]
fn nothing_holds_what_a_cut_off_command_has_written() {
    let Some(containerd) = Containerd::start() else { return };
    let client = containerd.client();
    let input = containerd.scratch().join("large");
    image::write_large(&input);
    containerd.runtime.block_on(load(&client, &input));
    let leases = || containerd.runtime.block_on(client.leases().list()).unwrap();
    assert_eq!(leases(), ["load"]);
    let start = |options: &[&str]| {
        let mut command = Command::new(SOCI);
        command.env_clear().env("CONTAINERD_ADDRESS", containerd.address());
        command.arg("--root").arg(containerd.scratch().join("soci")).args(options);
        command.args(["create", "--force", "--min-layer-size", "0", IMAGE]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let child = start(&[]);
        let deadline = Instant::now() + Duration::from_secs(60);
        while leases().len() < 2 {
            assert!(Instant::now() < deadline, "it makes no lease");
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("soci: interrupted"), "{said}");
        assert_eq!(leases(), ["load"], "after {signal:?}");
    }
    let output = start(&["--timeout", "300ms"]).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("context deadline exceeded"), "{said}");
    assert_eq!(leases(), ["load"], "after its time");
}
