//! zTOCs of an image's layers, all cores at work.
//!
//! Layers are built side by side, each on a thread that reads and inflates, with two more that hash.
//! What is recorded of an earlier build with the same span size is used again.

use std::io::Read;
use std::sync::Arc;
use std::time::SystemTime;

use spanfs_cache::build::{BuildOptions as LayerOptions, LayerBuilder, Toc};
use spanfs_layer::oci::{Descriptor, LayerCompression, Manifest};
use spanfs_layer::soci::{
    self, IndexParts, Prefetch, PrefetchLayer, ZtocEntry, ZtocRule, needs_no_xattrs, prefetch_files,
};
use spanfs_layer::ztoc::Compression;
use spanfs_layer::{Digest, SpanTable, Ztoc};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::SociError;
use super::artifacts::{Artifact, ArtifactKind, Artifacts};
use super::life::blocking;
use super::output::{Bar, Output};
use super::store::{BlobReader, Store, ZTOC_LEN_MAX};

/// What zTOCs and indexes say of their builder: that of the peer's releases since 0.10. Equal layers
/// so give equal digests whoever indexed them, and registries keep one copy.
pub const BUILD_TOOL: &str = "AWS SOCI CLI v0.2";

/// How layers are indexed.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// Least uncompressed bytes of a span.
    pub span_size: u64,
    /// Smaller layers get no zTOC.
    pub layer_bytes_min: u64,
    /// Mark layers that need no xattrs.
    pub mark_no_xattrs: bool,
    /// Build also what is known.
    pub force: bool,
    /// Files of the image to be fetched early.
    pub prefetch: Vec<String>,
}

/// What is built with, and into which places.
#[derive(Clone)]
pub struct Builder {
    /// Where layers are read.
    pub images: Store,
    /// Where artifacts are written.
    pub targets: Vec<Store>,
    /// Where they are recorded.
    pub records: Artifacts,
    /// Where progress is told.
    pub output: Output,
    /// How.
    pub options: BuildOptions,
}

/// A layer with its zTOC.
struct Indexed {
    layer: Descriptor,
    digest: Digest,
    size: u64,
    /// Decoded, where somebody has to look into it.
    opened: Option<Opened>,
}

struct Opened {
    ztoc: Ztoc,
    table: SpanTable,
}

/// The artifacts of one image.
pub struct Built {
    indexed: Vec<Indexed>,
    prefetch: Vec<(Digest, Prefetch)>,
    span_size: u64,
    mark_no_xattrs: bool,
}

impl Built {
    /// Make an index of them with `make`.
    pub fn with_parts<R>(&self, make: impl FnOnce(&IndexParts<'_>) -> R) -> R {
        let ztocs: Vec<ZtocEntry<'_>> = self.indexed.iter().map(|it| self.entry(it)).collect();
        make(&IndexParts { ztocs: &ztocs, prefetch: &self.prefetch, build_tool: BUILD_TOOL })
    }

    fn entry<'a>(&self, indexed: &'a Indexed) -> ZtocEntry<'a> {
        let needs_none = |opened: &Opened| needs_no_xattrs(&opened.ztoc.records);
        ZtocEntry {
            digest: indexed.digest,
            size: indexed.size,
            layer: &indexed.layer,
            span_size: self.span_size,
            disable_xattrs: self.mark_no_xattrs && indexed.opened.as_ref().is_some_and(needs_none),
        }
    }
}

/// What became of a layer.
enum Outcome {
    Indexed(Box<Indexed>),
    Skipped(String),
}

impl Builder {
    /// Build what the layers of an image need, write and record it. A layer that can't be lazy is left
    /// out, and the output says why; a broken one fails the whole image.
    pub async fn build(&self, image: &Manifest) -> Result<Built, SociError> {
        for target in &self.targets {
            target.put(soci::CONFIG, &Default::default()).await?;
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let gate = Arc::new(Semaphore::new(cores));
        let mut tasks = JoinSet::new();
        let mut errors = Vec::new();
        // The largest first, so that none is left for one core alone.
        let mut layers: Vec<_> = image.layers.iter().enumerate().collect();
        layers.sort_by_key(|(_, layer)| std::cmp::Reverse(layer.size));
        for (number, layer) in layers {
            match ZtocRule::of(layer, self.options.layer_bytes_min) {
                ZtocRule::Skip(reason) => self.output.line(reason),
                ZtocRule::Ignore => {}
                ZtocRule::NotLayer => {
                    errors.push(format!("{}: not a layer mediaType", layer.media_type));
                }
                ZtocRule::Build(compression) => {
                    let (builder, layer, gate) = (self.clone(), layer.clone(), gate.clone());
                    tasks.spawn(async move {
                        let _permit = gate.acquire().await;
                        (number, builder.layer(&layer, compression).await)
                    });
                }
            }
        }
        let mut indexed = Vec::new();
        while let Some(done) = tasks.join_next().await {
            let (number, outcome) = done.unwrap_or_else(|error| match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => unreachable!("nobody cancels a layer"),
            });
            match outcome {
                Ok(Outcome::Indexed(layer)) => indexed.push((number, layer)),
                Ok(Outcome::Skipped(reason)) => self.output.line(reason),
                Err(error) => errors.push(error.to_string()),
            }
        }
        if !errors.is_empty() {
            let errors = errors.join("; ");
            let text = format!("errors encountered while building soci layers; {errors}");
            return Err(SociError::said(text));
        }
        indexed.sort_by_key(|(number, _)| *number);
        let indexed: Vec<Indexed> = indexed.into_iter().map(|(_, layer)| *layer).collect();
        let prefetch = self.prefetch(&indexed).await?;
        let BuildOptions { span_size, mark_no_xattrs, .. } = self.options;
        Ok(Built { indexed, prefetch, span_size, mark_no_xattrs })
    }

    async fn layer(
        &self,
        layer: &Descriptor,
        compression: LayerCompression,
    ) -> Result<Outcome, SociError> {
        let (bytes, known) = match self.known(&layer.digest).await? {
            Some(bytes) => (bytes, " (already exists)"),
            None => match self.build_layer(layer, compression).await? {
                Ok(bytes) => (bytes, ""),
                Err(reason) => {
                    let Descriptor { digest, media_type, .. } = layer;
                    let text = format!("ztoc skipped - layer {digest} ({media_type}) {reason}");
                    return Ok(Outcome::Skipped(text));
                }
            },
        };
        let digest = Digest::of(&bytes);
        for target in &self.targets {
            if !target.has(&digest).await? {
                target.put(&bytes, &Default::default()).await?;
            }
        }
        if known.is_empty() {
            let span_size = self.options.span_size;
            self.record(digest, ArtifactKind::Ztoc, &bytes, &layer.digest, span_size)?;
        }
        self.output.line(format_args!("layer {} -> ztoc {digest}{known}", layer.digest));
        let looked_into = self.options.mark_no_xattrs || !self.options.prefetch.is_empty();
        let opened = looked_into.then(|| open(&digest, &bytes)).transpose()?;
        let size = bytes.len() as u64;
        let layer = layer.clone();
        Ok(Outcome::Indexed(Box::new(Indexed { layer, digest, size, opened })))
    }

    /// The zTOC of an earlier build, if it is recorded and still there.
    async fn known(&self, layer: &Digest) -> Result<Option<Vec<u8>>, SociError> {
        if self.options.force {
            return Ok(None);
        }
        let Some(digest) = self.records.ztoc(layer, self.options.span_size)? else {
            return Ok(None);
        };
        for target in &self.targets {
            if target.has(&digest).await? {
                return target.bytes(&digest, ZTOC_LEN_MAX).await.map(Some);
            }
        }
        Ok(None)
    }

    /// Read a layer once. Its zTOC, or why it has none.
    async fn build_layer(
        &self,
        layer: &Descriptor,
        compression: LayerCompression,
    ) -> Result<Result<Vec<u8>, String>, SociError> {
        let reader = self.images.reader(layer).await?;
        let options = LayerOptions {
            compression: match compression {
                LayerCompression::Gzip => Some(Compression::Gzip),
                LayerCompression::Uncompressed => Some(Compression::Uncompressed),
                // Docker pushed gzip under its plain type: the first bytes tell.
                LayerCompression::Zstd | LayerCompression::Unknown => None,
            },
            span_size: self.options.span_size,
            build_tool: BUILD_TOOL.to_owned(),
            ..LayerOptions::default()
        };
        let bar = self.output.bar(layer);
        let expected = layer.digest;
        let work = move || read_layer(reader, options, &expected, &bar);
        let done = blocking(work).await?;
        done.map_err(|reason| SociError::said(format!("layer {expected}: {reason}")))
    }

    async fn prefetch(&self, indexed: &[Indexed]) -> Result<Vec<(Digest, Prefetch)>, SociError> {
        let layers: Vec<PrefetchLayer<'_>> = indexed
            .iter()
            .filter_map(|it| Some((it.layer.digest, it.opened.as_ref()?)))
            .map(|(digest, Opened { ztoc, table })| PrefetchLayer {
                digest,
                records: &ztoc.records,
                table,
            })
            .collect();
        let paths: Vec<&str> = self.options.prefetch.iter().map(String::as_str).collect();
        let (prefetch, missing) = prefetch_files(&layers, &paths);
        for path in missing {
            self.output.warn(format_args!("prefetch file {path} not found in any layer"));
        }
        for (layer, artifact) in &prefetch {
            let bytes = artifact.encode();
            let mut digest = Digest::of(&bytes);
            for target in &self.targets {
                digest = target.put(&bytes, &Default::default()).await?;
            }
            self.record(digest, ArtifactKind::Prefetch, &bytes, layer, 0)?;
            let made = "Created prefetch artifact for layer";
            self.output.line(format_args!("{made} {layer}: {digest}"));
        }
        Ok(prefetch)
    }

    fn record(
        &self,
        digest: Digest,
        kind: ArtifactKind,
        bytes: &[u8],
        layer: &Digest,
        span_size: u64,
    ) -> Result<(), SociError> {
        let media_type = match kind {
            ArtifactKind::Prefetch => soci::PREFETCH_MEDIA_TYPE,
            ArtifactKind::Ztoc | ArtifactKind::Index => soci::ZTOC_MEDIA_TYPE,
        };
        let artifact = Artifact {
            kind,
            size: bytes.len() as u64,
            of: layer.to_string(),
            image: String::new(),
            platform: String::new(),
            media_type: media_type.to_owned(),
            artifact_type: String::new(),
            span_size,
            created: Artifact::time(SystemTime::now()),
        };
        Ok(self.records.change(&[(digest, artifact)], &[])?)
    }
}

/// Bytes taken from a layer at once.
const PIECE_LEN: usize = 1 << 20;

/// One pass over a layer. The outer error says that it is broken, the inner one that it is sound but
/// can't have a zTOC.
fn read_layer(
    mut reader: BlobReader,
    options: LayerOptions,
    expected: &Digest,
    bar: &Bar,
) -> Result<Result<Vec<u8>, String>, String> {
    let mut builder = LayerBuilder::new(options, |_, _: &[u8]| Ok(())).map_err(chain)?;
    let mut piece = vec![0; PIECE_LEN];
    loop {
        let count = reader.read(&mut piece).map_err(chain)?;
        if count == 0 {
            break;
        }
        builder.feed(piece.get(..count).unwrap_or_default()).map_err(chain)?;
        bar.add(count as u64);
    }
    let built = builder.finish().map_err(chain)?;
    let found = built.blob_digest;
    if expected.algorithm() == found.algorithm() && *expected != found {
        return Err(format!("its bytes have the digest {found}"));
    }
    Ok(match built.toc {
        // A form of our own, which no peer reads.
        Toc::Lazy(ztoc) if ztoc.compression == Compression::Zstd => {
            Err("is compressed as zstd, whatever its media type says".to_owned())
        }
        Toc::Lazy(ztoc) => Ok(ztoc.encode()),
        Toc::Whole { reason, .. } => Err(reason.to_string()),
    })
}

/// An error with its causes.
fn chain(error: impl std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn open(digest: &Digest, bytes: &[u8]) -> Result<Opened, SociError> {
    let failed = |error| SociError::said(format!("ztoc {digest}: {error}"));
    let ztoc = Ztoc::decode(bytes).map_err(failed)?;
    Ok(Opened { ztoc, table: SpanTable::from_ztoc(bytes).map_err(failed)? })
}
