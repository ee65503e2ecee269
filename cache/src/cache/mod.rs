//! The cache of a machine: layers by digest, within a quota, shared by processes.

mod beside;
pub(crate) mod claim;
pub(crate) mod directory;
mod quota;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use spanfs_layer::Digest;

use crate::CacheError;
use crate::layer::{self, KnownLayer, Layer, LayerSpec, LayerStatus};
use crate::prefetch::{Image, ImageSpec};
use crate::whole::{self, Whole, WholeSpec};
use crate::works::Works;

use beside::Beside;
use directory::{Directory, Entry};

/// How a cache is set up.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// Its directory; made if missing. Several processes may share it.
    pub root: PathBuf,
    /// Most bytes on disk; layers not in use, zTOCs, layer indexes and traces go, least recently used
    /// first. `None`: no limit.
    pub quota_bytes: Option<u64>,
    /// Most bytes of spans in memory where the disk refuses them.
    pub memory_bytes_max: u64,
    /// Decoding threads: as many as there are cores.
    pub inflate_threads: usize,
    /// Most compressed bytes that are fetched or wait for their inflation.
    pub fetch_bytes_max: u64,
    /// Most compressed bytes a second that are fetched in the background, over all images. `None`: what
    /// the link gives.
    pub background_bytes_per_second_max: Option<u64>,
}

/// Room for the spans that a few readers wait for, and no more: it is used only when a disk fails.
const MEMORY_BYTES_MAX: u64 = 64 << 20;
/// 8 connections with a span of 1 to 2.5 MB each, and as much again waiting for its inflation.
const FETCH_BYTES_MAX: u64 = 32 << 20;

impl CacheOptions {
    /// Defaults for a cache at `root` on a machine with that many cores.
    pub fn new(root: PathBuf, cores: usize) -> Self {
        Self {
            root,
            quota_bytes: None,
            memory_bytes_max: MEMORY_BYTES_MAX,
            inflate_threads: cores,
            fetch_bytes_max: FETCH_BYTES_MAX,
            background_bytes_per_second_max: None,
        }
    }
}

/// Layers on disk, and those open.
///
/// Dropping it ends its threads once the layers are closed; the layers stay on disk.
pub struct Cache {
    directory: Directory,
    works: Arc<Works>,
    options: CacheOptions,
    open: Mutex<HashMap<(Digest, Digest), Slot>>,
    images: Arc<Mutex<Vec<Weak<Image>>>>,
    keeper: Option<(Sender<()>, JoinHandle<()>)>,
}

/// One layer's place: locked while it is being opened.
type Slot = Arc<Mutex<Weak<Layer>>>;

/// State of a cache.
#[derive(Clone, Debug)]
pub struct CacheStatus {
    /// Bytes on disk of all layers, also those not open, and of what is kept beside them.
    pub disk_bytes: u64,
    /// Layers on disk.
    pub layer_count: usize,
    /// Bytes in the memory tier.
    pub memory_bytes: u64,
    /// Compressed bytes on their way.
    pub inflight_bytes: u64,
    /// Readers that wait.
    pub waiting: usize,
    /// Layers open in this process.
    pub open: Vec<LayerStatus>,
    /// Layers that were found out, and why.
    pub condemned: Vec<(Digest, String)>,
}

/// What a collection freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers removed.
    pub layers: usize,
    /// Bytes that they, and what else was removed, had on disk.
    pub bytes: u64,
    /// Bytes that are left.
    pub left_bytes: u64,
}

impl Cache {
    /// Open or make the cache, and remove what crashed processes left.
    pub fn open(options: CacheOptions) -> Result<Self, CacheError> {
        let directory = Directory::open(&options.root)?;
        directory.sweep_private();
        directory.sweep_parts();
        let CacheOptions { inflate_threads, fetch_bytes_max, memory_bytes_max, .. } = options;
        let background_max = options.background_bytes_per_second_max;
        let works = Works::new(inflate_threads, fetch_bytes_max, memory_bytes_max, background_max)
            .map_err(CacheError::Threads)?;
        let images = Arc::default();
        let keeper = Keeper {
            directory: directory.clone(),
            works: works.clone(),
            quota_bytes: options.quota_bytes,
            images: Arc::clone(&images),
        };
        let (stop, stopped) = bounded(1);
        let thread = std::thread::Builder::new().name("cache".into());
        let thread = thread.spawn(move || keeper.run(&stopped)).map_err(CacheError::Threads)?;
        let keeper = Some((stop, thread));
        Ok(Self { directory, works, options, open: Mutex::default(), images, keeper })
    }

    /// Open a layer whose spans arrive on demand. Layers are shared: the same digests give the same
    /// layer while somebody holds it.
    pub fn layer(&self, spec: LayerSpec) -> Result<Arc<Layer>, CacheError> {
        let slot = self.slot(*spec.blob.digest(), spec.ztoc_digest);
        let mut slot = slot.lock();
        if let Some(layer) = slot.upgrade() {
            return Ok(layer);
        }
        let layer = layer::open(&self.works, &self.directory, spec)?;
        *slot = Arc::downgrade(&layer);
        Ok(layer)
    }

    /// The same by what an earlier run kept of the layer's zTOC, which then need not be read; `None`
    /// where nothing of it is kept.
    pub fn known_layer(&self, known: KnownLayer) -> Result<Option<Arc<Layer>>, CacheError> {
        let slot = self.slot(*known.blob.digest(), known.ztoc_digest);
        let mut slot = slot.lock();
        if let Some(layer) = slot.upgrade() {
            return Ok(Some(layer));
        }
        let layer = layer::open_known(&self.works, &self.directory, known)?;
        if let Some(layer) = &layer {
            *slot = Arc::downgrade(layer);
        }
        Ok(layer)
    }

    /// Get a layer that has no zTOC yet: one pass over its whole blob leaves the layer complete,
    /// verified and with a zTOC of ours wherever there can be one. Blocks until it is there.
    ///
    /// What an earlier pass left is given back without a look at the blob; then spans that the disk
    /// has lost since come on demand. Of several who want the same layer, in this process or in
    /// others, one does it and the others wait as long as that goes on.
    ///
    /// # Errors
    /// [`CacheError::Condemned`] if the blob or its tar has another digest than was promised; then,
    /// as with all other errors, nothing of it stays.
    pub fn whole(&self, spec: WholeSpec<'_>) -> Result<Whole, CacheError> {
        whole::obtain(self, spec)
    }

    /// A layer was opened aside: others who open it from now on share it.
    pub(crate) fn share(&self, layer: &Arc<Layer>) {
        let slot = self.slot(*layer.digest(), *layer.ztoc_digest());
        *slot.lock() = Arc::downgrade(layer);
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    pub(crate) fn works(&self) -> &Arc<Works> {
        &self.works
    }

    fn slot(&self, layer: Digest, ztoc: Digest) -> Slot {
        let mut open = self.open.lock();
        // Slots of closed layers that nobody is about to open.
        open.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.lock().strong_count() > 0);
        open.entry((layer, ztoc)).or_default().clone()
    }

    /// Prefetch for an image as long as the result lives.
    pub fn image(&self, spec: ImageSpec) -> Arc<Image> {
        let trace_path = spec.config.map(|config| self.directory.trace(&config));
        let image = Image::new(self.works.clone(), spec, trace_path);
        let mut images = self.images.lock();
        images.retain(|image| image.strong_count() > 0);
        images.push(Arc::downgrade(&image));
        image
    }

    /// File with the trace of the image of that config digest: copy it to ship it, put one there to
    /// have it replayed.
    pub fn trace_path(&self, config: &Digest) -> PathBuf {
        self.directory.trace(config)
    }

    /// Remove traces of images, named by their config, that are not wanted: all but the latest
    /// `left_max` of them.
    pub fn sweep_traces(&self, is_wanted: impl Fn(&Digest) -> bool, left_max: usize) {
        self.directory.sweep_traces(is_wanted, left_max);
    }

    /// State at this moment. Looks at each layer's files.
    pub fn status(&self) -> CacheStatus {
        let entries = self.directory.layers();
        let condemned = |entry: &Entry| Some((entry.digest, layer::condemned_reason(&entry.path)?));
        CacheStatus {
            disk_bytes: entries.iter().map(|entry| entry.bytes).sum::<u64>()
                + self.directory.beside().iter().map(|it| it.bytes).sum::<u64>(),
            layer_count: entries.len(),
            memory_bytes: self.works.memory.used_bytes(),
            inflight_bytes: self.works.bytes_inflight(),
            waiting: self.works.demand(),
            open: self.works.layers().iter().map(|layer| layer.status()).collect(),
            condemned: entries.iter().filter_map(condemned).collect(),
        }
    }

    /// Layers on disk, open or not.
    pub fn layers(&self) -> Vec<Digest> {
        self.directory.layers().into_iter().map(|entry| entry.digest).collect()
    }

    /// Whether getting a layer was interrupted lately, so that somebody may go on with it.
    pub fn is_expected(&self, layer: &Digest) -> bool {
        whole::is_expected(&self.directory.layer(layer))
    }

    /// Remove a layer from the disk, unless somebody uses it.
    pub fn remove(&self, layer: &Digest) -> Result<(), CacheError> {
        let path = self.directory.layer(layer);
        match claim::try_remove(&path).map_err(CacheError::storage("removing", &path))? {
            true => Ok(()),
            false => Err(CacheError::InUse { layer: *layer }),
        }
    }

    /// Remove layers not in use, least recently used first, until the rest fits into the quota.
    pub fn collect(&self) -> Collected {
        self.directory.sweep_private();
        collect(&self.directory, self.options.quota_bytes)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let Some((stop, thread)) = self.keeper.take() else { return };
        drop(stop);
        if thread.join().is_err() {
            tracing::error!("the cache's thread panicked");
        }
    }
}

fn collect(directory: &Directory, quota_bytes: Option<u64>) -> Collected {
    let (layers, beside) = (directory.layers(), directory.beside());
    let layer = |it: &Entry| quota::Size { bytes: it.bytes, last_used: it.last_used };
    let other = |it: &Beside| quota::Size { bytes: it.bytes, last_used: it.last_used };
    let sizes: Vec<_> = layers.iter().map(layer).chain(beside.iter().map(other)).collect();
    let left_bytes = quota::total(&sizes);
    let mut collected = Collected { left_bytes, ..Collected::default() };
    let Some(quota_bytes) = quota_bytes else { return collected };
    for index in quota::order(&sizes, quota_bytes) {
        if collected.left_bytes <= quota_bytes {
            break;
        }
        let removed = match (layers.get(index), beside.get(index.saturating_sub(layers.len()))) {
            (Some(layer), _) => evict(layer, &mut collected),
            (None, Some(beside)) => beside.remove(),
            (None, None) => false,
        };
        if let Some(size) = sizes.get(index).filter(|_| removed) {
            collected.bytes += size.bytes;
            collected.left_bytes -= size.bytes;
        }
    }
    collected
}

fn evict(layer: &Entry, collected: &mut Collected) -> bool {
    match claim::try_remove(&layer.path) {
        Ok(true) => {
            tracing::info!(layer = %layer.digest, bytes = layer.bytes, "layer evicted");
            collected.layers += 1;
            true
        }
        Ok(false) => false,
        Err(error) => {
            tracing::warn!(layer = %layer.digest, %error, "layer not evicted");
            false
        }
    }
}

/// One thread: gives images their time, and keeps to the quota.
struct Keeper {
    directory: Directory,
    works: Arc<Works>,
    quota_bytes: Option<u64>,
    images: Arc<Mutex<Vec<Weak<Image>>>>,
}

/// How often images are asked whether there is idle time to use.
const TICK: Duration = Duration::from_millis(50);
/// How often the disk is looked at.
const COLLECT_INTERVAL: Duration = Duration::from_secs(10);

impl Keeper {
    fn run(&self, stopped: &Receiver<()>) {
        let mut collect_at = Instant::now();
        while stopped.recv_timeout(TICK).is_err_and(|error| error.is_timeout()) {
            let images: Vec<_> = self.images.lock().iter().filter_map(Weak::upgrade).collect();
            images.iter().for_each(|image| image.handle_tick());
            let now = Instant::now();
            if let Some(quota_bytes) = self.quota_bytes.filter(|_| now >= collect_at) {
                let collected = collect(&self.directory, Some(quota_bytes));
                self.works.set_over_quota(collected.left_bytes > quota_bytes);
                collect_at = now + COLLECT_INTERVAL;
            }
        }
    }
}
