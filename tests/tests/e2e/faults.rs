//! What goes wrong between a mount and its registry: the reader gets the right bytes or an error,
//! within its deadline, and the mount goes on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use spanfs_layer::Digest;
use spanfs_registry::{Fault, Faults, Nth, Redirect, Registry, Rule};

use crate::peers::{able, run};
use crate::scratch::Scratch;
use crate::trees::{self, Seen, look};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// No reader waits longer than this for bytes or an error, whatever the registry does.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// An image of one layer with many spans, its index, and a registry that can be made to fail.
pub(crate) struct Node {
    pub(crate) registry: Registry,
    pub(crate) scratch: Scratch,
    image: String,
    layer: Digest,
    expected: BTreeMap<PathBuf, Seen>,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(Registry::builder().start().expect("registry"))
    }

    fn with(registry: Registry) -> Self {
        let scratch = Scratch::new();
        let tree = scratch.path("tree");
        make_tree(&tree);
        let layer = put_image(&registry, &scratch, &tree);
        let image = registry.reference("faults", "indexed");
        let plain = registry.reference("faults", "plain");
        run(scratch
            .spanfs()
            .args(["index", "--min-layer-size", "0", "--span-size", "256K"])
            .args(["--output", &image, &plain]));
        registry.reset_stats();
        let expected = look(&tree);
        Self { registry, scratch, image, layer, expected }
    }

    pub(crate) fn mount(&self, options: &[&str]) -> PathBuf {
        self.scratch.mount(&self.image, options)
    }

    fn try_mount(&self) -> Output {
        let root = self.scratch.path("mnt");
        fs::create_dir_all(&root).expect("directory");
        let mut command = self.scratch.spanfs();
        command.arg("mount").arg(&self.image).arg(&root).output().expect("spanfs starts")
    }

    /// Everything that the mount process said so far.
    fn log(&self) -> String {
        let status = self.scratch.status_of(&self.scratch.path("mnt"));
        let pid = status["mounts"][0]["pid"].as_i64().expect("pid of the mount");
        fs::read_to_string(format!("/proc/{pid}/fd/2")).expect("log of the mount")
    }

    fn manifest(&self, tag: &str) -> (Digest, Value) {
        let tags = self.registry.tags("faults");
        let (_, digest) = tags.iter().find(|(name, _)| name == tag).expect("a tag that was pushed");
        let bytes = self.registry.manifest("faults", digest).expect("manifest");
        (*digest, serde_json::from_slice(&bytes).expect("JSON"))
    }

    /// The converted image: its index of images, the image, its SOCI index, the zTOC.
    fn documents(&self) -> Documents {
        let at = |value: &Value| -> Digest {
            value["digest"].as_str().expect("digest").parse().expect("digest")
        };
        let read = |digest: &Digest| -> Value {
            let bytes = self.registry.manifest("faults", digest).expect("manifest");
            serde_json::from_slice(&bytes).expect("JSON")
        };
        let (top, index) = self.manifest("indexed");
        let is_soci =
            |entry: &&Value| entry["artifactType"].as_str().is_some_and(|t| t.contains("soci"));
        let entries = index["manifests"].as_array().expect("entries");
        let soci = at(entries.iter().find(is_soci).expect("a SOCI index"));
        let image = at(entries.iter().find(|entry| !is_soci(entry)).expect("an image"));
        let config = at(&read(&image)["config"]);
        let ztoc = at(&read(&soci)["layers"][0]);
        Documents { top, image, config, soci, ztoc }
    }
}

struct Documents {
    top: Digest,
    image: Digest,
    config: Digest,
    soci: Digest,
    ztoc: Digest,
}

/// Files of every size around a span's; half of their bytes can be compressed.
fn make_tree(tree: &Path) {
    fs::create_dir_all(tree.join("data")).expect("directory");
    let mut state = 0x5eed_u64;
    for number in 0..40_usize {
        let len = 1 + number * 9_973;
        let bytes: Vec<u8> = (0..len)
            .map(|at| {
                state =
                    state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                if at % 128 < 64 { b'=' } else { (state >> 56) as u8 }
            })
            .collect();
        fs::write(tree.join(format!("data/{number:02}")), bytes).expect("write");
    }
    run(Command::new("touch").args(["--date=@1700000000"]).arg(tree.join("data")));
}

pub(crate) fn put_image(registry: &Registry, scratch: &Scratch, tree: &Path) -> Digest {
    let tar = scratch.path("layer.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(tree)
        .args(["--format=pax", "--sort=name", "-cf"])
        .arg(&tar)
        .arg("."));
    let diff_id = Digest::of(&fs::read(&tar).expect("tar"));
    run(Command::new("gzip").args(["-n", "-6"]).arg(&tar));
    let blob = fs::read(scratch.path("layer.tar.gz")).expect("blob");
    let size = blob.len();
    let layer = registry.put_blob("faults", blob).expect("layer");
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": {}, "rootfs": {"type": "layers", "diff_ids": [diff_id.to_string()]},
    })
    .to_string();
    let config_size = config.len();
    let config = registry.put_blob("faults", config).expect("config");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.to_string(), "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": layer.to_string(), "size": size}],
    });
    registry
        .put_manifest("faults", Some("plain"), MANIFEST, manifest.to_string())
        .expect("manifest");
    layer
}

#[test]
fn faults_that_pass_cost_time_alone() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let blob = format!("/blobs/{}", node.layer);
    let seeded = |fault: Fault| Faults::seeded(7, 300, blob.clone(), &[fault]);
    let first =
        |len: u64, fault: Fault| Faults::script([Rule::get(blob.clone(), Nth::First(len), fault)]);
    let second = Duration::from_secs(1);
    let cases: Vec<(&str, Faults)> = vec![
        ("500", seeded(Fault::Status(500))),
        ("503", first(3, Fault::Status(503))),
        ("429", first(2, Fault::TooManyRequests { retry_after: second })),
        ("reset at once", seeded(Fault::Reset { after: 0 })),
        ("reset in the middle", seeded(Fault::Reset { after: 10_000 })),
        ("closed early", seeded(Fault::Close { after: 10_000 })),
        ("truncated", seeded(Fault::Truncate { len: 10_000 })),
        ("flipped bit", seeded(Fault::Flip { at: 5_000 })),
        ("stall", first(2, Fault::Stall { after: 10_000 })),
        ("late", first(2, Fault::Late { by: second })),
        ("slow loris", first(1, Fault::Drip { bytes: 100, every: Duration::from_millis(50) })),
        ("wrong Content-Range", first(2, Fault::WrongContentRange)),
        (
            "whole blob for a range",
            Faults::script([Rule::get(blob.clone(), Nth::Every, Fault::WholeForRange)]),
        ),
        ("401", first(1, Fault::Status(401))),
    ];
    for (name, faults) in cases {
        for options in [&["--front", "erofs"][..], &["--front", "inode", "--no-background"]] {
            node.registry.set_faults(faults.clone());
            let start = Instant::now();
            let root = node.mount(options);
            trees::assert_same(&node.expected, &look(&root));
            let took = start.elapsed();
            assert!(took < ANSWER_MAX, "{name}: {took:?}");
            assert!(name != "429" || took >= second, "Retry-After ignored: {took:?}");
            node.scratch.umount();
            node.scratch.forget();
        }
    }
}

#[test]
fn redirects_that_expire_or_break_are_asked_for_again() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let lifetime = Duration::from_millis(400);
    node.registry.set_redirect(Some(Redirect { lifetime, host: None }));
    let blob = format!("/blobs/{}", node.layer);
    for (name, fault) in [
        ("none", None),
        ("an expired redirect", Some((Nth::First(2), Fault::ExpiredRedirect))),
        ("a loop", Some((Nth::First(1), Fault::RedirectLoop))),
    ] {
        let rules = fault.map(|(nth, fault)| Rule::get(blob.clone(), nth, fault));
        node.registry.set_faults(Faults::script(rules));
        let root = node.mount(&["--no-background"]);
        let files = |from: usize| (from..40).step_by(2).map(|n| root.join(format!("data/{n:02}")));
        for path in files(0) {
            fs::read(&path).unwrap_or_else(|e| panic!("{name}: {}: {e}", path.display()));
        }
        // every URL that was given out is now worthless
        std::thread::sleep(lifetime * 2);
        for path in files(1) {
            fs::read(&path).unwrap_or_else(|e| panic!("{name}: {}: {e}", path.display()));
        }
        trees::assert_same(&node.expected, &look(&root));
        node.scratch.umount();
        node.scratch.forget();
    }
}

#[test]
fn faults_that_stay_are_an_error_and_leave_the_mount_alive() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let blob = format!("/blobs/{}", node.layer);
    for fault in [
        Fault::Status(403),
        Fault::Status(404),
        Fault::Status(500),
        Fault::Reset { after: 0 },
        Fault::Flip { at: 0 },
        Fault::WrongContentRange,
        Fault::RedirectLoop,
        Fault::Stall { after: 0 },
        Fault::TooManyRequests { retry_after: Duration::from_secs(3600) },
    ] {
        let name = format!("{fault:?}");
        let root = node.mount(&["--no-background"]);
        node.registry.set_faults(Faults::script([Rule::get(blob.clone(), Nth::Every, fault)]));
        let start = Instant::now();
        let error = fs::read(root.join("data/39")).expect_err(&name);
        let took = start.elapsed();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{name}");
        assert!(took < ANSWER_MAX, "{name}: EIO after {took:?}");
        let log = node.log();
        assert!(log.contains(&node.layer.to_string()), "{name}: no layer in the log: {log}");

        node.registry.set_faults(Faults::none());
        let end = Instant::now() + ANSWER_MAX;
        while let Err(error) = fs::read(root.join("data/39")) {
            assert!(Instant::now() < end, "{name}: still {error} with a registry that is well");
            std::thread::sleep(Duration::from_millis(200));
        }
        trees::assert_same(&node.expected, &look(&root));
        node.scratch.umount();
        node.scratch.forget();
    }
}

#[test]
fn documents_that_are_missing_or_changed_are_named() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let documents = node.documents();
    // 3: not found, 5: corrupt; the SOCI index alone can be done without
    for (what, digest, codes) in [
        ("index of images", documents.top, Some((3, 5))),
        ("manifest", documents.image, Some((3, 5))),
        ("config", documents.config, Some((3, 5))),
        ("SOCI index", documents.soci, None),
        ("zTOC", documents.ztoc, Some((3, 5))),
    ] {
        // the first of them is asked for by its tag
        let (path, named) = match what {
            "index of images" => ("/manifests/indexed".to_owned(), "indexed".to_owned()),
            _ => (digest.to_string(), digest.to_string()),
        };
        for fault in [Fault::Status(404), Fault::Flip { at: 20 }, Fault::Truncate { len: 20 }] {
            let name = format!("{what}, {fault:?}");
            let missing = fault == Fault::Status(404);
            let rule = Rule { method: None, path: path.clone(), nth: Nth::Every, fault };
            node.registry.set_faults(Faults::script([rule]));
            let start = Instant::now();
            let output = node.try_mount();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(start.elapsed() < ANSWER_MAX, "{name}: {said}");
            assert!(said.contains(&named), "{name}: {said}");
            match codes {
                Some((gone, corrupt)) => {
                    let code = if missing { gone } else { corrupt };
                    assert_eq!(output.status.code(), Some(code), "{name}: {said}");
                }
                None => {
                    assert!(output.status.success(), "{name}: {said}");
                    trees::assert_same(&node.expected, &look(&node.scratch.path("mnt")));
                    node.scratch.umount();
                }
            }
            node.scratch.forget();
        }
    }
}
