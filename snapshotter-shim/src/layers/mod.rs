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
//! ROOT/spanfs/decisions.jsonl  what became of layers that were asked for lately
//! ROOT/snapshotter/snapshots/ID/{layer.json,index/}
//! ```

pub mod access;
mod below;
mod blobs;
mod catalog;
mod decisions;
mod error;
mod files;
mod find;
mod memo;
mod note;
mod open;
mod pull;
pub mod request;
mod restore;
mod show;
mod shown;
mod sweep;
mod whole;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use spanfs::image::Images;
use spanfs_cache::{Background, Cache, CacheOptions};
use spanfs_layer::tree::OpaqueXattr;
use spanfs_mount::hold::Holding;
use spanfs_mount::policy::{self, Choice, Front};
use spanfs_mount::probe::{self, Facts};
use spanfs_mount::transport::ServerOptions;
use spanfs_mount::{Inheritance, Mounter, MounterOptions, Parts};

use crate::config::{FrontChoice, PullModes, Settings};
use crate::content_store::ContentStore;
use crate::metrics::{Metrics, NodeSample};
use access::Environment;
use catalog::{Catalog, Sources};
use decisions::Decisions;
pub use decisions::{Decided, Outcome};
pub use error::LayerError;
pub use find::{Answer, Wanted};
use open::Opener;
use pull::Puller;
pub use request::Request;
pub use show::{Caller, Kind, Place, Placed};
pub use shown::LayerReport;
use shown::Registry;
use whole::Wholes;

/// Mounts of a node: 30 images with 127 layers each.
const MOUNTS_MAX: usize = 4096;

/// How long a layer is shown before it is shown anew, where nothing is fetched in the background: what a
/// start reads may be all of a small layer.
const SETTLE_TIME: Duration = Duration::from_secs(30);

/// All layers of a node that we show.
pub struct Layers {
    opener: Opener,
    mounter: Mounter,
    /// What an earlier process showed, and nobody has gone on with yet.
    inheritance: Inheritance,
    front: Choice,
    /// How inodes say that a directory hides what lies below.
    opaque_xattr: OpaqueXattr,
    /// Layers that come whole are unpacked.
    unpacks: bool,
    background: Background,
    /// Lazy layers end as blobs in the content store, too.
    completes_blobs: bool,
    /// A start goes on without layers that can't come back.
    allows_losses: bool,
    live: RwLock<Live>,
    /// Mirrors of the settings file, as the fetcher reads them.
    hosts: PathBuf,
    catalog: Catalog,
    wholes: Arc<Wholes>,
    registry: Registry,
    metrics: Arc<Metrics>,
    decisions: Decisions,
    leftovers: AtomicBool,
}

impl Layers {
    /// Get ready below `root`; `None` on a machine that can't show layers at all. Mounts that an
    /// earlier process left below `snapshots` wait for [`Self::restore`], those that can't be gone on
    /// with are taken away: containers that use them keep them.
    pub fn start(
        root: &Path,
        snapshots: &Path,
        settings: &Settings,
        environment: &Environment,
        holding: Option<Holding>,
    ) -> Result<Option<Self>, LayerError> {
        let base = root.join("spanfs");
        let [directory, mounts, hosts] = ["cache", "mounts", "hosts"].map(|name| base.join(name));
        private_directory(&base).map_err(LayerError::disk(&base))?;
        std::fs::create_dir_all(&mounts).map_err(LayerError::disk(&mounts))?;
        access::write_hosts(&hosts, &settings.mirrors).map_err(LayerError::disk(&hosts))?;
        let mounter = mounter(&mounts, settings, holding)?;
        let inheritance = restore::inherit(&mounter, snapshots)?;
        let Some(front) = choose_front(&mounts, settings) else {
            inheritance.discard();
            return Ok(None);
        };
        let unpacks = unpacks(&front, settings);
        let of_whole = if unpacks { "files".to_owned() } else { front.front.to_string() };
        tracing::info!(front = %front.front, of_whole, reason = front.reason, "layers are shown");
        let images = Images::start(access::images_options(settings, environment, &hosts))?;
        let images = Arc::new(images);
        let cache = Arc::new(open_cache(&directory, settings)?);
        let store = ContentStore::open(settings, root, images.runtime().handle());
        let store = Arc::new(store.map_err(LayerError::disk(root))?);
        let puller = Arc::new(Puller::new(settings, Arc::clone(&store))?);
        let metrics = Arc::new(Metrics::default());
        let sources = Sources {
            images: Arc::clone(&images),
            store,
            directory: directory.clone(),
            reads_prefetch: settings.prefetch,
            metrics: Arc::clone(&metrics),
        };
        Ok(Some(Self {
            mounter,
            inheritance,
            front,
            opaque_xattr: if environment.userxattr {
                OpaqueXattr::User
            } else {
                OpaqueXattr::Trusted
            },
            unpacks,
            background: background(settings),
            completes_blobs: settings.complete_blobs,
            allows_losses: settings.allow_invalid_mounts,
            live: RwLock::new(Live::of(settings)),
            hosts,
            catalog: Catalog::new(sources, settings.mount_timeout),
            wholes: Arc::new(Wholes::new()),
            registry: Registry::default(),
            metrics,
            decisions: Decisions::open(base.join("decisions.jsonl")),
            leftovers: AtomicBool::default(),
            opener: Opener { images, cache, directory, stop: Arc::default(), puller },
        }))
    }

    /// Take what of other settings can be taken now; layers asked for from now on follow them.
    pub fn reload(&self, settings: &Settings) -> Result<(), LayerError> {
        access::write_hosts(&self.hosts, &settings.mirrors)
            .map_err(LayerError::disk(&self.hosts))?;
        self.opener.images.forget_hosts();
        let mut live = self.live.write();
        let parallel = live.modes.parallel.take();
        *live = Live::of(settings);
        // Its threads are there, or they are not.
        live.modes.parallel = parallel;
        self.catalog.forget();
        Ok(())
    }

    /// The numbers of a scrape; `directory` tells where a snapshot is, `snapshots` how many of each
    /// kind there are.
    pub fn metrics(
        &self,
        directory: impl Fn(u64) -> PathBuf,
        snapshots: BTreeMap<&'static str, u64>,
    ) -> String {
        let place = |id| directory(id).display().to_string();
        let cache = self.opener.cache.status();
        let node = NodeSample {
            snapshots,
            decided: self.decisions.counts(),
            disk_bytes: cache.disk_bytes,
            memory_bytes: cache.memory_bytes,
            inflight_bytes: cache.inflight_bytes,
            waiting: cache.waiting as u64,
        };
        self.metrics.render(&self.registry.samples(place), &node)
    }

    /// Every layer that is shown or noted, and how; `directory` tells where a snapshot is.
    pub fn report(&self, directory: impl Fn(u64) -> PathBuf) -> Vec<LayerReport> {
        self.registry.reports(|id| directory(id).display().to_string())
    }

    /// What was decided lately about layers that were asked for, and why; also about those that are
    /// not ours.
    pub fn decisions(&self) -> Vec<Decided> {
        self.decisions.all()
    }

    /// Keep what was decided about a layer.
    pub fn decided(&self, request: &Request, outcome: Outcome, reason: &str) {
        self.decisions.add(request, outcome, reason);
    }

    /// The process ends: stop what is under way, and leave mounts to the next one or take them away.
    pub fn end(&self, mounts: AtEnd) {
        self.opener.stop.store(true, Ordering::Relaxed);
        self.wholes.stop();
        match mounts {
            AtEnd::Stay => {
                self.mounter.leave();
                self.registry.leave();
            }
            AtEnd::Go => self.registry.retain(|_| false),
        }
    }
}

/// What makes mounts below `mounts`, as the settings want it.
fn mounter(
    mounts: &Path,
    settings: &Settings,
    holding: Option<Holding>,
) -> Result<Mounter, LayerError> {
    let mut options = MounterOptions::new(mounts);
    // nerdctl's suite and SOCI's count the one-file mounts.
    options.parts = Parts::Visible;
    options.server = ServerOptions { mounts_max: MOUNTS_MAX, ..ServerOptions::default() };
    options.holding = holding;
    options.transport = settings.transport;
    if settings.enable_uring
        && let Err(error) = probe::enable_uring()
    {
        tracing::warn!(%error, "FUSE over io_uring can't be switched on");
    }
    Ok(Mounter::new(options)?)
}

fn open_cache(directory: &Path, settings: &Settings) -> Result<Cache, LayerError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut options = CacheOptions::new(directory.to_owned(), cores);
    options.background_bytes_per_second_max = settings.background_bytes_per_second_max;
    Ok(Cache::open(options)?)
}

/// Whether layers that come whole are unpacked.
fn unpacks(front: &Choice, settings: &Settings) -> bool {
    match settings.front {
        FrontChoice::Files => true,
        FrontChoice::Auto => front.front != Front::Erofs,
        FrontChoice::Erofs | FrontChoice::Inode => false,
    }
}

/// The peer's words.
fn background(settings: &Settings) -> Background {
    match settings.background_fetch {
        Some(_) => {
            tracing::info!("constructing background fetcher");
            Background::On
        }
        None => {
            tracing::info!("background fetch is disabled");
            Background::Off
        }
    }
}

/// Layers of private images, and logins: for root alone, whoever may look into the directory above.
fn private_directory(path: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

/// Settings that change while we run.
#[derive(Clone, Debug)]
struct Live {
    /// How long a layer is shown before it is shown anew: tools count mounts after a pull.
    settle_time: Duration,
    lazy_len_min: u64,
    modes: PullModes,
}

impl Live {
    fn of(settings: &Settings) -> Self {
        Self {
            settle_time: settings.background_fetch.map_or(SETTLE_TIME, |it| it.silence),
            lazy_len_min: settings.lazy_layer_len_min,
            modes: settings.pull_modes.clone(),
        }
    }
}

/// What becomes of mounts when the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtEnd {
    /// They stay: complete layers go on, readers of the others wait for the next process if somebody
    /// holds their connections.
    Stay,
    /// They are unmounted.
    Go,
}

/// How lazy layers are shown, as far as the settings leave the choice; `None` where nothing can be.
fn choose_front(mounts: &Path, settings: &Settings) -> Option<Choice> {
    let forced = match settings.front {
        FrontChoice::Erofs => Some(Front::Erofs),
        FrontChoice::Inode => Some(Front::Inode),
        FrontChoice::Auto | FrontChoice::Files => None,
    };
    let choice = policy::choose(&Facts::gather(mounts), forced);
    let error = match choice {
        Ok(choice) => return Some(choice),
        Err(error) => error.to_string(),
    };
    tracing::error!(error, "containerd has to unpack every layer");
    None
}
