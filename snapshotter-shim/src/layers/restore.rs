//! What earlier processes showed, brought back: before the daemon listens, or when it is needed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use spanfs::image::Ztoc;
use spanfs_fetch::{Class, ImageRef};
use spanfs_layer::Digest;
use spanfs_mount::transport::Privilege;
use spanfs_mount::{Inheritance, Mounter, mountinfo, unmount};

use super::note::Note;
use super::show::Place;
use super::shown::State;
use super::{LayerError, Layers};
use crate::daemon::log::chain;

/// A start may not wait longer than this for old layers to come back.
const RESTORE_TIME_MAX: Duration = Duration::from_secs(15);
/// Layers brought back at once: each waits for the disk more than for a core.
const RESTORE_THREADS: usize = 8;

impl Layers {
    /// Bring back what earlier processes showed: `places` level by level, the lowest layers first.
    /// Returns after a quarter of a minute at the latest; what is not back then comes later, or when it is
    /// needed. Fails, once all were tried, if one can never come back and the settings don't allow that.
    pub fn restore(self: &Arc<Self>, places: Vec<Vec<Place>>) -> Result<(), LayerError> {
        let lost: Arc<Mutex<Vec<(u64, String)>>> = Arc::default();
        for place in places.iter().flatten() {
            match Note::read(&place.directory) {
                Ok(None) => {}
                Ok(Some(note)) => self.registry.note(place.id, Arc::new(note)),
                Err(error) => {
                    let id = place.id;
                    tracing::error!(id, %error, "a layer is lost: its note can't be read");
                    self.registry.lose(id, format!("its note can't be read: {error}"));
                }
            }
        }
        let (done, wait) = std::sync::mpsc::channel();
        let (layers, losing) = (Arc::clone(self), Arc::clone(&lost));
        let run = move || {
            places.iter().for_each(|level| layers.restore_level(level, &losing));
            // Of removed snapshots, or broken ones: nobody will ever serve them.
            layers.inheritance.discard();
            layers.prefetch_all();
            layers.complete_blobs();
            let _nobody_waits = done.send(());
        };
        if let Err(error) = std::thread::Builder::new().name("restore".to_owned()).spawn(run) {
            tracing::error!(%error, "layers come back only when they are needed");
            return Ok(());
        }
        if wait.recv_timeout(RESTORE_TIME_MAX).is_err() {
            tracing::warn!("layers are still coming back after {RESTORE_TIME_MAX:?}");
        }
        let lost = lost.lock();
        match lost.first() {
            Some((id, reason)) if !self.allows_losses => {
                let (id, reason, count) = (*id, reason.clone(), lost.len());
                Err(LayerError::Lost { id, reason, count })
            }
            _ => Ok(()),
        }
    }

    fn restore_level(&self, level: &[Place], lost: &Mutex<Vec<(u64, String)>>) {
        let next = AtomicUsize::new(0);
        let run = || {
            while let Some(place) = level.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.ensure(place) {
                    // A registry that is away, or a login that has ended, may come back.
                    let is_lost = !matches!(error.class(), Some(Class::Retry | Class::Refused));
                    let (id, error) = (place.id, chain(&error));
                    tracing::error!(
                        id,
                        error,
                        "failed to restore remote snapshot {id}; remove this snapshot manually, unless \
                         it comes back when it is needed"
                    );
                    if is_lost {
                        lost.lock().push((id, error));
                    }
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
            let layers = layers.into_iter().flat_map(|it| it.values().copied());
            drop(self.prefetch(*id, note, layers));
        }
    }

    /// See to it that a snapshot's layer, if it is one of ours, can be read.
    pub fn ensure(&self, place: &Place) -> Result<(), LayerError> {
        // The peer's words: its tests and its users count them.
        tracing::debug!(id = place.id, "checking mount point");
        match self.registry.state(place.id, self.settle_time()) {
            State::Ordinary => {
                tracing::debug!(id = place.id, "layer is normal snapshot(overlayfs)");
                Ok(())
            }
            State::Shown => Ok(()),
            State::Ripe => {
                self.make_direct(place);
                Ok(())
            }
            State::Corrupt(reason) => Err(LayerError::Corrupt(reason)),
            State::Noted(_) => {
                let _one_at_a_time = self.registry.lock(place.id);
                // Who had it before us may have done it.
                let State::Noted(note) = self.registry.state(place.id, self.settle_time()) else {
                    return Ok(());
                };
                self.show_again(note, place)
            }
        }
    }
}

impl Layers {
    /// Show what a note tells of. The zTOC is read only where an earlier process did not bring to the
    /// disk what it made of it.
    fn show_again(&self, note: Arc<Note>, place: &Place) -> Result<(), LayerError> {
        let opener = &self.opener;
        let name: ImageRef = note.image.parse()?;
        let source = opener.images.source(&name)?;
        let show = |ztoc: Option<Ztoc>| {
            let open = opener.open(&source, &note.descriptor(), note.diff_id, ztoc)?;
            open.keep(&opener.images);
            self.mount(open, Arc::clone(&note), place)
        };
        let Some(digest) = note.ztoc else { return show(None) };
        let ztoc = Ztoc::named(&opener.directory, &source, digest, note.ztoc_len)?;
        match show(Some(ztoc)) {
            Err(error) if error.class() == Some(Class::Gone) => {
                let (id, error) = (place.id, chain(&error));
                tracing::warn!(id, %digest, error, "the zTOC of a layer is gone: it comes whole");
                show(None)
            }
            outcome => outcome,
        }
    }
}

/// What an earlier process showed and can be gone on with. All else that is mounted below `snapshots`
/// is taken away.
pub(super) fn inherit(mounter: &Mounter, snapshots: &Path) -> Result<Inheritance, LayerError> {
    let inheritance = mounter.inherit(Privilege::Root)?;
    tracing::debug!(count = inheritance.count(), "mounts of an earlier process");
    // The peer keeps no records. The kernel names mounts by their real paths.
    let Ok(snapshots) = snapshots.canonicalize() else { return Ok(inheritance) };
    for mount in mountinfo::mounts().unwrap_or_default().iter().rev() {
        let place = &mount.mount_point;
        let is_below = place.starts_with(&snapshots) && *place != snapshots;
        if is_below
            && !inheritance.has_mounted(place)
            && let Err(error) = unmount::detach(place, Privilege::Root)
        {
            tracing::warn!(at = %place.display(), %error, "a mount stays");
        }
    }
    Ok(inheritance)
}
