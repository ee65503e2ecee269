//! The layers of an image, opened: span by span where there is a zTOC, else fetched whole first.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use spanfs_cache::build::BuildOptions;
use spanfs_cache::{
    Buffer, Cache, Content, KnownLayer, Layer, LayerSpec, Origin, Program, WholeSpec, WholeToc,
};
use spanfs_fetch::buffer::{Durable, Place, StreamOptions};
use spanfs_fetch::{Blob, Source};
use spanfs_layer::oci::Descriptor;
use spanfs_layer::soci::{Prefetch, SpanRun};
use spanfs_layer::tree::{Tree, TreeBuilder, TreeOptions};
use spanfs_layer::ztoc::View;
use spanfs_layer::{Digest, Record};

use super::shelf::Shelf;
use super::toc::Toc;
use super::whole::WholeRead;
use super::ztocs::Ztoc;
use super::{Discovery, Image, ImageError, Images};
use crate::side_by_side::{cores, side_by_side};

/// Layers fetched whole at once: as many as container engines do.
const WHOLE_LAYERS_MAX: usize = 3;

/// Runs of spans are a few bytes each.
const PREFETCH_LEN_MAX: u64 = 1 << 20;

/// How a layer comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// Span by span, by a zTOC of the SOCI index.
    Indexed,
    /// Span by span, by a zTOC that an earlier whole pass left.
    Kept,
    /// It was fetched whole just now; its zTOC was built on the way and is kept.
    Whole,
    /// It was fetched whole, and kept as a local file: it can't have a zTOC, for this reason.
    Never(String),
}

/// A layer that can be read.
#[derive(Clone)]
pub struct OpenLayer {
    /// As the manifest gives it.
    pub descriptor: Descriptor,
    /// Its bytes.
    pub content: Arc<dyn Content>,
    /// Its spans; `None` for a layer that is no more than a local file.
    pub spans: Option<Arc<Layer>>,
    /// How it comes.
    pub how: How,
    pub(crate) toc: LayerToc,
}

/// Where a layer's entries are written down.
#[derive(Clone)]
pub(crate) enum LayerToc {
    Ztoc(Arc<Toc>),
    Records(Arc<[Record]>),
}

/// Layers of an image, the lowest first.
#[derive(Clone, Default)]
pub struct Layers {
    /// The layers.
    pub layers: Vec<OpenLayer>,
}

/// Where layers are kept, and what to do on the way.
pub struct LayerSource<'a> {
    /// Keeps them.
    pub cache: &'a Cache,
    /// Its directory, in which zTOCs and indexes of ours are kept as well.
    pub directory: &'a Path,
    /// Ends whole passes.
    pub stop: &'a AtomicBool,
    /// Told of layers fetched whole: which, and how many bytes of it are there.
    pub progress: &'a (dyn Fn(&Descriptor, u64) + Sync),
    /// How layers are fetched whole.
    pub pull: Pull<'a>,
}

/// How layers are fetched whole; the fields are those of [`WholeSpec`].
#[derive(Clone)]
pub struct Pull<'a> {
    /// Ranges under way.
    pub stream: StreamOptions,
    /// Where the blob's bytes stand on their way.
    pub buffer: Buffer,
    /// Places in line where layers decoded at once are limited.
    pub unpacks: &'a [Place],
    /// Given the file of the blob once its digest matched.
    pub keep: Option<&'a (dyn Fn(&Path) + Sync)>,
    /// Whether layers are to have zTOCs.
    pub ztoc: bool,
    /// Decompresses in our place.
    pub program: Option<&'a Program>,
    /// The blob where it need not be fetched.
    pub local: Option<Arc<dyn Blob>>,
}

impl Default for Pull<'_> {
    /// Through memory, without limits.
    fn default() -> Self {
        Self {
            stream: WholeSpec::stream(),
            buffer: Buffer::Memory,
            unpacks: &[],
            keep: None,
            ztoc: true,
            program: None,
            local: None,
        }
    }
}

impl Images {
    /// Open the layers of an image, or the one of them that is `only`.
    pub fn open_layers(
        &self,
        image: &Image,
        discovery: &Discovery,
        only: Option<&Digest>,
        source: &LayerSource<'_>,
    ) -> Result<Layers, ImageError> {
        let wanted: Vec<(Descriptor, Digest)> = image
            .layers()
            .filter(|(descriptor, _)| only.is_none_or(|only| descriptor.digest == *only))
            .map(|(descriptor, diff_id)| (descriptor.clone(), diff_id))
            .collect();
        if let (Some(only), true) = (only, wanted.is_empty()) {
            return Err(ImageError::NotFound(format!(
                "{} has no layer {only}",
                image.source.image()
            )));
        }
        let shelf = Shelf::open(source.directory)?;
        let known = wanted.iter().map(|(descriptor, diff_id)| {
            known(image, discovery, descriptor, *diff_id, &shelf, source.cache)
        });
        let known = known.collect::<Result<Vec<_>, _>>()?;
        let unknown = wanted.iter().zip(&known).filter(|(_, known)| known.is_none());
        let unknown: Vec<_> = unknown.map(|(wanted, _)| wanted.clone()).collect();
        let ztocs = self.ztocs(image, discovery, &unknown, source.directory)?;
        // One thread waits for one layer; the engine spreads them over its connections.
        let opened = side_by_side(&unknown, WHOLE_LAYERS_MAX, |number, (descriptor, diff_id)| {
            let ztoc = ztocs.get(number).cloned().flatten();
            self.open_layer(&image.source, descriptor, *diff_id, ztoc, source)
        });
        let mut opened = opened.into_iter();
        let either = |known: Option<OpenLayer>| known.map(Ok).or_else(|| opened.next());
        let layers = known.into_iter().filter_map(either).collect::<Result<_, _>>()?;
        Ok(Layers { layers })
    }

    /// Ask for the lists of spans that the index wants fetched before anybody reads. Never waits.
    pub fn prefetch_lists(
        &self,
        image: &Image,
        discovery: &Discovery,
        wanted: &[(Descriptor, Digest)],
    ) -> PrefetchLists {
        let start = |(layer, _): &(Descriptor, Digest)| {
            let named = discovery.index()?.prefetch(&layer.digest)?;
            if named.size > PREFETCH_LEN_MAX {
                tracing::warn!(digest = %named.digest, size = named.size, "prefetch list too long");
                return None;
            }
            Some((named.digest, WholeRead::start(image.source.blob(named).ok()?)))
        };
        PrefetchLists(wanted.iter().map(start).collect())
    }

    /// Open one layer of the image at `place`: by its zTOC, or whole where there is none.
    pub fn open_layer(
        &self,
        place: &Source,
        descriptor: &Descriptor,
        diff_id: Digest,
        ztoc: Option<Ztoc>,
        source: &LayerSource<'_>,
    ) -> Result<OpenLayer, ImageError> {
        let blob = place.blob(descriptor)?;
        let shelf = Shelf::open(source.directory)?;
        if let Some(ztoc) = ztoc {
            return lazy(source.cache, descriptor, diff_id, &ztoc, blob);
        }
        let Pull { stream, buffer, unpacks, keep, ztoc, program, local } = source.pull.clone();
        let whole = source.cache.whole(WholeSpec {
            blob,
            diff_id: Some(diff_id),
            local,
            build: BuildOptions::default(),
            // Left by an earlier pass, the layer gone since.
            known: shelf.ztoc_of_layer(&descriptor.digest).map(|(_, encoded)| encoded),
            stream,
            stop: source.stop,
            progress: &|done| (source.progress)(descriptor, done),
            buffer,
            unpacks,
            keep,
            ztoc,
            durable: Durable::No,
            program,
        })?;
        Ok(match whole.toc {
            WholeToc::Lazy { layer, ztoc } => {
                let digest = *layer.ztoc_digest();
                // Outlives the layer's eviction from the cache.
                shelf.put(&digest, &ztoc);
                shelf.note(&descriptor.digest, &digest);
                let how = match whole.origin {
                    Origin::Blob => How::Whole,
                    Origin::Disk => How::Kept,
                };
                let toc = Toc::new(digest, shelf, None, Some(ztoc));
                spanned(descriptor, layer, toc, how)
            }
            WholeToc::Never { content, records, reason } => OpenLayer {
                descriptor: descriptor.clone(),
                content,
                spans: None,
                how: How::Never(reason),
                toc: LayerToc::Records(records),
            },
        })
    }
}

/// Lists of spans to fetch first, under way, for each layer of an image.
pub struct PrefetchLists(Vec<Option<(Digest, WholeRead)>>);

impl PrefetchLists {
    /// Wait for them: spans of each layer. A list that can't be had is left out: it would only have
    /// saved time.
    pub fn runs(self) -> Vec<Vec<SpanRun>> {
        let runs = self.0.into_iter().map(|read| {
            let (digest, read) = read?;
            let blob = read.finish().inspect_err(|error| {
                tracing::warn!(%digest, %error, "a prefetch list can't be fetched");
            });
            let blob = blob.ok().filter(|blob| blob.digest == digest)?;
            let list = Prefetch::parse(&blob.bytes).inspect_err(|error| {
                tracing::warn!(%digest, %error, "a prefetch list is not understood");
            });
            Some(list.ok()?.runs().to_vec())
        });
        runs.map(Option::unwrap_or_default).collect()
    }
}

/// A layer by what earlier runs kept of it and of its zTOC; `None` if that is not all there.
fn known(
    image: &Image,
    discovery: &Discovery,
    descriptor: &Descriptor,
    diff_id: Digest,
    shelf: &Shelf,
    cache: &Cache,
) -> Result<Option<OpenLayer>, ImageError> {
    let named = discovery.index().and_then(|index| index.ztoc(&descriptor.digest));
    let (how, digest) = match named {
        Some(named) => (How::Indexed, Some(named.digest)),
        None => (How::Kept, shelf.digest_of_layer(&descriptor.digest)),
    };
    let Some(digest) = digest.filter(|digest| shelf.has(digest)) else { return Ok(None) };
    let blob = image.source.blob(descriptor)?;
    let known = KnownLayer { diff_id: Some(diff_id), blob, ztoc_digest: digest };
    let Some(layer) = cache.known_layer(known)? else { return Ok(None) };
    shelf.touch(&digest);
    let blob = named.map(|named| image.source.blob(named)).transpose()?;
    Ok(Some(spanned(descriptor, layer, Toc::new(digest, shelf.clone(), blob, None), how)))
}

fn lazy(
    cache: &Cache,
    descriptor: &Descriptor,
    diff_id: Digest,
    ztoc: &Ztoc,
    blob: Arc<dyn Blob>,
) -> Result<OpenLayer, ImageError> {
    let toc = ztoc.toc();
    if ztoc.bytes.is_none() {
        let (diff_id, blob) = (Some(diff_id), Arc::clone(&blob));
        let known = KnownLayer { diff_id, blob, ztoc_digest: ztoc.digest };
        if let Some(layer) = cache.known_layer(known)? {
            return Ok(spanned(descriptor, layer, toc, ztoc.how.clone()));
        }
    }
    let spec =
        LayerSpec { diff_id: Some(diff_id), blob, ztoc_digest: ztoc.digest, ztoc: toc.bytes()? };
    Ok(spanned(descriptor, cache.layer(spec)?, toc, ztoc.how.clone()))
}

fn spanned(descriptor: &Descriptor, layer: Arc<Layer>, toc: Toc, how: How) -> OpenLayer {
    let toc = Arc::new(toc.of(&layer));
    OpenLayer {
        descriptor: descriptor.clone(),
        content: Arc::clone(&layer) as Arc<dyn Content>,
        spans: Some(layer),
        how,
        toc: LayerToc::Ztoc(toc),
    }
}

impl OpenLayer {
    /// Name of the layer's index: the same for the same entries at the same places.
    pub(crate) fn index_key(&self) -> String {
        match &self.toc {
            LayerToc::Ztoc(toc) => toc.digest.hex().to_string(),
            LayerToc::Records(_) => format!("layer-{}", self.descriptor.digest.hex()),
        }
    }

    /// Have it on the disk for good by and by, with its zTOC, as far as it is here; `images` sees to that.
    pub fn keep(&self, images: &Images) {
        if let LayerToc::Ztoc(toc) = &self.toc {
            let (toc, spans) = (Arc::clone(toc), self.spans.as_ref().map(Arc::downgrade));
            images.later.add(move || {
                toc.keep();
                // Whoever has removed it meanwhile needs it no more.
                if let Some(layer) = spans.and_then(|spans| spans.upgrade()) {
                    layer.make_durable();
                }
            });
        }
    }

    /// Wait until the layer can be opened again without asking anybody.
    pub fn settle(&self) -> Result<(), ImageError> {
        Ok(self.spans.as_ref().map_or(Ok(()), |spans| spans.wait_for_ztoc())?)
    }

    /// Length of its zTOC, if it has one.
    pub fn ztoc_len(&self) -> Option<u64> {
        match &self.toc {
            LayerToc::Ztoc(toc) => Some(toc.len()).filter(|&len| len > 0),
            LayerToc::Records(_) => None,
        }
    }

    /// The tree of the layer.
    pub fn tree(&self, options: TreeOptions) -> Result<Tree, ImageError> {
        self.tree_with(options, &[])
    }

    /// The tree of the layer as if `before` stood in front of its own entries.
    pub(crate) fn tree_with(
        &self,
        options: TreeOptions,
        before: &[Record],
    ) -> Result<Tree, ImageError> {
        let mut builder = TreeBuilder::new(options);
        let pushed = match before.iter().try_for_each(|record| builder.push(record)) {
            Ok(()) => self.each_record(|record| builder.push(record))?,
            Err(error) => Err(error),
        };
        let tree = pushed.and_then(|()| builder.finish());
        tree.map_err(|error| self.bad(&error))
    }

    /// Look at the entries of the layer one after the other, until that fails.
    pub(crate) fn each_record<E>(
        &self,
        mut look: impl FnMut(&Record) -> Result<(), E>,
    ) -> Result<Result<(), E>, ImageError> {
        match &self.toc {
            LayerToc::Records(records) => Ok(records.iter().try_for_each(&mut look)),
            LayerToc::Ztoc(toc) => {
                let bytes = toc.bytes()?;
                let view = View::new(&bytes).map_err(|error| self.bad(&error))?;
                view.each_record(look).map_err(|error| self.bad(&error))
            }
        }
    }

    pub(crate) fn bad(&self, fault: &dyn std::fmt::Display) -> ImageError {
        ImageError::Corrupt(format!("layer {}: {fault}", self.descriptor.digest))
    }
}

impl Layers {
    /// The entries of the layers will not be needed soon: memory of what is kept is given back, now
    /// or, as far as it is about to be kept, then.
    pub fn forget_tocs(&self, images: &Images) {
        self.forget_kept_tocs();
        let tocs: Vec<_> = self.tocs().cloned().collect();
        images.later.add(move || {
            tocs.iter().for_each(|toc| toc.forget());
            // What indexes and trees were made of is garbage by now too.
            spanfs_cache::give_back_memory();
        });
    }

    /// Have the zTOCs where a successor of this process finds them, though they are not on the disk for
    /// good yet.
    pub fn put_tocs(&self) {
        self.tocs().for_each(|toc| toc.put());
    }

    /// Give the memory of those back that are kept already.
    pub fn forget_kept_tocs(&self) {
        self.tocs().for_each(|toc| toc.forget());
    }

    /// Bytes of the zTOCs that are here.
    pub fn toc_bytes(&self) -> u64 {
        self.tocs().map(|toc| toc.len()).sum()
    }

    fn tocs(&self) -> impl Iterator<Item = &Arc<Toc>> {
        self.layers.iter().filter_map(|layer| match &layer.toc {
            LayerToc::Ztoc(toc) => Some(toc),
            LayerToc::Records(_) => None,
        })
    }

    /// The tree of each layer, built side by side.
    pub(crate) fn each_tree(&self, options: &TreeOptions) -> Vec<Result<Tree, ImageError>> {
        side_by_side(&self.layers, cores(), |_, layer| layer.tree(options.clone()))
    }

    /// Trees of all layers.
    pub fn trees(&self, options: &TreeOptions) -> Result<Vec<Tree>, ImageError> {
        self.each_tree(options).into_iter().collect()
    }

    /// The tree of the image.
    pub fn merged(&self) -> Result<Tree, ImageError> {
        let trees = self.trees(&TreeOptions::default())?;
        Tree::merge(&trees)
            .map_err(|fault| ImageError::Corrupt(format!("stacking the layers: {fault}")))
    }

    /// The layers below the one of that number.
    pub(crate) fn below(&self, number: usize) -> Self {
        Self { layers: self.layers.iter().take(number).cloned().collect() }
    }
}
