//! Images made here: a static busybox and files of ours, so that nothing is fetched from anywhere.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::Command;

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use spanfs_layer::Digest;
use spanfs_registry::Registry;
use spanfs_tests::peers::{run, skopeo_copy, spanfs};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// What image programs are links to.
const APPLETS: &[&str] = &[
    "cat",
    "chmod",
    "cut",
    "dd",
    "echo",
    "find",
    "ls",
    "mkdir",
    "mv",
    "rm",
    "sh",
    "sha256sum",
    "sleep",
    "wc",
];

/// One layer in the making.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    /// With nothing in it.
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn header(kind: tar::EntryType, mode: u32, len: usize) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(len as u64);
        header
    }

    /// With a directory.
    pub(crate) fn directory(mut self, path: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Directory, 0o755, 0);
        self.0.append_data(&mut header, path, &[][..]).expect("tar in memory");
        self
    }

    /// With a file.
    pub(crate) fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = Self::header(tar::EntryType::Regular, mode, content.len());
        self.0.append_data(&mut header, path, content).expect("tar in memory");
        self
    }

    /// With a symbolic link.
    pub(crate) fn link(mut self, path: &str, target: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777, 0);
        self.0.append_link(&mut header, path, target).expect("tar in memory");
        self
    }

    /// A layer with programs: what every image here begins with.
    pub(crate) fn programs() -> Self {
        let busybox = fs::read("/bin/busybox").expect("the package busybox-static");
        let mut layer = Self::new().directory("bin").directory("tmp").directory("etc").file(
            "bin/busybox",
            0o755,
            &busybox,
        );
        for applet in APPLETS {
            layer = layer.link(&format!("bin/{applet}"), "busybox");
        }
        layer.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n")
    }

    fn finish(self) -> Built {
        Built::of(&self.0.into_inner().expect("tar in memory"))
    }
}

/// A layer as it is served.
#[derive(Clone)]
struct Built {
    diff: Digest,
    blob: Vec<u8>,
}

impl Built {
    fn of(tar: &[u8]) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(1));
        encoder.write_all(tar).expect("gzip in memory");
        Self { diff: Digest::of(tar), blob: encoder.finish().expect("gzip in memory") }
    }
}

/// An image in the making.
#[derive(Clone, Default)]
pub(crate) struct Image {
    layers: Vec<Built>,
    command: Vec<String>,
}

impl Image {
    /// With the programs as its only layer, and a command that prints a line.
    pub(crate) fn with_programs() -> Self {
        Self::of(Layer::programs())
    }

    /// Of one layer, which has [`Layer::programs`] in it.
    pub(crate) fn of(layer: Layer) -> Self {
        let command = ["/bin/echo", "ready"].map(str::to_owned).to_vec();
        Self { layers: Vec::new(), command }.layer(layer)
    }

    /// With a layer on top.
    pub(crate) fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer.finish());
        self
    }

    /// With a layer of that tar on top.
    pub(crate) fn layer_tar(mut self, tar: Vec<u8>) -> Self {
        self.layers.push(Built::of(&tar));
        self
    }

    /// On top of it, a layer that somebody else has made: a gzip of a tar.
    pub(crate) fn layer_blob(mut self, blob: Vec<u8>) -> Self {
        let mut tar = Vec::new();
        MultiGzDecoder::new(blob.as_slice()).read_to_end(&mut tar).expect("gzip");
        self.layers.push(Built { diff: Digest::of(&tar), blob });
        self
    }

    /// With what it runs unless told otherwise.
    pub(crate) fn command(mut self, command: &[&str]) -> Self {
        self.command = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    fn config(&self) -> Vec<u8> {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let diffs: Vec<_> = self.layers.iter().map(|layer| layer.diff.to_string()).collect();
        let history = vec![json!({"created_by": "test"}); diffs.len()];
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": {"Cmd": self.command, "Env": ["PATH=/bin"], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": diffs}, "history": history,
        });
        config.to_string().into_bytes()
    }

    fn manifest(&self) -> Vec<u8> {
        let layers = self.layers.iter().map(|layer| descriptor(LAYER, &layer.blob));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &self.config()), "layers": layers.collect::<Vec<_>>(),
        });
        manifest.to_string().into_bytes()
    }

    /// Puts it into a registry and returns its reference.
    pub(crate) fn push(&self, registry: &Registry, repository: &str, tag: &str) -> String {
        for layer in &self.layers {
            registry.put_blob(repository, layer.blob.clone()).expect("a name");
        }
        registry.put_blob(repository, self.config()).expect("a name");
        let manifest = self.manifest();
        registry.put_manifest(repository, Some(tag), MANIFEST, manifest).expect("a manifest");
        registry.reference(repository, tag)
    }

    /// Puts it into a registry with a SOCI index: version 2 as an image of its own, under the same
    /// tag; version 1 as a referrer. Returns its reference and the digest of the index.
    pub(crate) fn push_indexed(
        &self,
        registry: &Registry,
        repository: &str,
        format: &str,
    ) -> (String, Digest) {
        self.push_indexed_from(registry, repository, format, "1M")
    }

    /// [`Self::push_indexed`] with the least size of a layer that gets a zTOC.
    pub(crate) fn push_indexed_from(
        &self,
        registry: &Registry,
        repository: &str,
        format: &str,
        layer_size_min: &str,
    ) -> (String, Digest) {
        let reference = self.push(registry, repository, format);
        let index = index(&reference, format, layer_size_min);
        (reference, index)
    }

    /// [`Self::push_indexed`] to a registry of another make, at an address.
    pub(crate) fn push_indexed_to(&self, address: &str, repository: &str, format: &str) -> String {
        let reference = self.push_to(address, repository, format);
        index(&reference, format, "1M");
        reference
    }

    /// [`Self::push`] to a registry of another make, at an address.
    pub(crate) fn push_to(&self, address: &str, repository: &str, tag: &str) -> String {
        let reference = format!("{address}/{repository}:{tag}");
        let archive = tempfile::NamedTempFile::new().expect("temporary file");
        fs::write(archive.path(), self.archive(&reference)).expect("write");
        let from = format!("oci-archive:{}", archive.path().display());
        skopeo_copy(&from, &format!("docker://{reference}"), &["--dest-tls-verify=false"]);
        reference
    }

    /// How many layers it has.
    pub(crate) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Digest and size of a layer's blob.
    pub(crate) fn blob(&self, layer: usize) -> (Digest, u64) {
        let blob = &self.layers[layer].blob;
        (Digest::of(blob), blob.len() as u64)
    }

    /// Digest of a layer's tar.
    pub(crate) fn diff_id(&self, layer: usize) -> Digest {
        self.layers[layer].diff
    }

    /// Digest of its manifest.
    pub(crate) fn manifest_digest(&self) -> Digest {
        Digest::of(&self.manifest())
    }

    /// The digest that names the stack of its layers up to one.
    pub(crate) fn chain(&self, layer: usize) -> String {
        let above = |below: String, layer: &Built| match below.as_str() {
            "" => layer.diff.to_string(),
            _ => Digest::of(format!("{below} {}", layer.diff).as_bytes()).to_string(),
        };
        self.layers[..=layer].iter().fold(String::new(), above)
    }

    /// As an archive of an OCI layout, which `ctr images import` takes.
    pub(crate) fn archive(&self, reference: &str) -> Vec<u8> {
        self.archive_from(reference, 0)
    }

    /// [`Self::archive`] without the blobs of the lowest layers, as of an image that was committed where
    /// these were never fetched.
    pub(crate) fn archive_from(&self, reference: &str, first: usize) -> Vec<u8> {
        let mut manifest = descriptor(MANIFEST, &self.manifest());
        manifest["annotations"] = json!({"io.containerd.image.name": reference});
        let index = json!({"schemaVersion": 2, "manifests": [manifest]}).to_string();
        let mut archive = Layer::new()
            .file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)
            .file("index.json", 0o644, index.as_bytes());
        let blobs = self.layers[first..].iter().map(|layer| layer.blob.clone());
        for blob in blobs.chain([self.config(), self.manifest()]) {
            let digest = Digest::of(&blob).to_string();
            archive = archive.file(&format!("blobs/{}", digest.replace(':', "/")), 0o644, &blob);
        }
        archive.0.into_inner().expect("tar in memory")
    }
}

/// Makes a SOCI index for an image and puts it beside it; its digest.
fn index(reference: &str, format: &str, layer_size_min: &str) -> Digest {
    let mut command = Command::new(spanfs());
    command
        .args(["--json", "index", "--format", format, "--min-layer-size", layer_size_min])
        .args(["--span-size", "256K", "--output", reference, reference])
        // For registries that want them.
        .env("SPANFS_USERNAME", "user")
        .env("SPANFS_PASSWORD", "secret");
    let said: Value = serde_json::from_str(&run(&mut command)).expect("JSON");
    said["images"][0]["index"].as_str().expect("an index").parse().expect("a digest")
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
}

/// Bytes that no compressor makes smaller, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
