//! One run of the command: what its global flags mean, and what its commands share.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustix::fs::Mode;
use spanfs_layer::Digest;
use spanfs_layer::oci::{Descriptor, media_type};
use spanfs_layer::soci::{SociIndex, Version};

use super::artifacts::{Artifact, ArtifactKind, Artifacts};
use super::build::{BuildOptions, Builder};
use super::command;
use super::grammar::Arguments;
use super::image::PlatformImage;
use super::life::Life;
use super::output::Output;
use super::store::{LayoutStore, Store};
use super::{SociError, error};
use crate::containerd::{Client, ClientOptions, ImageRecord};

/// What a command works with.
pub(super) struct Session {
    pub(super) arguments: Arguments,
    pub(super) output: Output,
    /// Directory of the state.
    root: PathBuf,
    pub(super) kind: StoreKind,
    life: Life,
}

/// Where artifacts are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreKind {
    Containerd,
    Layout,
}

impl Session {
    pub(super) fn new(arguments: Arguments, output: Output, life: Life) -> Result<Self, SociError> {
        let root = PathBuf::from(arguments.text("root").unwrap_or_default());
        if !root.is_dir() {
            // One level, as the peer does: a root in a directory that is not there is a slip.
            rustix::fs::mkdir(&root, Mode::RWXU)
                .map_err(|error| SociError::disk("mkdir", &root, error.into()))?;
        }
        let kind = match arguments.text("content-store").unwrap_or_default() {
            "containerd" => StoreKind::Containerd,
            "soci" => StoreKind::Layout,
            other => {
                return Err(SociError::said(format!(
                    "unknown content store type: {other}; must be one of [soci containerd]"
                )));
            }
        };
        Ok(Self { arguments, output, root, kind, life })
    }

    fn client_options(&self, connect_time: Duration) -> ClientOptions {
        let text = |name| self.arguments.text(name).unwrap_or_default().to_owned();
        ClientOptions {
            address: text("address"),
            namespace: text("namespace"),
            connect_time: self.arguments.duration("timeout").map_or(connect_time, |time_max| {
                // So that this is what is said, not that the command took too long.
                connect_time.min(time_max.saturating_sub(time_max / 20))
            }),
            ..ClientOptions::default()
        }
    }

    /// containerd, waited for.
    pub(super) async fn client(&self) -> Result<Client, SociError> {
        let options = self.client_options(ClientOptions::default().connect_time);
        Ok(Client::connect(&options).await?)
    }

    /// containerd if it listens now: for what can do without.
    pub(super) async fn client_if_there(&self) -> Option<Client> {
        Client::connect(&self.client_options(Duration::ZERO)).await.ok()
    }

    /// Where artifacts are.
    pub(super) async fn store(&self) -> Result<Store, SociError> {
        match self.kind {
            StoreKind::Containerd => Ok(Store::Containerd(self.client().await?)),
            StoreKind::Layout => self.layout(),
        }
    }

    fn layout(&self) -> Result<Store, SociError> {
        Ok(Store::Layout(LayoutStore::directory(&self.root.join("content"))?))
    }

    /// The client under a lease, which ends with the command.
    pub(super) async fn leased(&self, client: &Client) -> Result<Client, SociError> {
        self.life.leased(client).await
    }

    /// As [`Self::store`], where there is a client already.
    pub(super) fn store_with(&self, client: &Client) -> Result<Store, SociError> {
        match self.kind {
            StoreKind::Containerd => Ok(Store::Containerd(client.clone())),
            StoreKind::Layout => self.layout(),
        }
    }

    /// The records; on a first start those of what the content store holds already.
    pub(super) async fn records(&self) -> Result<Artifacts, SociError> {
        let records = Artifacts::at(&self.root);
        if records.is_there() {
            return Ok(records);
        }
        let store = match self.kind {
            StoreKind::Layout => Some(self.layout()?),
            StoreKind::Containerd => self.client_if_there().await.map(Store::Containerd),
        };
        if let Some(store) = store {
            let images = self.client_if_there().await.map(Store::Containerd);
            command::rebuild::rebuild(&records, &store, images.as_ref()).await?;
        }
        Ok(records)
    }

    /// What the flags that say how to build mean.
    pub(super) fn build_options(&self) -> Result<BuildOptions, SociError> {
        build_options(&self.arguments)
    }

    /// All images of containerd; none if it can't be asked.
    pub(super) async fn images(&self) -> Vec<ImageRecord> {
        match self.client_if_there().await {
            Some(client) => client.images().list(&[]).await.unwrap_or_default(),
            None => Vec::new(),
        }
    }
}

/// See [`Session::build_options`].
pub(super) fn build_options(arguments: &Arguments) -> Result<BuildOptions, SociError> {
    const XATTR: &str = "xattr";
    let optimizations = arguments.texts("optimizations");
    if let Some(other) = optimizations.iter().find(|it| *it != XATTR) {
        let text = format!("optimization {other} is not a valid optimization [{XATTR}]");
        return Err(SociError::said(text));
    }
    let size = |flag: &str, name: &str| {
        u64::try_from(arguments.int(flag))
            .map_err(|_| SociError::said(format!("{name} must be >= 0")))
    };
    Ok(BuildOptions {
        span_size: size("span-size", "span size")?,
        layer_bytes_min: size("min-layer-size", "min layer size")?,
        mark_no_xattrs: !optimizations.is_empty(),
        force: arguments.is_set("force"),
        prefetch: prefetch_paths(arguments)?,
    })
}

fn prefetch_paths(arguments: &Arguments) -> Result<Vec<String>, SociError> {
    let mut paths = arguments.texts("prefetch-file").to_vec();
    if let Some(path) = arguments.text("prefetch-files-json").filter(|it| !it.is_empty()) {
        let failed = |text: String| {
            let loading = "failed to load prefetch files from JSON";
            SociError::said(format!("failed to parse prefetch files: {loading}: {text}"))
        };
        let json = std::fs::read(path).map_err(|it| {
            let text = error::go_text(&it);
            failed(format!("failed to read JSON file: open {path}: {text}"))
        })?;
        let listed: Vec<String> = serde_json::from_slice(&json)
            .map_err(|it| failed(format!("failed to parse JSON: {it}")))?;
        paths.extend(listed);
    }
    let clean = |path: &String| {
        let parts = path.trim().split('/').filter(|part| !matches!(*part, "" | "."));
        parts.collect::<Vec<_>>().join("/")
    };
    let mut known = HashSet::new();
    let mut clean: Vec<String> = paths.iter().map(clean).filter(|path| !path.is_empty()).collect();
    clean.retain(|path| known.insert(path.clone()));
    Ok(clean)
}

/// Write and record a SOCI index. Its descriptor.
pub(super) async fn keep_index(
    builder: &Builder,
    index: &SociIndex,
    image: &PlatformImage,
    of: &Digest,
    target: &Digest,
) -> Result<(Descriptor, Vec<u8>), SociError> {
    let bytes = index.to_canonical();
    let descriptor = Descriptor::of(media_type::MANIFEST, &bytes);
    let (named, config) = (&index.manifest.layers, &index.manifest.config.digest);
    for store in &builder.targets {
        store.put_index(&bytes, &descriptor, named, config).await?;
    }
    let record = index_record(index.version, &descriptor, &image.platform.to_string(), of, target);
    builder.records.change(&[(descriptor.digest, record)], &[])?;
    Ok((descriptor, bytes))
}

/// The record of an index made now.
pub(super) fn index_record(
    version: Version,
    descriptor: &Descriptor,
    platform: &str,
    of: &Digest,
    target: &Digest,
) -> Artifact {
    Artifact {
        kind: ArtifactKind::Index,
        size: descriptor.size,
        of: of.to_string(),
        image: target.to_string(),
        platform: platform.to_owned(),
        media_type: media_type::MANIFEST.to_owned(),
        artifact_type: version.artifact_type().to_owned(),
        span_size: 0,
        created: Artifact::time(SystemTime::now()),
    }
}
