//! One image: its documents, its SOCI index, its layers.

pub mod decide;
mod early;
mod error;
mod layers;
mod pinned;
mod shelf;
mod soci;
mod toc;
mod whole;
mod ztocs;

use std::path::Path;
use std::sync::Arc;

use spanfs_fetch::{
    BlobSpec, Engine, EngineOptions, ImageRef, READERS_DEFAULT, ReadPool, Registry,
    RegistryOptions, ResolvedImage, Source, SourceOptions,
};
use spanfs_layer::Digest;
use spanfs_layer::oci::{Descriptor, Document, Platform};
use tokio::runtime::Runtime;

use early::Early;
use shelf::Shelf;

use crate::later::Later;

pub use error::ImageError;
pub use layers::{How, LayerSource, Layers, OpenLayer, PrefetchLists, Pull};
pub use pinned::Pinned;
pub(crate) use shelf::{replace, touch};
pub use soci::{Discovery, Search};
pub use whole::{ReadError, read_whole};
pub use ztocs::Ztoc;

/// How images are reached.
#[derive(Clone, Debug, Default)]
pub struct ImagesOptions {
    /// Registries: hosts, credentials, proxies.
    pub registry: RegistryOptions,
    /// Bulk transfers.
    pub engine: EngineOptions,
}

/// Reaches images, wherever they are. Dropping it ends every transfer.
pub struct Images {
    options: SourceOptions,
    engine: Arc<Engine>,
    runtime: Runtime,
    later: Arc<Later>,
}

/// The control plane waits for networks; two threads see to a hundred hosts.
const CONTROL_THREADS: usize = 2;

impl Images {
    /// Start the engine and the registry client.
    pub fn start(options: ImagesOptions) -> Result<Self, ImageError> {
        let start = |error: std::io::Error| ImageError::Start(Box::new(error));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(CONTROL_THREADS)
            .thread_name("control")
            .enable_all()
            .build()
            .map_err(start)?;
        let engine = Arc::new(Engine::start(options.engine)?);
        let opening = Arc::clone(&engine);
        let options = SourceOptions {
            registry: Registry::new(options.registry)?,
            opener: Arc::new(move |digest, size, locate| {
                opening.open(BlobSpec { digest, size }, locate)
            }),
            pool: ReadPool::start(READERS_DEFAULT).map_err(start)?,
            runtime: runtime.handle().clone(),
        };
        Ok(Self { options, engine, runtime, later: Arc::default() })
    }

    /// Read the configuration of registries' hosts anew for images that are named from now on.
    pub fn forget_hosts(&self) {
        self.options.registry.forget_hosts();
    }

    /// The engine that moves the bytes.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Does what nobody waits for.
    pub(crate) fn later(&self) -> &Later {
        &self.later
    }

    /// Runs the waiting for registries.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// A place that images can be read from, and pushed to.
    pub fn source(&self, name: &ImageRef) -> Result<Source, ImageError> {
        Ok(Source::open(name, &self.options)?)
    }

    /// Find an image and read its documents; of an index the image for `platform`.
    pub fn find(&self, name: &ImageRef, platform: &Platform) -> Result<Image, ImageError> {
        self.find_at(self.source(name)?, platform)
    }

    /// The same of a place.
    pub fn find_at(&self, source: Source, platform: &Platform) -> Result<Image, ImageError> {
        let documents = self.runtime.block_on(source.resolve(platform))?;
        Ok(Image { source, documents, early: Early::default() })
    }

    /// Platforms that a name has images for; none where it names a single image.
    pub fn platforms(&self, name: &ImageRef) -> Result<Vec<Platform>, ImageError> {
        let raw = self.runtime.block_on(self.source(name)?.named())?;
        let document = Document::parse(&raw.media_type, &raw.bytes)
            .map_err(|error| ImageError::Corrupt(format!("manifest {}: {error}", raw.digest)))?;
        let Document::Index(index) = document else { return Ok(Vec::new()) };
        let mut platforms: Vec<Platform> = Vec::new();
        for entry in index.manifests.iter().filter(|entry| entry.artifact_type.is_empty()) {
            let Some(platform) = entry.platform.as_ref().filter(|it| !it.is_unknown()) else {
                continue;
            };
            if !platforms.iter().any(|known| known.matches(platform)) {
                platforms.push(platform.clone());
            }
        }
        Ok(platforms)
    }

    /// Find the image of a place and its SOCI index as `search` says, in as few round trips as it takes.
    ///
    /// With `directory`, zTOCs that are not kept below it are asked for as soon as the index names
    /// them, for [`Self::open_layers`] to find under way.
    pub fn find_indexed(
        &self,
        source: Source,
        platform: &Platform,
        search: &Search,
        directory: Option<&Path>,
    ) -> Result<(Image, Discovery), ImageError> {
        let shelf = directory.map(Shelf::open).transpose()?;
        let early = Early::default();
        let (documents, discovery) = self.runtime.block_on(async {
            let chosen = source.choose(platform).await?;
            // Connections for the zTOCs, and for what is read first, are opened meanwhile.
            let layers = chosen.manifest.layers.first().map(|layer| source.blob(layer));
            if let (Some(Ok(blob)), true) = (layers, shelf.is_some()) {
                blob.prepare();
            }
            let index = async {
                let digest = &chosen.descriptor.digest;
                let found = soci::discover(&source, &chosen.manifest, digest, search).await;
                if let Some(shelf) = &shelf {
                    early.start(&source, &chosen.manifest, &found, shelf);
                }
                found
            };
            // The first takes the connection that is there: more hangs on the index.
            let (discovery, config) = tokio::join!(index, source.config(&chosen.manifest));
            let documents = chosen.with_config(config?, source.image())?;
            Ok::<_, ImageError>((documents, discovery))
        })?;
        Ok((Image { source, documents, early }, discovery))
    }
}

/// One image of one platform.
pub struct Image {
    /// Where it is.
    pub source: Source,
    /// What it says of itself.
    pub documents: ResolvedImage,
    early: Early,
}

impl Image {
    /// Bytes of all layers, compressed.
    pub fn compressed_bytes(&self) -> u64 {
        self.documents.layers().iter().map(|layer| layer.size).sum()
    }

    /// Layers with the digests of their tars, the lowest first.
    pub fn layers(&self) -> impl Iterator<Item = (&Descriptor, Digest)> {
        self.documents.layers().iter().zip(self.documents.config.diff_ids().iter().copied())
    }
}
