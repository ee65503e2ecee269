//! From a layer that we can have to its mount at a snapshot's directory.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use spanfs::image::decide::Decision;
use spanfs::image::{OpenLayer, Ztoc};
use spanfs::layer_index::index_layer;
use spanfs::start::expect_start;
use spanfs_cache::{Image as Prefetch, ImageSpec, Layer};
use spanfs_fetch::Priority;
use spanfs_layer::Digest;
use spanfs_layer::soci::SpanRun;
use spanfs_layer::tree::TreeOptions;
use spanfs_mount::policy::Front;
use spanfs_mount::{Inherited, Mount, MountError};

use super::catalog::{Known, KnownLayer};
use super::decisions::Outcome;
use super::find::Wanted;
use super::note::{self, How, Note};
use super::shown::{self, Shown};
use super::{LayerError, Layers, below};
use crate::daemon::log::chain;
use crate::metrics::{Event, Operation};
use crate::state::Usage;

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

/// Who asks for a layer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller<'a> {
    /// containerd's namespace, where the call names one.
    pub namespace: Option<&'a str>,
    /// Set once nobody waits for the answer any more.
    pub gone: Option<&'a AtomicBool>,
}

impl Caller<'_> {
    /// Whether nobody waits for the answer any more.
    pub fn is_gone(&self) -> bool {
        self.gone.is_some_and(|gone| gone.load(Ordering::Relaxed))
    }
}

impl<'a> From<Option<&'a str>> for Caller<'a> {
    fn from(namespace: Option<&'a str>) -> Self {
        Self { namespace, gone: None }
    }
}

/// A layer in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// How it is shown.
    pub kind: Kind,
    /// Disk that its own files take; nothing for what is mounted.
    pub usage: Usage,
}

impl Place {
    /// Where the layer is mounted.
    fn root(&self) -> PathBuf {
        self.directory.join("fs")
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

impl Kind {
    fn outcome(self) -> Outcome {
        match self {
            Self::Lazy => Outcome::Lazy,
            Self::Whole => Outcome::Whole,
            Self::Parallel => Outcome::Parallel,
        }
    }
}

/// What is written down of a layer.
fn noted(wanted: &Wanted, layer: &KnownLayer, place: &Place, open: &OpenLayer, how: How) -> Note {
    let Wanted { known, position, request, .. } = wanted;
    let image = note::Place {
        name: &format!("{}/{}", request.image.host(), request.image.repository()),
        manifest: request.manifest,
        config: known.config,
        position: *position,
        count: known.layers.len(),
        lowest: place.lowers.is_empty(),
    };
    let mut note = Note::new(&layer.descriptor, layer.diff_id, &image);
    note.how = Some(how);
    note.namespace = request.namespace.clone();
    note.ztoc = open.spans.as_ref().map(|spans| *spans.ztoc_digest());
    note.ztoc_len = open.ztoc_len();
    note
}

/// Ask for spans that the image's index wants before anybody reads.
fn fetch_first(layer: &Layer, runs: &[SpanRun]) {
    let spans = layer.table().spans();
    for run in runs {
        let last = (run.last as usize).min(spans.len().saturating_sub(1));
        if let (Some(first), Some(last)) = (spans.get(run.first as usize), spans.get(last)) {
            let range = first.uncompressed.start..last.uncompressed.end;
            layer.prefetch(range, Priority::Prefetch);
        }
    }
}

impl Layers {
    /// Show a layer at `place`, whose directory is empty. On failure nothing is left there but files.
    pub fn show(
        &self,
        wanted: &Wanted,
        place: &Place,
        caller: &Caller<'_>,
    ) -> Result<Placed, LayerError> {
        let since = Instant::now();
        let shown = self.show_now(wanted, place, caller);
        let layer = wanted.layer().to_string();
        match &shown {
            Ok(_) => self.metrics.took(Operation::Mount, &layer, since.elapsed()),
            Err(_) => self.metrics.count(Event::LocalMountFailure),
        }
        shown
    }

    fn show_now(
        &self,
        wanted: &Wanted,
        place: &Place,
        caller: &Caller<'_>,
    ) -> Result<Placed, LayerError> {
        let Wanted { known, position, request, .. } = wanted;
        let Some(layer) = known.layers.get(*position) else { unreachable!("it was found there") };
        self.wholes.begin(&self.opener, known, request, &wanted.whole);
        let (open, kind, reason) = self.obtain(wanted, layer, caller)?;
        let outcome = kind.outcome();
        if self.unpacks && kind != Kind::Lazy {
            let usage = self.unpack(&open, place)?;
            self.forget_unpacked(open);
            self.decided(request, outcome, &reason);
            return Ok(Placed { kind, usage });
        }
        let note = noted(wanted, layer, place, &open, How { outcome, reason });
        note.write(&place.directory).map_err(LayerError::disk(&place.directory))?;
        let note = Arc::new(note);
        // From here on no sweep takes the zTOC; one before may have.
        self.registry.note(place.id, Arc::clone(&note));
        let spans = open.spans.clone();
        open.keep(&self.opener.images);
        self.mount(open, Arc::clone(&note), place).inspect_err(|_| self.hide(place.id))?;
        layer.forget_bytes();
        if let Some(spans) = spans {
            fetch_first(&spans, &layer.prefetch);
        }
        if let Some(How { outcome, reason }) = &note.how {
            self.decided(request, *outcome, reason);
        }
        let layers = known.layers.iter().map(|layer| layer.descriptor.digest);
        if let Some(prefetch) = self.prefetch(place.id, &note, layers) {
            self.expect_start(&prefetch, known);
        }
        Ok(Placed { kind, usage: Usage::default() })
    }

    /// The layer, by what was decided about it, and why it is as it is.
    fn obtain(
        &self,
        wanted: &Wanted,
        layer: &KnownLayer,
        caller: &Caller<'_>,
    ) -> Result<(OpenLayer, Kind, String), LayerError> {
        let Wanted { known, position, decision, request, .. } = wanted;
        let digest = &layer.descriptor.digest;
        Ok(match decision {
            Decision::Lazy => match self.opener.lazy(known, layer) {
                Ok((open, ztoc)) => {
                    let reason = format!("zTOC {ztoc} says where its spans are");
                    (open, Kind::Lazy, reason)
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(layerDigest = %digest, error, "layer is not lazy");
                    self.metrics.count(Event::MountFailure);
                    (self.opener.whole(known, layer, request)?, Kind::Whole, error)
                }
            },
            Decision::Whole { reason } => {
                tracing::info!(layerDigest = %digest, reason, "preparing snapshot as local snapshot");
                let open = self.wholes.obtain_few(&self.opener, wanted, caller)?;
                (open, Kind::Whole, (*reason).to_owned())
            }
            Decision::Parallel => {
                let reason = match &known.index {
                    Ok(_) => "parallel_pull_unpack is on".to_owned(),
                    Err(reason) => reason.clone(),
                };
                let open = self.wholes.obtain(&self.opener, known, *position, request, caller)?;
                (open, Kind::Parallel, reason)
            }
            Decision::Defer => unreachable!("not ours"),
        })
    }

    pub(super) fn mount(
        &self,
        open: OpenLayer,
        note: Arc<Note>,
        place: &Place,
    ) -> Result<(), LayerError> {
        let since = Instant::now();
        if let Some(spans) = open.spans.as_ref().filter(|_| note.is_lazy()) {
            self.keep_blob(spans);
        }
        let (mount, layer) = match self.front.front {
            Front::Erofs => {
                let index = place.directory.join("index");
                let describe = |paths: &[Vec<u8>]| below::describe(&place.lowers, paths);
                let images = &self.opener.images;
                let layer = index_layer(images, &open, note.lowest, &index, describe)?;
                let digest = note.layer.to_string();
                self.metrics.took(Operation::IndexLayer, &digest, since.elapsed());
                (self.mount_layer(place, &layer)?, Some(layer))
            }
            Front::Inode => (self.mount_inodes(place, &open)?, None),
        };
        self.metrics.took(Operation::FuseMount, &note.layer.to_string(), since.elapsed());
        open.settle()?;
        let OpenLayer { content, spans, .. } = open;
        let shown = Shown { mount, content, spans, layer, since, prefetch: None };
        self.registry.show(place.id, note, shown);
        Ok(())
    }

    fn mount_layer(&self, place: &Place, layer: &spanfs_mount::Layer) -> Result<Mount, LayerError> {
        let adopt = |old| self.mounter.adopt(old, std::slice::from_ref(layer));
        match self.go_on(place, adopt) {
            Some(mount) => Ok(mount),
            None => Ok(self.mounter.layer(layer, &place.root())?),
        }
    }

    fn mount_inodes(&self, place: &Place, open: &OpenLayer) -> Result<Mount, LayerError> {
        let options = TreeOptions { opaque_xattr: self.opaque_xattr, ..TreeOptions::default() };
        let tree = Arc::new(open.tree(options)?);
        let content = || vec![(open.descriptor.digest.to_string(), Arc::clone(&open.content))];
        let adopt = |old| self.mounter.adopt_inodes(old, Arc::clone(&tree), content());
        if let Some(mount) = self.go_on(place, adopt) {
            return Ok(mount);
        }
        let privilege = self.front.privilege;
        Ok(self.mounter.inodes(tree, content(), &place.root(), privilege)?)
    }

    /// Go on with what an earlier process showed at `place`, if it did. What it had replaced there, and
    /// somebody still uses, is served until they go.
    fn go_on(
        &self,
        place: &Place,
        adopt: impl Fn(Inherited) -> Result<Mount, MountError>,
    ) -> Option<Mount> {
        let mut current = None;
        // The kernel names mounts by their real paths; the mount itself is not looked at.
        let root = place.directory.canonicalize().map(|directory| directory.join("fs"));
        for old in root.map(|root| self.inheritance.at(&root)).unwrap_or_default() {
            let is_current = old.is_in_tree() && current.is_none();
            match adopt(old) {
                Ok(mount) if is_current => current = Some(mount),
                Ok(mount) => shown::unmount_later(place.id, mount),
                Err(error) => {
                    let (id, error) = (place.id, chain(&error));
                    tracing::warn!(id, error, "a mount of an earlier process has ended");
                }
            }
        }
        current
    }

    /// Once the topmost layer of an image is shown, all of it is fetched in idle time, in the order
    /// that its starts want. `layers` are the image's, the lowest first.
    pub(super) fn prefetch(
        &self,
        id: u64,
        note: &Note,
        layers: impl IntoIterator<Item = Digest>,
    ) -> Option<Arc<Prefetch>> {
        if note.position + 1 != note.count {
            return None;
        }
        let layers: Vec<_> = layers.into_iter().filter_map(|it| self.registry.spans(&it)).collect();
        if layers.is_empty() {
            return None;
        }
        let background = self.background;
        let spec = ImageSpec { layers, config: Some(note.config), background, record: true };
        let prefetch = self.opener.cache.image(spec);
        self.registry.prefetch(id, Arc::clone(&prefetch));
        Some(prefetch)
    }

    /// Fetch what the image's own program will probably read: containerd tells nobody what it will
    /// start. Layers without a zTOC are left out.
    fn expect_start(&self, prefetch: &Arc<Prefetch>, known: &Arc<Known>) {
        let (opener, known, start) = (self.opener.clone(), Arc::clone(known), known.start.clone());
        let notes = self.registry.notes();
        expect_start(prefetch, start, move || {
            // Those that came whole got their zTOC on the way.
            let made = |layer: Digest| notes.iter().find(|(_, note)| note.layer == layer)?.1.ztoc;
            let open = |layer: &KnownLayer| {
                let (source, descriptor) = (&known.source, &layer.descriptor);
                let named = || {
                    let made = made(descriptor.digest)?;
                    Ztoc::named(&opener.directory, source, made, None).ok()
                };
                let ztoc = layer.ztoc().or_else(named)?;
                let open = opener.open(source, descriptor, layer.diff_id, Some(ztoc));
                open.inspect_err(|error| {
                    let (layer, error) = (descriptor.digest, chain(error));
                    tracing::debug!(layerDigest = %layer, error, "nothing of it is predicted");
                })
                .ok()
            };
            Some(spanfs::image::Layers { layers: known.layers.iter().filter_map(open).collect() })
        });
    }

    /// How long a layer is shown before its mount is changed.
    pub(super) fn settle_time(&self) -> Duration {
        self.live.read().settle_time
    }

    /// Undo [`Self::show`].
    pub fn hide(&self, id: u64) {
        self.registry.retain(|other| other != id);
    }

    /// Have the kernel alone show a layer that is complete.
    pub(super) fn make_direct(&self, place: &Place) {
        let id = place.id;
        // While it is taken, it looks as if it were to be mounted.
        let _one_at_a_time = self.registry.lock(id);
        let Some(mut shown) = self.registry.take_complete(id, self.settle_time()) else { return };
        let at = place.root();
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
}
