//! Images as they are served: an OCI layout on this machine, in both forms, whatever they came from.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use spanfs_layer::Digest;
use spanfs_node::Ended;
use spanfs_registry::Registry;

use super::Stop;
use crate::workload::ImageName;

const INDEX_MANIFEST: &str = "application/vnd.oci.image.index.v1+json";
/// Annotation by which a converted image names its SOCI index.
const SOCI_INDEX: &str = "com.amazon.soci.index-digest";
/// Copying and indexing the largest image from a slow registry.
const PREPARE_TIME_MAX: Duration = Duration::from_secs(3600);
/// What is said of an image without a layer that is large enough.
const NOTHING_TO_INDEX: &str = "no ztocs created";
/// File of a kept image whose index is not to be used.
const WITHOUT_INDEX: &str = "without-index";
/// Repository of every image at the registry of a run.
const REPOSITORY: &str = "perf/image";

/// Where images come from and are kept.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    /// Layouts that `perf/images/build` made.
    pub(crate) built: PathBuf,
    /// Layouts with a SOCI index, made once and kept.
    pub(crate) kept: PathBuf,
    pub(crate) spanfs: PathBuf,
    pub(crate) plain_http: bool,
    /// Layers below this size get no zTOC, as with `soci`: such as `10M`.
    pub(crate) layer_size_min: String,
}

/// An image that is ready to be served.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) name: String,
    pub(crate) layout: PathBuf,
    pub(crate) layers: usize,
    pub(crate) compressed_bytes: u64,
    /// Sizes of its blobs by digest.
    pub(crate) sizes: BTreeMap<String, u64>,
    plain: (String, Vec<u8>),
    /// With its SOCI index, if it has one.
    pub(crate) indexed: Option<Digest>,
}

impl Images {
    /// Fetches an image where it is not here yet, and makes its SOCI index.
    pub(crate) fn prepare(&self, name: &ImageName, stop: &Stop) -> Result<Prepared> {
        let (source, key) = match name {
            ImageName::Built(name) => {
                let layout = self.built.join(name);
                ensure!(
                    layout.join("oci-layout").exists(),
                    "{} is not there: perf/images/build {name} {}",
                    layout.display(),
                    self.built.display()
                );
                (format!("oci:{}:latest", layout.display()), name.clone())
            }
            ImageName::Reference(reference) => {
                (reference.clone(), Digest::of(reference.as_bytes()).hex().to_string())
            }
        };
        let kept = self.kept.join(format!("{key}-{}", self.layer_size_min));
        if !kept.join("oci-layout").exists() {
            self.index(&source, &kept, stop)?;
        }
        Prepared::read(&kept, source)
    }

    /// Into a directory of its own until it is whole. An image of small layers gets no index, as with
    /// `soci`: it is kept as if it had one, which nobody is shown.
    fn index(&self, source: &str, kept: &Path, stop: &Stop) -> Result<()> {
        let part = kept.with_extension("part");
        let mut ended = self.index_from(&self.layer_size_min, source, &part, stop)?;
        let has_none = ended.stderr.contains(NOTHING_TO_INDEX);
        if has_none {
            ended = self.index_from("0", source, &part, stop)?;
        }
        ensure!(ended.status.success(), "{}", ended.stderr.trim());
        if has_none {
            fs::write(part.join(WITHOUT_INDEX), "")?;
        }
        fs::rename(&part, kept).with_context(|| format!("keeping {}", kept.display()))
    }

    fn index_from(&self, size: &str, source: &str, to: &Path, stop: &Stop) -> Result<Ended> {
        if to.exists() {
            fs::remove_dir_all(to)?;
        }
        fs::create_dir_all(to)?;
        let mut command = Command::new(&self.spanfs);
        command.args(["--quiet", "index", "--min-layer-size", size]);
        command.args(self.plain_http.then_some("--plain-http"));
        command.arg("--output").arg(format!("oci:{}:latest", to.display())).arg(source);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let ended = spanfs_node::run_for(&mut command, PREPARE_TIME_MAX, &|| stop.is_set())
            .with_context(|| format!("fetching and indexing {source}"));
        stop.check()?;
        ended
    }
}

impl Prepared {
    fn read(layout: &Path, name: String) -> Result<Self> {
        let blob = |digest: &str| -> Result<Value> {
            let hex = digest.strip_prefix("sha256:").context("a digest of another algorithm")?;
            let path = layout.join("blobs/sha256").join(hex);
            let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            Ok(serde_json::from_slice(&text)?)
        };
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
        let root = index["manifests"]
            .as_array()
            .and_then(|all| all.iter().find(|it| it["mediaType"] == INDEX_MANIFEST).or(all.first()))
            .context("the layout lists no image")?;
        let digest = root["digest"].as_str().context("a descriptor without digest")?;
        let around = blob(digest)?;
        // The image beside its SOCI index, or the image itself.
        let is_image = |it: &&Value| {
            it["artifactType"].is_null()
                && it["platform"]["os"] != "unknown"
                && it["platform"]["architecture"].as_str().is_none_or(is_of_this_machine)
        };
        let mut manifest = match around["manifests"].as_array() {
            Some(all) => {
                let image = all.iter().find(is_image).context("no image for this machine")?;
                blob(image["digest"].as_str().context("a descriptor without digest")?)?
            }
            None => around,
        };
        let media_type = manifest["mediaType"].as_str().unwrap_or_default().to_owned();
        let indexed = manifest
            .get_mut("annotations")
            .and_then(Value::as_object_mut)
            .and_then(|annotations| annotations.remove(SOCI_INDEX))
            .map(|_| digest.parse())
            .transpose()?
            .filter(|_| !layout.join(WITHOUT_INDEX).exists());
        let layers = manifest["layers"].as_array().context("a manifest without layers")?;
        let size = |layer: &Value| layer["size"].as_u64().unwrap_or(0);
        let sizes = layers
            .iter()
            .filter_map(|layer| Some((layer["digest"].as_str()?.to_owned(), size(layer))));
        Ok(Self {
            name,
            layout: layout.to_owned(),
            layers: layers.len(),
            compressed_bytes: layers.iter().map(size).sum(),
            sizes: sizes.collect(),
            plain: (media_type, manifest.to_string().into_bytes()),
            indexed,
        })
    }

    /// Puts both forms into a registry.
    pub(crate) fn serve(&self, registry: &Registry) -> Result<()> {
        registry.put_image(REPOSITORY, &self.layout)?;
        let (media_type, bytes) = &self.plain;
        registry.put_manifest(REPOSITORY, Some("plain"), media_type, bytes.clone())?;
        if let Some(indexed) = self.indexed {
            registry.tag(REPOSITORY, "indexed", indexed)?;
        }
        Ok(())
    }

    /// Its name at a registry.
    pub(crate) fn reference(&self, host: &str, form: crate::subject::Form) -> String {
        let tag = match form {
            crate::subject::Form::Indexed if self.indexed.is_some() => "indexed",
            _ => "plain",
        };
        format!("{host}/{REPOSITORY}:{tag}")
    }
}

fn is_of_this_machine(architecture: &str) -> bool {
    architecture == if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}
