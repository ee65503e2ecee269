//! A registry with one image of many spans, and what a test does with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use spanfs_layer::Digest;
use spanfs_registry::Registry;

use crate::peers::run;
use crate::scratch::Scratch;
use crate::trees::{Seen, look};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Repository of all images.
pub(crate) const REPOSITORY: &str = "faults";

/// Indexes an image, in spans that even small layers have several of; the converted one's name.
pub(crate) fn index(registry: &Registry, scratch: &Scratch, from: &str, to: &str) -> String {
    let [from, to] = [from, to].map(|tag| registry.reference(REPOSITORY, tag));
    run(scratch
        .spanfs()
        .args(["index", "--min-layer-size", "0", "--span-size", "256K"])
        .args(["--output", &to, &from]));
    to
}

/// An image of one layer with many spans, its index, and a registry that can be made to fail.
pub(crate) struct Node {
    pub(crate) registry: Registry,
    pub(crate) scratch: Scratch,
    pub(crate) image: String,
    pub(crate) layer: Digest,
    pub(crate) expected: BTreeMap<PathBuf, Seen>,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(Registry::builder().start().expect("registry"), Scratch::new())
    }

    pub(crate) fn with(registry: Registry, scratch: Scratch) -> Self {
        let tree = scratch.path("tree");
        make_tree(&tree);
        let layer = put_tree(&registry, &scratch, &tree);
        let image = index(&registry, &scratch, "plain", "indexed");
        registry.reset_stats();
        let expected = look(&tree);
        Self { registry, scratch, image, layer, expected }
    }

    pub(crate) fn mount(&self, options: &[&str]) -> PathBuf {
        self.scratch.mount(&self.image, options)
    }

    pub(crate) fn try_mount(&self) -> Output {
        let root = self.scratch.path("mnt");
        fs::create_dir_all(&root).expect("directory");
        let mut command = self.scratch.spanfs();
        command.arg("mount").arg(&self.image).arg(&root).output().expect("spanfs starts")
    }

    /// Everything that the mount process said so far.
    pub(crate) fn log(&self) -> String {
        let status = self.scratch.status_of(&self.scratch.path("mnt"));
        let pid = status["mounts"][0]["pid"].as_i64().expect("pid of the mount");
        fs::read_to_string(format!("/proc/{pid}/fd/2")).expect("log of the mount")
    }

    /// Another image of the same layer, whose SOCI index names a zTOC that somebody changed. All digests
    /// are right.
    pub(crate) fn with_ztoc(&self, tag: &str, edit: impl FnOnce(Vec<u8>) -> Vec<u8>) -> String {
        let documents = self.documents();
        let file = self.scratch.path("ztoc");
        let url = format!("{}/v2/{REPOSITORY}/blobs/{}", self.registry.url(), documents.ztoc);
        run(Command::new("curl").args(["--silent", "--fail", &url, "-o"]).arg(&file));
        let ztoc = edit(fs::read(file).expect("zTOC"));
        let read = |digest: &Digest| -> Value {
            let bytes = self.registry.manifest(REPOSITORY, digest).expect("manifest");
            serde_json::from_slice(&bytes).expect("JSON")
        };
        let mut soci = read(&documents.soci);
        soci["layers"][0]["size"] = ztoc.len().into();
        let digest = self.registry.put_blob(REPOSITORY, ztoc).expect("zTOC");
        soci["layers"][0]["digest"] = digest.to_string().into();
        let put = |tag: Option<&str>, manifest: &Value| {
            self.registry.put_manifest(REPOSITORY, tag, MANIFEST, manifest.to_string())
        };
        let soci = put(None, &soci).expect("SOCI index");
        let mut image = read(&documents.image);
        image["annotations"]["com.amazon.soci.index-digest"] = soci.to_string().into();
        put(Some(tag), &image).expect("image");
        self.registry.reference(REPOSITORY, tag)
    }

    fn manifest(&self, tag: &str) -> (Digest, Value) {
        let tags = self.registry.tags(REPOSITORY);
        let (_, digest) = tags.iter().find(|(name, _)| name == tag).expect("a tag that was pushed");
        let bytes = self.registry.manifest(REPOSITORY, digest).expect("manifest");
        (*digest, serde_json::from_slice(&bytes).expect("JSON"))
    }

    /// The converted image: its index of images, the image, its SOCI index, the zTOC.
    pub(crate) fn documents(&self) -> Documents {
        let at = |value: &Value| -> Digest {
            value["digest"].as_str().expect("digest").parse().expect("digest")
        };
        let read = |digest: &Digest| -> Value {
            let bytes = self.registry.manifest(REPOSITORY, digest).expect("manifest");
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

pub(crate) struct Documents {
    pub(crate) top: Digest,
    pub(crate) image: Digest,
    pub(crate) config: Digest,
    pub(crate) soci: Digest,
    pub(crate) ztoc: Digest,
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

/// Pushes an image of one layer, a tree, under the tag `plain`; the layer's tar stays in the scratch.
pub(crate) fn put_tree(registry: &Registry, scratch: &Scratch, tree: &Path) -> Digest {
    let tar = scratch.path("layer.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(tree)
        .args(["--format=pax", "--sort=name", "-cf"])
        .arg(&tar)
        .arg("."));
    put_image(registry, "plain", &[&tar])[0]
}

/// Pushes an image of gzip layers, given as tars, the lowest first; their digests.
pub(crate) fn put_image(registry: &Registry, tag: &str, tars: &[&Path]) -> Vec<Digest> {
    let put = |tar: &&Path| {
        let diff_id = Digest::of(&fs::read(tar).expect("tar"));
        let blob = tar.with_extension("gz");
        run(Command::new("sh").args(["-c", "gzip -n -6 <\"$0\" >\"$1\""]).arg(tar).arg(&blob));
        (diff_id, fs::read(blob).expect("blob"))
    };
    put_blobs(registry, tag, tars.iter().map(put).collect())
}

/// The same of blobs with their diffIDs.
pub(crate) fn put_blobs(
    registry: &Registry,
    tag: &str,
    blobs: Vec<(Digest, Vec<u8>)>,
) -> Vec<Digest> {
    let diff_ids: Vec<String> = blobs.iter().map(|(diff_id, _)| diff_id.to_string()).collect();
    let layers = blobs.into_iter().map(|(_, blob)| {
        let size = blob.len();
        (registry.put_blob(REPOSITORY, blob).expect("layer"), size)
    });
    let layers: Vec<(Digest, usize)> = layers.collect();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string();
    let config_size = config.len();
    let config = registry.put_blob(REPOSITORY, config).expect("config");
    let layer = |(digest, size): &(Digest, usize)| {
        json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": digest.to_string(), "size": size})
    };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.to_string(), "size": config_size},
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    });
    registry.put_manifest(REPOSITORY, Some(tag), MANIFEST, manifest.to_string()).expect("manifest");
    layers.into_iter().map(|(digest, _)| digest).collect()
}
