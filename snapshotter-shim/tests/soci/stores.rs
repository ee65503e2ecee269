//! Artifacts in containerd's content store: what the peer prints, what keeps them, what lets them go.

use std::process::{Command, Output};

use spanfs_layer::Digest;
use spanfs_snapshotter::containerd::{Client, GC_REF_CONTENT};

use crate::containerd::Containerd;
use crate::golden::SOCI;
use crate::image;

const IMAGE: &str = "127.0.0.1:5077/fx/d:1";
const SAME: &str = "127.0.0.1:5077/fx/v1:1";
const FIRST: &str = "sha256:a61484d144dee978f6378338dd6ce20d42214df168988c37315807db745f1447";
const SECOND: &str = "sha256:e4585aafad0e21c6cd4615b70bd4d6170a9d18a596f58f309e6f54486b696efc";

fn soci(containerd: &Containerd, line: &str) -> Output {
    let root = containerd.scratch().join("soci-d");
    let mut command = Command::new(SOCI);
    command.env_clear().env("CONTAINERD_ADDRESS", containerd.address());
    command.arg("--root").arg(root).args(line.split(' ')).output().unwrap()
}

/// The lines of a command that must succeed, in no order.
fn lines(containerd: &Containerd, line: &str) -> Vec<String> {
    let output = soci(containerd, line);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{line}: {stderr}");
    let mut lines: Vec<String> =
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn check(containerd: &Containerd, name: &str, line: &str) {
    let path = image::layout("../cli").join(format!("default-store-{name}.stdout"));
    let expected = std::fs::read_to_string(path).unwrap();
    let mut expected: Vec<&str> = expected.lines().collect();
    expected.sort_unstable();
    let found = lines(containerd, line);
    // Ages stand in the last column.
    let bare = |line: &str| match line.rsplit_once("    ") {
        Some((head, _)) if line.trim_end().ends_with("s ago") => {
            head.trim_end().trim_end_matches("s ago").trim_end_matches(char::is_numeric).to_owned()
        }
        _ => line.to_owned(),
    };
    let found: Vec<String> = found.iter().map(|line| bare(line)).collect();
    let expected: Vec<String> = expected.iter().map(|line| bare(line)).collect();
    assert_eq!(found, expected, "{name}");
}

/// Let containerd collect what nothing keeps.
async fn collect(client: &Client) {
    let lease = client.leases().create("collect", image::LEASE_TIME).await.unwrap();
    lease.end(true).await.unwrap();
}

#[test]
fn an_image_keeps_its_indexes_in_containerd() {
    let Some(containerd) = Containerd::start() else { return };
    let client = containerd.client();
    containerd.runtime.block_on(async {
        image::load(&client, "plain", IMAGE).await;
        image::load(&client, "plain", SAME).await;
    });
    check(&containerd, "create", &format!("create --min-layer-size 0 --span-size 65536 {IMAGE}"));
    check(&containerd, "index-list", "index list -q");
    check(&containerd, "index-info", &format!("index info {FIRST}"));
    let other = format!("create --min-layer-size 0 --span-size 262144 {IMAGE}");
    check(&containerd, "create-other", &other);
    check(&containerd, "index-list-2", "index list");
    containerd.runtime.block_on(collect(&client));
    // With the peer, the first one would be gone by now.
    check(&containerd, "index-info-of-the-first", &format!("index info {FIRST}"));
    let convert = "convert --min-layer-size 0 --span-size 65536";
    check(&containerd, "convert", &format!("{convert} {IMAGE} 127.0.0.1:5077/fx/dconv:1"));
    containerd.runtime.block_on(collect(&client));
    containerd.runtime.block_on(labels_are_those_of_the_peer(&client));
    assert_eq!(lines(&containerd, "rebuild-db"), Vec::<String>::new());
    assert_eq!(lines(&containerd, "index list -q").len(), 3);
    let before = lines(&containerd, "index list");
    std::fs::remove_file(containerd.scratch().join("soci-d/artifacts.redb")).unwrap();
    let rebuilt = lines(&containerd, "index list");
    assert_eq!(rebuilt.len(), before.len(), "{rebuilt:#?}");
    assert_eq!(lines(&containerd, &format!("index rm {SECOND}")), Vec::<String>::new());
    containerd.runtime.block_on(async {
        collect(&client).await;
        let second: Digest = SECOND.parse().unwrap();
        assert!(client.content().info(&second).await.unwrap().is_none());
        let labels = client.images().get(IMAGE).await.unwrap().labels;
        assert!(labels.values().all(|value| value != SECOND), "{labels:?}");
        let removed = ["127.0.0.1:5077/fx/dconv:1", SAME, IMAGE];
        for name in removed {
            client.images().delete(name, true).await.unwrap();
        }
        collect(&client).await;
        assert_eq!(client.content().list(&[]).await.unwrap(), [], "all went with the images");
        assert_eq!(client.leases().list().await.unwrap(), Vec::<String>::new());
    });
}

/// Of every blob that the peer labelled: digest and labels by which it keeps others.
async fn labels_are_those_of_the_peer(client: &Client) {
    let recorded =
        String::from_utf8(image::fixture("v1/content-labels-after-convert.txt")).unwrap();
    for line in recorded.lines().skip(1) {
        let mut cells = line.split('\t').filter(|cell| !cell.is_empty());
        let digest: Digest = cells.next().unwrap().trim().parse().unwrap();
        let labels = cells.next_back().unwrap();
        let mut expected: Vec<(String, String)> = labels
            .split(',')
            .filter_map(|label| label.split_once('='))
            .filter(|(key, _)| key.starts_with(GC_REF_CONTENT))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        expected.sort();
        let info = client.content().info(&digest).await.unwrap();
        let info = info.unwrap_or_else(|| panic!("{digest} is missing"));
        let found: Vec<(String, String)> = info.labels.into_iter().collect();
        assert_eq!(found, expected, "{digest}");
    }
}

#[test]
fn an_index_for_every_platform_is_kept() {
    let Some(containerd) = Containerd::start() else { return };
    let client = containerd.client();
    containerd.runtime.block_on(image::load(&client, "plain-multi", IMAGE));
    let create = "create --min-layer-size 0 --span-size 65536";
    let made = lines(&containerd, &format!("{create} --all-platforms {IMAGE}"));
    assert_eq!(made.len(), 6, "{made:#?}");
    containerd.runtime.block_on(collect(&client));
    for index in lines(&containerd, "index list -q") {
        lines(&containerd, &format!("index info {index}"));
    }
    let of_arm = lines(&containerd, &format!("index list -q --ref {IMAGE} -p linux/arm64"));
    assert_eq!(of_arm.len(), 1);
    let absent = soci(&containerd, &format!("{create} -p linux/s390x {IMAGE}"));
    let stderr = String::from_utf8_lossy(&absent.stderr).into_owned();
    assert!(!absent.status.success() && stderr.contains("linux/s390x"), "{stderr}");
    assert!(stderr.contains("not found"), "{stderr}");
}
