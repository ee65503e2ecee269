//! Layers, mounted: fronts chosen, indexes made, one overlay or one tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use spanfs_cache::{Content, Verification, Waits};
use spanfs_layer::tree::{Tree, TreeOptions};
use spanfs_mount::hold::Holding;
use spanfs_mount::overlay::{OverlayError, OverlayOptions, Upper};
use spanfs_mount::policy::{self, Carried, Choice, Front, NoFront};
use spanfs_mount::probe::{self, Facts};
use spanfs_mount::transport::Transport;
use spanfs_mount::transport::fuse3::Privilege;
use spanfs_mount::{
    Busy, Ended, Inherited, Mount, MountError, Mounter, MounterOptions, Shown, UnmountError,
    overlay, unmount,
};

use crate::image::{ImageError, Layers, OpenLayer};
use crate::later::Later;
use crate::layer_index::indexed;

/// How layers are shown.
#[derive(Clone, Debug)]
pub struct ShowOptions {
    /// The front to take; the best unless given.
    pub front: Option<Front>,
    /// What carries FUSE; the best unless given.
    pub transport: Option<Transport>,
    /// Switch FUSE over io_uring on for the whole machine. Where that fails, other transports carry.
    pub enable_uring: bool,
    /// Directory of ours, for records of mounts and mount points of a moment.
    pub state: PathBuf,
    /// Directory that layer indexes are kept in.
    pub indexes: PathBuf,
    /// Where changes go; read-only without it.
    pub upper: Option<Upper>,
    /// One layer alone, whiteouts as overlayfs wants them, instead of a whole image.
    pub bare_layer: bool,
    /// Who keeps the mount for a successor of this process; it ends with us without.
    pub holding: Option<Holding>,
    /// Go on with what a killed process showed there, or fail.
    pub succeeds: bool,
}

/// Why layers can't be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// What is to be shown is broken.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// This machine can't.
    #[error(transparent)]
    NoFront(#[from] NoFront),
    /// The kernel refused.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The kernel refused the writable part.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// A successor came too late.
    #[error("the mount has ended: there is nothing to go on with")]
    Ended,
    /// A writable mount without privilege.
    #[error("a writable mount needs overlayfs, and that needs root")]
    Unprivileged,
    /// A file or directory of ours.
    #[error("cannot write {}", path.display())]
    State {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Layers that are shown in a directory. Dropping it unmounts.
pub struct Mounted {
    /// First, so that it goes before what serves it.
    mount: Option<Mount>,
    /// The inodes below a writable overlay.
    below: Option<Mount>,
    /// An overlay of ours above `below`.
    above: Option<PathBuf>,
    _mounter: Mounter,
    choice: Choice,
    /// The transport of what FUSE shows, and why that one.
    carrier: (Transport, String),
    layers: Layers,
    since: Instant,
    later: Later,
}

/// Show layers at `mount_point`.
pub fn show(
    layers: &Layers,
    mount_point: &Path,
    options: &ShowOptions,
) -> Result<Mounted, ShowError> {
    for path in [&options.state, &options.indexes] {
        let failed = |source| ShowError::State { path: path.clone(), source };
        fs::create_dir_all(path).map_err(failed)?;
    }
    if options.enable_uring
        && let Err(error) = probe::enable_uring()
    {
        tracing::warn!(%error, "FUSE over io_uring can't be switched on");
    }
    // Tried where indexes are: the kernel reads EROFS from files of most file systems, not of tmpfs,
    // which the state is on as a rule.
    let facts = Facts::gather(&options.indexes);
    let choice = policy::choose(&facts, options.front)?;
    tracing::info!(front = %choice.front, reason = choice.reason, "front chosen");
    let carried = Carried {
        privilege: choice.privilege,
        front: choice.front,
        is_kept: options.holding.is_some(),
        uring: &facts.uring,
    };
    let carrier = policy::transport(carried, options.transport);
    let mut mounter_options = MounterOptions::new(&options.state);
    mounter_options.transport = options.transport;
    mounter_options.holding.clone_from(&options.holding);
    let mounter = Mounter::new(mounter_options)?;
    // Those of others that the kernel serves alone wait for successors of their own.
    let old = mounter.inherit(choice.privilege)?.at(mount_point).pop();
    if options.succeeds && old.is_none() {
        return Err(ShowError::Ended);
    }
    let mut mounted = Mounted {
        mount: None,
        below: None,
        above: None,
        _mounter: mounter,
        choice,
        carrier,
        layers: layers.clone(),
        since: Instant::now(),
        later: Later::default(),
    };
    mounted.mount(mount_point, options, old)?;
    Ok(mounted)
}

impl Mounted {
    fn mount(
        &mut self,
        mount_point: &Path,
        options: &ShowOptions,
        old: Option<Inherited>,
    ) -> Result<(), ShowError> {
        let mounter = &self._mounter;
        match self.choice.front {
            Front::Erofs => {
                let layers =
                    indexed(&self.layers, options.bare_layer, &options.indexes, &self.later)?;
                self.mount = Some(match (&layers[..], options.bare_layer) {
                    (layers, _) if old.is_some() => go_on(old, |old| mounter.adopt(old, layers))?,
                    ([layer], true) => mounter.layer(layer, mount_point)?,
                    _ => {
                        let upper = options.upper.clone();
                        let stack = OverlayOptions { upper, userxattr: false };
                        mounter.image(&layers, mount_point, &stack)?
                    }
                });
            }
            Front::Inode => {
                let tree = inode_tree(&self.layers, options.bare_layer)?;
                let contents = self.layers.layers.iter().map(named_content).collect();
                if old.is_some() {
                    let adopt = |old| mounter.adopt_inodes(old, Arc::new(tree), contents);
                    self.mount = Some(go_on(old, adopt)?);
                    return Ok(());
                }
                let privilege = self.choice.privilege;
                let Some(upper) = &options.upper else {
                    self.mount =
                        Some(mounter.inodes(Arc::new(tree), contents, mount_point, privilege)?);
                    return Ok(());
                };
                if privilege != Privilege::Root {
                    return Err(ShowError::Unprivileged);
                }
                let lower = options.state.join(format!("lower-{}", std::process::id()));
                fs::create_dir_all(&lower)
                    .map_err(|source| ShowError::State { path: lower.clone(), source })?;
                let below = mounter.inodes(Arc::new(tree), contents, &lower, privilege)?;
                self.below = Some(below);
                let stack = OverlayOptions { upper: Some(upper.clone()), userxattr: false };
                overlay::mount(&[lower], mount_point, &stack)?;
                self.above = Some(mount_point.to_owned());
            }
        }
        Ok(())
    }

    /// The front, and why it was chosen.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// State at this moment.
    pub fn status(&self) -> MountStatus {
        let mount = self.mount.as_ref().or(self.below.as_ref());
        let shown = mount.map_or(&[][..], Mount::layers);
        let layers = self.layers.layers.iter().enumerate().map(|(number, layer)| {
            // One tree of inodes shows all layers.
            let shown = shown.get(number).or(shown.first());
            let past_us = mount.and_then(|mount| mount.past_us(number)?.percent());
            LayerReport { past_us, ..LayerReport::of(layer, shown.copied()) }
        });
        let layers: Vec<LayerReport> = layers.collect();
        let by_fuse = shown.iter().any(|shown| *shown != Shown::ErofsDirect);
        MountStatus {
            front: self.choice.front.to_string(),
            reason: self.choice.reason.clone(),
            transport: by_fuse.then(|| self.carrier.0.to_string()),
            transport_reason: by_fuse.then(|| self.carrier.1.clone()),
            seconds: self.since.elapsed().as_secs(),
            fetched_bytes: layers.iter().map(|layer| layer.fetched_bytes).sum(),
            compressed_bytes: layers.iter().map(|layer| layer.compressed_bytes).sum(),
            spans_present: layers.iter().map(|layer| layer.spans_present).sum(),
            span_count: layers.iter().map(|layer| layer.span_count).sum(),
            on_demand: self.on_demand(),
            layers,
        }
    }

    fn on_demand(&self) -> OnDemand {
        let mut waits = Waits::default();
        let spans = self.layers.layers.iter().filter_map(|layer| layer.spans.as_ref());
        spans.for_each(|spans| waits.merge(&spans.status().waits));
        let millis = |share| waits.quantile(share).map(|wait| wait.as_secs_f64() * 1e3);
        OnDemand { count: waits.count(), p50_ms: millis(0.5), p99_ms: millis(0.99) }
    }

    /// Take the mount away within about `at_most`. Whoever still reads from it then gets errors.
    pub fn unmount(mut self, at_most: Duration) -> Result<Ended, UnmountError> {
        self.take_above();
        let mounts = [self.mount.take(), self.below.take()];
        let ended = mounts.into_iter().flatten().map(|it| it.unmount(at_most, Busy::Abort));
        ended.collect::<Result<Vec<_>, _>>().map(|ended| {
            let gone = ended.iter().all(|ended| *ended == Ended::Gone);
            if gone { Ended::Gone } else { Ended::InUse }
        })
    }

    fn take_above(&mut self) {
        if let Some(above) = self.above.take()
            && let Err(error) = unmount::detach(&above, Privilege::Root)
        {
            tracing::warn!(at = %above.display(), %error, "the overlay stays");
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.take_above();
    }
}

fn go_on(
    old: Option<Inherited>,
    adopt: impl FnOnce(Inherited) -> Result<Mount, MountError>,
) -> Result<Mount, ShowError> {
    Ok(adopt(old.ok_or(ShowError::Ended)?)?)
}

fn named_content(layer: &OpenLayer) -> (String, Arc<dyn Content>) {
    (layer.descriptor.digest.to_string(), Arc::clone(&layer.content))
}

fn inode_tree(layers: &Layers, bare_layer: bool) -> Result<Tree, ImageError> {
    match (&layers.layers[..], bare_layer) {
        ([layer], true) => layer.tree(TreeOptions::default()),
        _ => layers.merged(),
    }
}

/// State of a mount.
#[derive(Clone, Debug, Serialize)]
pub struct MountStatus {
    /// `erofs` or `inode`.
    pub front: String,
    /// Why that one.
    pub reason: String,
    /// `dev`, `uring` or `fuse3`; none where the kernel shows all layers alone.
    pub transport: Option<String>,
    /// Why that one.
    pub transport_reason: Option<String>,
    /// Age.
    pub seconds: u64,
    /// Compressed bytes fetched since the mount was made.
    pub fetched_bytes: u64,
    /// Compressed bytes of all layers.
    pub compressed_bytes: u64,
    /// Spans that can be read without a fetch.
    pub spans_present: u64,
    /// Spans of all layers.
    pub span_count: u64,
    /// Reads that had to wait for bytes.
    pub on_demand: OnDemand,
    /// Each layer, the lowest first.
    pub layers: Vec<LayerReport>,
}

/// How long readers waited for what was not there, since the layers were opened.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct OnDemand {
    /// Reads that waited; all others were answered at once.
    pub count: u64,
    /// Half of them waited no longer.
    pub p50_ms: Option<f64>,
    /// 99 % of them waited no longer.
    pub p99_ms: Option<f64>,
}

/// State of a layer.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Digest of its blob.
    pub digest: String,
    /// How it is shown.
    pub front: &'static str,
    /// How much of its files the kernel reads without us nevertheless, in percent.
    pub past_us: Option<u8>,
    /// Bytes of the blob.
    pub compressed_bytes: u64,
    /// Compressed bytes fetched.
    pub fetched_bytes: u64,
    /// Spans in the layer file.
    pub spans_present: u64,
    /// Spans.
    pub span_count: u64,
    /// Whether the whole was proved to have the diffID.
    pub verification: String,
    /// Trouble with the disk.
    pub disk_error: Option<String>,
}

impl LayerReport {
    fn of(layer: &OpenLayer, shown: Option<Shown>) -> Self {
        let front = match shown {
            Some(Shown::ErofsDirect) => "erofs direct",
            Some(Shown::ErofsOverFuse) => "erofs over one-file FUSE",
            Some(Shown::Inodes) => "inode",
            None => "-",
        };
        let digest = layer.descriptor.digest.to_string();
        let Some(spans) = &layer.spans else {
            let compressed_bytes = layer.descriptor.size;
            return Self {
                digest,
                front,
                past_us: None,
                compressed_bytes,
                fetched_bytes: compressed_bytes,
                spans_present: 1,
                span_count: 1,
                verification: "verified".to_owned(),
                disk_error: None,
            };
        };
        let status = spans.status();
        Self {
            digest,
            front,
            past_us: None,
            compressed_bytes: status.compressed_bytes,
            fetched_bytes: status.fetched_bytes,
            spans_present: status.spans_present as u64,
            span_count: status.span_count as u64,
            verification: match status.verification {
                Verification::Pending => "not verified yet".to_owned(),
                Verification::Verified => "verified".to_owned(),
                Verification::Unverifiable => "unverifiable".to_owned(),
                Verification::Failed(reason) => format!("corrupt: {reason}"),
            },
            disk_error: status.disk_error,
        }
    }
}
