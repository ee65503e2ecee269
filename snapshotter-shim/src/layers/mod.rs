//! Layers that snapshots show without containerd unpacking them.
//!
//! [`Request`] is what the labels of an extraction say; [`Layers::find`] asks the registry about the
//! image, once for all its layers; [`Layers::show`] opens the layer in the cache, makes its index and
//! mounts it at the snapshot's directory. What is needed to do that again stands in the snapshot's
//! directory (`note`). All of it blocks, with deadlines.
//!
//! ```text
//! ROOT/spanfs/cache     the cache's layers; zTOCs below `ztocs`
//! ROOT/spanfs/mounts    records and parts of mounts
//! ROOT/spanfs/hosts     mirrors of the settings file
//! ROOT/snapshotter/snapshots/ID/{layer.json,index/}
//! ```

pub mod access;
mod below;
mod catalog;
mod decide;
mod memo;
mod note;
pub mod request;
mod shown;
mod whole;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use spanfs::image::{How, ImageError, Images, LayerSource, OpenLayer, Ztoc};
use spanfs::layer_index::index_layer;
use spanfs::mounted::ShowError;
use spanfs_cache::{Background, Cache, CacheError, CacheOptions, ImageSpec};
use spanfs_fetch::{ImageRef, ImageRefError};
use spanfs_layer::Digest;
use spanfs_layer::tree::TreeOptions;
use spanfs_mount::policy::{self, Choice, Front};
use spanfs_mount::probe::Facts;
use spanfs_mount::transport::{Privilege, ServerOptions};
use spanfs_mount::{Mount, MountError, Mounter, MounterOptions, Parts, mountinfo, record, unmount};

use crate::config::Settings;
use crate::daemon::log::chain;
use crate::disk_usage::disk_usage;
use crate::metrics::{Event, Metrics, Operation};
use crate::state::Usage;
use access::Environment;
use catalog::{Catalog, Known, KnownLayer};
use decide::Decision;
use note::Note;
pub use request::Request;
use shown::{Registry, Shown, State};
use whole::Wholes;

/// Mounts of a node: 30 images with 127 layers each.
const MOUNTS_MAX: usize = 4096;
/// A start may not wait longer than this for old layers to come back.
const RESTORE_TIME_MAX: Duration = Duration::from_secs(60);
/// Layers brought back at once: each waits for the disk more than for a core.
const RESTORE_THREADS: usize = 8;

/// Why a layer can't be shown, or layers can't be at all.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A file or directory of ours.
    #[error("cannot use {}", path.display())]
    Disk {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The image, or a layer of it.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The index, or the mount.
    #[error(transparent)]
    Show(#[from] ShowError),
    /// The mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A note names no image.
    #[error(transparent)]
    Name(#[from] ImageRefError),
    /// The layer is not what its image promises.
    #[error("{0}")]
    Corrupt(String),
    /// It was asked for together with others, and that failed.
    #[error("{0}")]
    Whole(String),
}

/// Where a layer is to be shown.
#[derive(Clone, Debug)]
pub struct Place {
    /// The snapshot.
    pub id: u64,
    /// Its directory; the layer is mounted at `fs` in it.
    pub directory: PathBuf,
    /// Roots of the layers below, nearest first.
    pub lowers: Vec<PathBuf>,
}

/// What becomes of a layer that was asked for.
pub enum Answer {
    /// We can have it.
    Ours(Box<Wanted>),
    /// containerd has to unpack it, for this reason.
    Defer(String),
    /// Nobody can have it.
    Fail(String),
}

/// A layer that we can have.
pub struct Wanted {
    known: Arc<Known>,
    position: usize,
    decision: Decision,
    request: Request,
}

impl Wanted {
    /// Digest of its blob.
    pub fn layer(&self) -> Digest {
        self.request.layer
    }

    /// Whether containerd is not to try where we fail.
    pub fn is_parallel(&self) -> bool {
        self.decision == Decision::Parallel
    }
}

/// How a layer is shown, for its labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its content comes on demand.
    Lazy,
    /// It is there, and its image has an index.
    Whole,
    /// It is there.
    Parallel,
}

/// All layers of a node that we show.
pub struct Layers {
    images: Arc<Images>,
    cache: Arc<Cache>,
    mounter: Mounter,
    front: Choice,
    /// The cache's; zTOCs stand there as well.
    directory: PathBuf,
    background: Background,
    /// How long a layer is shown before it is shown anew: tools count mounts after a pull.
    settle_time: Duration,
    lazy_len_min: u64,
    modes: crate::config::PullModes,
    catalog: Catalog,
    wholes: Wholes,
    registry: Registry,
    metrics: Arc<Metrics>,
    leftovers: AtomicBool,
    /// Ends whole passes.
    stop: Arc<AtomicBool>,
}

impl Layers {
    /// Get ready below `root`; `None` on a machine that can't show layers at all. Mounts that an
    /// earlier process left below `snapshots` are taken away: containers that use them keep them.
    pub fn start(
        root: &Path,
        snapshots: &Path,
        settings: &Settings,
        environment: &Environment,
    ) -> Result<Option<Self>, LayerError> {
        let base = root.join("spanfs");
        let [directory, mounts, hosts] = ["cache", "mounts", "hosts"].map(|name| base.join(name));
        let disk = |path: &Path| {
            let path = path.to_owned();
            move |source| LayerError::Disk { path, source }
        };
        std::fs::create_dir_all(&mounts).map_err(disk(&mounts))?;
        access::write_hosts(&hosts, &settings.mirrors).map_err(disk(&hosts))?;
        recover(&mounts, snapshots);
        let front = match policy::choose(&Facts::gather(&mounts), None) {
            Ok(front) => front,
            Err(error) => {
                let error = error.to_string();
                tracing::error!(error, "containerd has to unpack every layer");
                return Ok(None);
            }
        };
        tracing::info!(front = %front.front, reason = front.reason, "layers are shown");
        let images = Images::start(access::images_options(settings, environment, &hosts))?;
        let images = Arc::new(images);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cache = Arc::new(Cache::open(CacheOptions::new(directory.clone(), cores))?);
        let mut options = MounterOptions::new(&mounts);
        // nerdctl's suite and SOCI's count the one-file mounts.
        options.parts = Parts::Visible;
        options.server = ServerOptions { mounts_max: MOUNTS_MAX, ..ServerOptions::default() };
        let background = match settings.background_fetch {
            Some(_) => Background::On { bytes_per_second_max: None },
            None => Background::Off,
        };
        let modes = settings.pull_modes.clone();
        let at_most = settings.mount_timeout;
        let metrics = Arc::new(Metrics::default());
        Ok(Some(Self {
            mounter: Mounter::new(options)?,
            front,
            background,
            settle_time: settings.background_fetch.map_or(Duration::ZERO, |it| it.silence),
            lazy_len_min: settings.lazy_layer_len_min,
            catalog: Catalog::new(
                Arc::clone(&images),
                directory.clone(),
                modes.clone(),
                at_most,
                Arc::clone(&metrics),
            ),
            wholes: Wholes::new(modes.parallel.as_ref()),
            modes,
            registry: Registry::default(),
            metrics,
            leftovers: AtomicBool::default(),
            stop: Arc::default(),
            images,
            cache,
            directory,
        }))
    }

    /// Whether and how we can have a layer. Asks the registry, once for all layers of an image.
    pub fn find(&self, request: &Request) -> Answer {
        let is_parallel = self.modes.parallel.is_some();
        let known = match self.catalog.find(request) {
            Ok(known) => known,
            // The peer's words: people look for them.
            Err(reason) if is_parallel => return Answer::Fail(reason),
            Err(reason) => return Answer::Defer(format!("no valid SOCI index found: {reason}")),
        };
        let named = known.layers.iter().position(|it| it.descriptor.digest == request.layer);
        let Some(position) = named else {
            let (layer, manifest) = (request.layer, request.manifest);
            return Answer::Defer(format!("layer {layer} is not in the manifest {manifest}"));
        };
        let Some(layer) = known.layers.get(position) else { unreachable!("it was found there") };
        let facts = decide::Facts {
            is_indexed: known.index.is_ok(),
            has_ztoc: layer.ztoc.is_some(),
            size: layer.descriptor.size,
            lazy_len_min: self.lazy_len_min,
        };
        match (decide::decide(&self.modes, facts), &known.index) {
            (Decision::Defer, Err(reason)) => {
                Answer::Defer(format!("no valid SOCI index found: {reason}"))
            }
            (Decision::Defer, Ok(_)) => unreachable!("an index is used"),
            (decision, _) => {
                let request = request.clone();
                Answer::Ours(Box::new(Wanted { known, position, decision, request }))
            }
        }
    }

    /// Show a layer at `place`, whose directory is empty. On failure nothing is left there but files.
    pub fn show(&self, wanted: &Wanted, place: &Place) -> Result<Kind, LayerError> {
        let since = Instant::now();
        let shown = self.show_now(wanted, place);
        let layer = wanted.layer().to_string();
        match &shown {
            Ok(_) => self.metrics.took(Operation::Mount, &layer, since.elapsed()),
            Err(_) => self.metrics.count(Event::LocalMountFailure),
        }
        shown
    }

    fn show_now(&self, wanted: &Wanted, place: &Place) -> Result<Kind, LayerError> {
        let Wanted { known, position, decision, request } = wanted;
        let Some(layer) = known.layers.get(*position) else { unreachable!("it was found there") };
        let mut ztoc = None;
        let (open, kind) = match decision {
            Decision::Lazy => match self.open_lazy(known, layer) {
                Ok((open, used)) => {
                    ztoc = Some(used);
                    (open, Kind::Lazy)
                }
                Err(error) => {
                    let error = chain(&error);
                    let digest = &layer.descriptor.digest;
                    tracing::warn!(layerDigest = %digest, error, "layer is not lazy");
                    self.metrics.count(Event::MountFailure);
                    (self.open_whole(known, layer)?, Kind::Whole)
                }
            },
            Decision::Whole { reason } => {
                let layer_digest = &layer.descriptor.digest;
                tracing::info!(layerDigest = %layer_digest, reason, "preparing snapshot as local snapshot");
                (self.open_whole(known, layer)?, Kind::Whole)
            }
            Decision::Parallel => {
                (self.wholes.obtain(self.work(), known, *position)?, Kind::Parallel)
            }
            Decision::Defer => unreachable!("not ours"),
        };
        let image = note::Place {
            name: &format!("{}/{}", request.image.host(), request.image.repository()),
            manifest: request.manifest,
            config: known.config,
            position: *position,
            count: known.layers.len(),
            lowest: place.lowers.is_empty(),
        };
        let mut note = Note::new(&layer.descriptor, layer.diff_id, &image);
        note.ztoc = open.spans.as_ref().map(|spans| *spans.ztoc_digest());
        let disk = |source| LayerError::Disk { path: place.directory.clone(), source };
        note.write(&place.directory).map_err(disk)?;
        let note = Arc::new(note);
        // From here on no sweep takes the zTOC; one before may have.
        self.registry.note(place.id, Arc::clone(&note));
        let shown = || -> Result<(), LayerError> {
            ztoc.map_or(Ok(()), |ztoc| ztoc.keep(&self.directory))?;
            self.mount(open, note, place)
        };
        shown().inspect_err(|_| self.hide(place.id))?;
        layer.forget_bytes();
        self.prefetch_with(place.id, known);
        Ok(kind)
    }

    fn open_lazy(
        &self,
        known: &Known,
        layer: &KnownLayer,
    ) -> Result<(OpenLayer, Ztoc), LayerError> {
        let Some(ztoc) = layer.ztoc(&self.directory)? else {
            let digest = layer.descriptor.digest;
            return Err(LayerError::Corrupt(format!("the zTOC of layer {digest} is gone")));
        };
        Ok((self.open(&known.source, layer, Some(ztoc.clone()))?, ztoc))
    }

    fn open_whole(&self, known: &Known, layer: &KnownLayer) -> Result<OpenLayer, LayerError> {
        Ok(self.open(&known.source, layer, None)?)
    }

    fn open(
        &self,
        source: &spanfs_fetch::Source,
        layer: &KnownLayer,
        ztoc: Option<Ztoc>,
    ) -> Result<OpenLayer, ImageError> {
        self.work().open(source, &layer.descriptor, layer.diff_id, ztoc)
    }

    fn work(&self) -> Work {
        Work {
            images: Arc::clone(&self.images),
            cache: Arc::clone(&self.cache),
            directory: self.directory.clone(),
            stop: Arc::clone(&self.stop),
        }
    }

    fn mount(&self, open: OpenLayer, note: Arc<Note>, place: &Place) -> Result<(), LayerError> {
        let at = place.directory.join("fs");
        let since = Instant::now();
        let (mount, layer) = match self.front.front {
            Front::Erofs => {
                let index = place.directory.join("index");
                let describe = |paths: &[Vec<u8>]| below::describe(&place.lowers, paths);
                let layer = index_layer(&open, note.lowest, &index, describe)?;
                (self.mounter.layer(&layer, &at)?, Some(layer))
            }
            Front::Inode => (self.inodes(&open, &at)?, None),
        };
        self.metrics.took(Operation::FuseMount, &note.layer.to_string(), since.elapsed());
        let OpenLayer { content, spans, .. } = open;
        let shown = Shown { mount, content, spans, layer, since, prefetch: None };
        self.registry.show(place.id, note, shown);
        Ok(())
    }

    fn inodes(&self, open: &OpenLayer, at: &Path) -> Result<Mount, LayerError> {
        let tree = Arc::new(open.tree(TreeOptions::default())?);
        let content = (open.descriptor.digest.to_string(), Arc::clone(&open.content));
        Ok(self.mounter.inodes(tree, vec![content], at, self.front.privilege)?)
    }

    /// Once the topmost layer of an image is shown, all of it is fetched in idle time, in the order
    /// that its starts want.
    fn prefetch_with(&self, id: u64, known: &Known) {
        let Some(note) = self.registry.notes().into_iter().find(|(other, _)| *other == id) else {
            return;
        };
        let layers: Vec<Digest> = known.layers.iter().map(|it| it.descriptor.digest).collect();
        self.prefetch(id, &note.1, &layers);
    }

    fn prefetch(&self, id: u64, note: &Note, layers: &[Digest]) {
        if note.position + 1 != note.count {
            return;
        }
        let layers: Vec<_> = layers.iter().filter_map(|it| self.registry.spans(it)).collect();
        if layers.is_empty() {
            return;
        }
        let background = self.background;
        let spec = ImageSpec { layers, config: Some(note.config), background, record: true };
        self.registry.prefetch(id, self.cache.image(spec));
    }

    /// Undo [`Self::show`].
    pub fn hide(&self, id: u64) {
        self.registry.retain(|other| other != id);
    }

    /// Bring back what earlier processes showed: `places` level by level, the lowest layers first.
    /// Returns after about a minute at the latest; what is not back then comes later, or when it is
    /// needed.
    pub fn restore(self: &Arc<Self>, places: Vec<Vec<Place>>) {
        for place in places.iter().flatten() {
            match Note::read(&place.directory) {
                Ok(None) => {}
                Ok(Some(note)) => self.registry.note(place.id, Arc::new(note)),
                Err(error) => {
                    let id = place.id;
                    tracing::error!(id, %error, "a layer is lost: its note can't be read");
                }
            }
        }
        let (done, wait) = std::sync::mpsc::channel();
        let layers = Arc::clone(self);
        let run = move || {
            places.iter().for_each(|level| layers.restore_level(level));
            layers.prefetch_all();
            let _nobody_waits = done.send(());
        };
        if let Err(error) = std::thread::Builder::new().name("restore".to_owned()).spawn(run) {
            return tracing::error!(%error, "layers come back only when they are needed");
        }
        if wait.recv_timeout(RESTORE_TIME_MAX).is_err() {
            tracing::warn!("layers are still coming back after {RESTORE_TIME_MAX:?}");
        }
    }

    fn restore_level(&self, level: &[Place]) {
        let next = std::sync::atomic::AtomicUsize::new(0);
        let run = || {
            while let Some(place) = level.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.ensure(place) {
                    let (id, error) = (place.id, chain(&error));
                    tracing::error!(
                        id,
                        error,
                        "failed to restore remote snapshot; it is tried again when it is needed"
                    );
                }
            }
        };
        std::thread::scope(|scope| {
            (0..RESTORE_THREADS.min(level.len())).for_each(|_| drop(scope.spawn(run)));
        });
    }

    fn prefetch_all(&self) {
        let notes = self.registry.notes();
        let mut images: BTreeMap<String, BTreeMap<usize, Digest>> = BTreeMap::new();
        for (_, note) in &notes {
            let layers = images.entry(note.manifest.to_string()).or_default();
            layers.insert(note.position, note.layer);
        }
        for (id, note) in &notes {
            let layers = images.get(&note.manifest.to_string());
            let layers: Vec<_> = layers.into_iter().flat_map(|it| it.values().copied()).collect();
            self.prefetch(*id, note, &layers);
        }
    }

    /// See to it that a snapshot's layer, if it is one of ours, can be read.
    pub fn ensure(&self, place: &Place) -> Result<(), LayerError> {
        match self.registry.state(place.id) {
            State::Ordinary => Ok(()),
            State::Shown => {
                self.make_direct(place);
                Ok(())
            }
            State::Corrupt(reason) => Err(LayerError::Corrupt(reason)),
            State::Noted(_) => {
                let _one_at_a_time = self.wholes.lock(place.id);
                // Who had it before us may have done it.
                let State::Noted(note) = self.registry.state(place.id) else { return Ok(()) };
                let name: ImageRef = note.image.parse()?;
                let source = self.images.source(&name)?;
                let ztoc = match note.ztoc {
                    Some(digest) => Ztoc::kept(&self.directory, digest)?,
                    None => None,
                };
                if let (Some(digest), None) = (note.ztoc, &ztoc) {
                    tracing::warn!(id = place.id, %digest, "the zTOC of a layer is gone: it comes whole");
                }
                let open = self.work().open(&source, &note.descriptor(), note.diff_id, ztoc)?;
                self.mount(open, note, place)
            }
        }
    }

    /// Have the kernel alone show a layer that is complete.
    fn make_direct(&self, place: &Place) {
        let id = place.id;
        // While it is taken, it looks as if it were to be mounted.
        let _one_at_a_time = self.wholes.lock(id);
        let Some(mut shown) = self.registry.take_complete(id, self.settle_time) else { return };
        let at = place.directory.join("fs");
        let layer = shown.layer.as_ref();
        let direct = layer.map(|layer| self.mounter.direct(layer, &at, &mut shown.mount));
        let old = match direct {
            Some(Ok(Some(direct))) => Some(std::mem::replace(&mut shown.mount, direct)),
            Some(Ok(None)) | None => None,
            Some(Err(error)) => {
                tracing::warn!(id, error = chain(&error), "the layer is served on");
                None
            }
        };
        self.registry.put_back(id, shown);
        if let Some(old) = old {
            tracing::info!(id, "the layer is complete: the kernel alone shows it from now on");
            shown::unmount_later(id, old);
        }
    }

    /// Disk that a snapshot's layer takes; none for a snapshot whose content is its own. A layer that
    /// several snapshots show counts for the oldest alone.
    pub fn usage(&self, id: u64, directory: &Path) -> Option<Usage> {
        let bytes = self.registry.bytes(id)?;
        let index = disk_usage(&directory.join("index")).unwrap_or_default();
        Some(Usage { bytes: index.bytes + bytes, inodes: index.inodes })
    }

    /// Unmount the layers of all snapshots but those wanted, and give their disk back.
    pub fn retain(&self, is_wanted: impl Fn(u64) -> bool) {
        self.registry.retain(is_wanted);
        self.wholes.forget_done();
        let (layers, ztocs) = self.registry.wanted();
        let mut left = false;
        for layer in self.cache.layers().iter().filter(|layer| !layers.contains(layer)) {
            match self.cache.remove(layer) {
                Ok(()) => tracing::debug!(%layer, "layer removed from the cache"),
                // Of a snapshot that is about to be, whose last user has not gone yet, or being hashed.
                Err(CacheError::InUse { .. }) => left = true,
                Err(error) => tracing::warn!(%layer, error = chain(&error), "a layer stays"),
            }
        }
        self.leftovers.store(left, Ordering::Relaxed);
        if let Err(error) = Ztoc::sweep(&self.directory, |digest| ztocs.contains(digest)) {
            tracing::warn!(error = chain(&error), "zTOCs that nobody needs stay");
        }
    }

    /// Whether the latest [`Self::retain`] left something that was still in use.
    pub fn has_leftovers(&self) -> bool {
        self.leftovers.load(Ordering::Relaxed)
    }

    /// The numbers of a scrape; `directory` tells where a snapshot is.
    pub fn metrics(&self, directory: impl Fn(u64) -> PathBuf) -> String {
        let place = |id| directory(id).display().to_string();
        self.metrics.render(&self.registry.samples(place))
    }

    /// The process ends: stop what is under way, and leave mounts to the next one or take them away.
    pub fn end(&self, mounts: AtEnd) {
        self.stop.store(true, Ordering::Relaxed);
        match mounts {
            AtEnd::Stay => self.registry.leave(),
            AtEnd::Go => self.registry.retain(|_| false),
        }
    }
}

/// What becomes of mounts when the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtEnd {
    /// They stay: complete layers go on, the others wait for the next process.
    Stay,
    /// They are unmounted.
    Go,
}

/// What opens layers, on any thread.
#[derive(Clone)]
struct Work {
    images: Arc<Images>,
    cache: Arc<Cache>,
    directory: PathBuf,
    stop: Arc<AtomicBool>,
}

impl Work {
    fn open(
        &self,
        source: &spanfs_fetch::Source,
        descriptor: &spanfs_layer::oci::Descriptor,
        diff_id: Digest,
        ztoc: Option<Ztoc>,
    ) -> Result<OpenLayer, ImageError> {
        let to = LayerSource {
            cache: &self.cache,
            directory: &self.directory,
            stop: &self.stop,
            progress: &|_, _| {},
        };
        let open = self.images.open_layer(source, descriptor, diff_id, ztoc, &to)?;
        if let How::Never(reason) = &open.how {
            tracing::info!(layerDigest = %descriptor.digest, reason, "layer can't be lazy");
        }
        Ok(open)
    }
}

/// Take away what dead processes left mounted.
fn recover(mounts: &Path, snapshots: &Path) {
    let records = MounterOptions::new(mounts).records();
    match record::recover(&records, Privilege::Root) {
        Ok(recovered) => {
            for dead in recovered.iter().filter(|dead| dead.outcome.is_err()) {
                let at = dead.mount_point.display();
                tracing::warn!(at = %at, outcome = ?dead.outcome, "a dead mount stays");
            }
            tracing::debug!(count = recovered.len(), "mounts of an earlier process taken away");
        }
        Err(error) => tracing::warn!(%error, "dead mounts are not looked for"),
    }
    // The peer keeps no records. The kernel names mounts by their real paths.
    let Ok(snapshots) = snapshots.canonicalize() else { return };
    for mount in mountinfo::mounts().unwrap_or_default().iter().rev() {
        let ours = mount.mount_point.starts_with(&snapshots) && mount.mount_point != snapshots;
        if ours && let Err(error) = unmount::detach(&mount.mount_point, Privilege::Root) {
            tracing::warn!(at = %mount.mount_point.display(), %error, "a mount stays");
        }
    }
}
