//! What registries say of an image: its layers, and a zTOC for each that has one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use spanfs::image::{Discovery, Image, ImageError, Images, Search, Ztoc};
use spanfs::start::{StartConfig, start_config};
use spanfs_fetch::{ImageRef, Source};
use spanfs_layer::Digest;
use spanfs_layer::oci::{Descriptor, Platform};
use spanfs_layer::soci::SpanRun;

use super::memo::{Memo, NoOutcome};
use super::request::Request;
use crate::config::PullModes;
use crate::content_store::ContentStore;
use crate::daemon::log::chain;
use crate::metrics::{Metrics, Operation};

/// An image of which layers are wanted.
pub(super) struct Known {
    pub(super) source: Source,
    pub(super) config: Digest,
    /// What its program is.
    pub(super) start: StartConfig,
    /// The lowest first.
    pub(super) layers: Vec<KnownLayer>,
    /// Digest of the SOCI index; why there is none.
    pub(super) index: Result<Digest, String>,
}

/// One of its layers.
pub(super) struct KnownLayer {
    pub(super) descriptor: Descriptor,
    pub(super) diff_id: Digest,
    /// Spans that the index wants first.
    pub(super) prefetch: Vec<SpanRun>,
    /// It has a zTOC, which is perhaps still on its way.
    pub(super) has_ztoc: bool,
    ztoc: Option<Mutex<Ztoc>>,
}

/// Told of an image once its index is known, while its zTOCs are on their way.
pub(super) type AtIndex = Box<dyn FnOnce(&Known) + Send>;

impl KnownLayer {
    /// The zTOC; its bytes are in memory, on the disk, or where they came from.
    pub(super) fn ztoc(&self) -> Option<Ztoc> {
        Some(self.ztoc.as_ref()?.lock().clone())
    }

    /// Somebody has opened the layer: free the memory.
    pub(super) fn forget_bytes(&self) {
        if let Some(ztoc) = &self.ztoc {
            ztoc.lock().forget();
        }
    }
}

/// An image, or why nothing is known of it.
pub(super) type Lookup = Result<Arc<Known>, String>;

/// Which image, and which index of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    repository: String,
    manifest: Digest,
    index: Option<Digest>,
}

/// Images that were looked up lately.
pub(super) struct Catalog {
    sources: Sources,
    at_most: Duration,
    looked_up: Memo<Key, Lookup>,
}

/// Where images are looked up.
#[derive(Clone)]
pub(super) struct Sources {
    pub(super) images: Arc<Images>,
    /// Has an image's documents, as a rule, before its layers are asked for.
    pub(super) store: Arc<ContentStore>,
    /// zTOCs are kept below it.
    pub(super) directory: PathBuf,
    /// Whether lists of spans to fetch first are read.
    pub(super) reads_prefetch: bool,
    pub(super) metrics: Arc<Metrics>,
}

/// A pull goes from layer to layer without pause, but a download may stand between.
const KEPT: Duration = Duration::from_secs(600);
/// Someone may push an index, mend a registry or bring a login; until then layers need not ask again.
const FAILURE_KEPT: Duration = Duration::from_secs(5);
/// Images pulled at once on the largest nodes; each holds the zTOCs of layers not yet prepared.
const IMAGES_MAX: usize = 256;

impl Catalog {
    pub(super) fn new(sources: Sources, at_most: Duration) -> Self {
        let kept = |lookup: &Lookup| match lookup {
            Ok(known) if known.index.is_ok() => KEPT,
            _ => FAILURE_KEPT,
        };
        let looked_up = Memo::new(IMAGES_MAX, kept);
        Self { sources, at_most, looked_up }
    }

    /// Look all images up anew when they are asked for the next time.
    pub(super) fn forget(&self) {
        self.looked_up.forget_done();
    }

    /// Find the image of a request, and fetch all its zTOCs, unless that was done lately. `at_index` is
    /// told before they are waited for.
    pub(super) fn find(&self, request: &Request, modes: &PullModes, at_index: AtIndex) -> Lookup {
        let repository = format!("{}/{}", request.image.host(), request.image.repository());
        let key = Key { repository, manifest: request.manifest, index: request.index };
        let needs_index = modes.parallel.as_ref().is_none_or(|it| it.is_fallback);
        let search = needs_index.then_some(Search {
            digest: request.index,
            annotation: modes.soci_v2,
            referrers: modes.soci_v1,
        });
        let (sources, request) = (self.sources.clone(), request.clone());
        let work = move || {
            let found = sources.look_up(&request, search, at_index);
            found.map(Arc::new).map_err(|error| chain(&error))
        };
        let ended = Err("looking the image up came to no end".to_owned());
        match self.looked_up.get(&key, self.at_most, ended, work) {
            Ok(lookup) => lookup,
            Err(reason @ NoOutcome::Late(_)) => Err(format!("looking the image up: {reason}")),
            Err(reason) => Err(format!("the image is not looked up: {reason}")),
        }
    }
}

impl Sources {
    fn look_up(
        &self,
        request: &Request,
        search: Option<Search>,
        at_index: AtIndex,
    ) -> Result<Known, ImageError> {
        let name = ImageRef::Registry(request.image.with_digest(request.manifest));
        let nearby = self.store.nearby(request.namespace());
        let source = self.images.source(&name)?.near(nearby);
        let (host, since) = (Platform::host(), Instant::now());
        let Some(search) = search else {
            let image = self.images.find_at(source, &host)?;
            let reason = "whole layers are pulled".to_owned();
            return Ok(known(&image, &wanted(&image), Err(reason), Vec::new(), Vec::new()));
        };
        let directory = Some(self.directory.as_path());
        let (image, discovery) = self.images.find_indexed(source, &host, &search, directory)?;
        let reason = match &discovery {
            Discovery::Found { digest, by, .. } => {
                tell(digest, by);
                let took = since.elapsed();
                self.metrics.took(Operation::IndexFetch, &digest.to_string(), took);
                return Ok(self.with_ztocs(&image, &discovery, *digest, at_index));
            }
            Discovery::None { .. } if !search.annotation && !search.referrers => {
                "all lazy pull modes are disabled".to_owned()
            }
            Discovery::None { reason } => reason.clone(),
        };
        Ok(known(&image, &wanted(&image), Err(reason), Vec::new(), Vec::new()))
    }

    /// An image with an index, once its zTOCs are here.
    fn with_ztocs(
        &self,
        image: &Image,
        discovery: &Discovery,
        index: Digest,
        at_index: AtIndex,
    ) -> Known {
        let (images, directory, since) = (&self.images, &self.directory, Instant::now());
        let wanted = wanted(image);
        // On their way while the zTOCs are waited for.
        let lists = self.reads_prefetch.then(|| images.prefetch_lists(image, discovery, &wanted));
        let mut soon = known(image, &wanted, Ok(index), Vec::new(), Vec::new());
        for layer in &mut soon.layers {
            layer.has_ztoc = images.has_ztoc(discovery, &layer.descriptor.digest, directory);
        }
        at_index(&soon);
        let ztocs = images.ztocs(image, discovery, &wanted, directory);
        self.metrics.took(Operation::ZtocFetch, &index.to_string(), since.elapsed());
        match ztocs {
            Ok(ztocs) => {
                let prefetch = lists.map_or_else(Vec::new, |it| it.runs());
                known(image, &wanted, Ok(index), ztocs, prefetch)
            }
            Err(error) => {
                let reason = format!("the zTOCs can't be had: {}", chain(&error));
                known(image, &wanted, Err(reason), Vec::new(), Vec::new())
            }
        }
    }
}

/// The layers of an image with the digests of their tars.
fn wanted(image: &Image) -> Vec<(Descriptor, Digest)> {
    image.layers().map(|(descriptor, diff_id)| (descriptor.clone(), diff_id)).collect()
}

/// What is known of an image; the lists are by layer, and may be shorter.
fn known(
    image: &Image,
    wanted: &[(Descriptor, Digest)],
    index: Result<Digest, String>,
    ztocs: Vec<Option<Ztoc>>,
    prefetch: Vec<Vec<SpanRun>>,
) -> Known {
    let (mut ztocs, mut prefetch) = (ztocs.into_iter(), prefetch.into_iter());
    let layers = wanted.iter().map(|(descriptor, diff_id)| {
        let ztoc = ztocs.next().flatten().map(Mutex::new);
        KnownLayer {
            descriptor: descriptor.clone(),
            diff_id: *diff_id,
            prefetch: prefetch.next().unwrap_or_default(),
            has_ztoc: ztoc.is_some(),
            ztoc,
        }
    });
    Known {
        config: image.documents.manifest.config.digest,
        start: start_config(&image.documents.config, &[]),
        layers: layers.collect(),
        index,
        source: image.source.clone(),
    }
}

/// The peer's words: people look for them.
fn tell(digest: &Digest, by: &str) {
    let how = match by {
        "digest" => "using provided soci index digest",
        "annotation" => "using soci v2 index annotation",
        _ => "using soci v1 index via referrers API",
    };
    tracing::info!(digest = %digest, "{how}");
    tracing::info!(digest = %digest, "fetching SOCI artifacts using index descriptor");
}
