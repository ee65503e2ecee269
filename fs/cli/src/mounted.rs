//! Layers, mounted: fronts chosen, indexes made, one overlay or one tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use spanfs_cache::{Content, Verification};
use spanfs_layer::erofs::{self, DataCopy, Device};
use spanfs_layer::tree::{OpaqueXattr, Tree, TreeOptions, Whiteouts};
use spanfs_layer::{Digest, UncompressedOffset};
use spanfs_mount::overlay::{OverlayError, OverlayOptions, Upper};
use spanfs_mount::policy::{self, Choice, Front, NoFront};
use spanfs_mount::probe::Facts;
use spanfs_mount::transport::fuse3::Privilege;
use spanfs_mount::{
    Busy, Ended, Layer as MountLayer, Mount, MountError, Mounter, MounterOptions, Shown,
    UnmountError, overlay, record, unmount,
};

use crate::image::{ImageError, Layers, OpenLayer, replace};
use crate::side_by_side::{cores, side_by_side};

/// How layers are shown.
#[derive(Clone, Debug)]
pub struct ShowOptions {
    /// The front to take; the best unless given.
    pub front: Option<Front>,
    /// Directory of ours, for records of mounts and mount points of a moment.
    pub state: PathBuf,
    /// Directory that layer indexes are kept in.
    pub indexes: PathBuf,
    /// Where changes go; read-only without it.
    pub upper: Option<Upper>,
    /// One layer alone, whiteouts as overlayfs wants them, instead of a whole image.
    pub bare_layer: bool,
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
    layers: Layers,
    since: Instant,
}

/// Show layers at `mount_point`.
pub fn show(
    layers: &Layers,
    mount_point: &Path,
    options: &ShowOptions,
) -> Result<Mounted, ShowError> {
    fs::create_dir_all(&options.state)
        .map_err(|source| ShowError::State { path: options.state.clone(), source })?;
    let facts = Facts::gather(&options.state);
    let choice = policy::choose(&facts, options.front)?;
    tracing::info!(front = %choice.front, reason = choice.reason, "front chosen");
    let mounter_options = MounterOptions::new(&options.state);
    match record::recover(&mounter_options.records(), choice.privilege) {
        Ok(recovered) => recovered.iter().for_each(|it| {
            tracing::info!(at = %it.mount_point.display(), outcome = ?it.outcome, "dead mount");
        }),
        Err(error) => tracing::warn!(%error, "dead mounts are not looked for"),
    }
    let mounter = Mounter::new(mounter_options)?;
    let mut mounted = Mounted {
        mount: None,
        below: None,
        above: None,
        _mounter: mounter,
        choice,
        layers: layers.clone(),
        since: Instant::now(),
    };
    mounted.mount(mount_point, options)?;
    Ok(mounted)
}

impl Mounted {
    fn mount(&mut self, mount_point: &Path, options: &ShowOptions) -> Result<(), ShowError> {
        let mounter = &self._mounter;
        match self.choice.front {
            Front::Erofs => {
                let layers = indexed(&self.layers, options)?;
                self.mount = Some(match (&layers[..], options.bare_layer) {
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
        let shown = self.mount.as_ref().or(self.below.as_ref()).map_or(&[][..], Mount::layers);
        let layers = self.layers.layers.iter().enumerate().map(|(number, layer)| {
            // One tree of inodes shows all layers.
            let shown = shown.get(number).or(shown.first());
            LayerReport::of(layer, shown.copied())
        });
        let layers: Vec<LayerReport> = layers.collect();
        MountStatus {
            front: self.choice.front.to_string(),
            reason: self.choice.reason.clone(),
            seconds: self.since.elapsed().as_secs(),
            fetched_bytes: layers.iter().map(|layer| layer.fetched_bytes).sum(),
            compressed_bytes: layers.iter().map(|layer| layer.compressed_bytes).sum(),
            spans_present: layers.iter().map(|layer| layer.spans_present).sum(),
            span_count: layers.iter().map(|layer| layer.span_count).sum(),
            layers,
        }
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

fn named_content(layer: &OpenLayer) -> (String, Arc<dyn Content>) {
    (layer.descriptor.digest.to_string(), Arc::clone(&layer.content))
}

fn inode_tree(layers: &Layers, bare_layer: bool) -> Result<Tree, ImageError> {
    match (&layers.layers[..], bare_layer) {
        ([layer], true) => layer.tree(TreeOptions::default()),
        _ => layers.merged(),
    }
}

/// Layers with their indexes, made side by side where they are not kept.
fn indexed(layers: &Layers, options: &ShowOptions) -> Result<Vec<MountLayer>, ShowError> {
    fs::create_dir_all(&options.indexes)
        .map_err(|source| ShowError::State { path: options.indexes.clone(), source })?;
    let made = side_by_side(&layers.layers, cores(), |number, layer| {
        // Nothing lies below the lowest layer of an image.
        with_index(layer, number == 0 && !options.bare_layer, &options.indexes)
    });
    made.into_iter().collect()
}

/// What is to be known of a kept index. Changing it makes older ones be made anew.
#[derive(Serialize, Deserialize)]
struct IndexNote {
    format: u32,
    digest: Digest,
    data_len: u64,
    /// From, to, whereto.
    copies: Vec<(u64, u64, u64)>,
}

const INDEX_FORMAT: u32 = 1;

fn with_index(layer: &OpenLayer, lowest: bool, directory: &Path) -> Result<MountLayer, ShowError> {
    let suffix = if lowest { "-lowest" } else { "" };
    let path = directory.join(format!("{}{suffix}", layer.index_key()));
    let note_path = path.with_extension("json");
    let note = match kept(&path, &note_path) {
        Some(note) => note,
        None => make_index(layer, lowest, &path, &note_path)?,
    };
    let copy = |&(start, end, to): &(u64, u64, u64)| DataCopy {
        device: 0,
        from: UncompressedOffset(start)..UncompressedOffset(end),
        to: UncompressedOffset(to),
    };
    Ok(MountLayer {
        name: layer.descriptor.digest.to_string(),
        content: Arc::clone(&layer.content),
        index: path,
        data_len: note.data_len,
        copies: note.copies.iter().map(copy).collect(),
    })
}

/// The kernel gets no index that is not byte for byte what we wrote.
fn kept(path: &Path, note_path: &Path) -> Option<IndexNote> {
    let note: IndexNote = serde_json::from_slice(&fs::read(note_path).ok()?).ok()?;
    let sound = note.format == INDEX_FORMAT && Digest::of(&fs::read(path).ok()?) == note.digest;
    sound.then_some(note)
}

fn make_index(
    layer: &OpenLayer,
    lowest: bool,
    path: &Path,
    note_path: &Path,
) -> Result<IndexNote, ShowError> {
    let whiteouts = if lowest { Whiteouts::Suppress } else { Whiteouts::Show };
    let options =
        TreeOptions { opaque_xattr: OpaqueXattr::Trusted, whiteouts, ..TreeOptions::default() };
    let digest = layer.descriptor.digest;
    let bad = |reason: String| ImageError::Corrupt(format!("layer {digest}: {reason}"));
    let tree = layer.tree(options)?;
    let tag = digest.hex().to_string();
    let tag = &tag.as_bytes()[..tag.len().min(64)];
    let device = Device { len: layer.content.len(), tag };
    let index = erofs::write(&tree, &[device]).map_err(|error| bad(error.to_string()))?;
    let note = IndexNote {
        format: INDEX_FORMAT,
        digest: Digest::of(&index.bytes),
        data_len: index.data_lens.first().copied().unwrap_or(device.len),
        copies: index.copies.iter().map(|it| (it.from.start.0, it.from.end.0, it.to.0)).collect(),
    };
    let text = serde_json::to_vec(&note).unwrap_or_default();
    replace(path, &index.bytes)
        .and_then(|()| replace(note_path, &text))
        .map_err(|source| ShowError::State { path: path.to_owned(), source })?;
    Ok(note)
}

/// State of a mount.
#[derive(Clone, Debug, Serialize)]
pub struct MountStatus {
    /// `erofs` or `inode`.
    pub front: String,
    /// Why that one.
    pub reason: String,
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
    /// Each layer, the lowest first.
    pub layers: Vec<LayerReport>,
}

/// State of a layer.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Digest of its blob.
    pub digest: String,
    /// How it is shown.
    pub front: &'static str,
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
