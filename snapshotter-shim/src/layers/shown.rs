//! Layers that snapshots show: the life of their mounts, in one place.
//!
//! ```text
//! absent ─note─▶ noted ─mount─▶ shown ─unmount─▶ gone
//!                  ▲               │ the daemon ends: mounts stay, and readers of those that need it
//!                  └───────────────┘ wait; the next start goes on with them, by the note
//! ```
//!
//! A layer that became complete gets a mount that the kernel serves alone, for containers made from
//! then on; those that run keep the one that they have, which asks us for nothing that is there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use spanfs_cache::{Content, Image as Prefetch, Layer, Verification};
use spanfs_layer::Digest;
use spanfs_mount::{Busy, Ended, Mount, Mounter};

use super::decisions::Outcome;
use super::note::Note;
use crate::metrics::LayerSample;

/// A detach takes milliseconds; whoever still reads is left alone and served.
const UNMOUNT_TIME: Duration = Duration::from_secs(2);

/// A layer that can be read at its snapshot's directory.
pub(super) struct Shown {
    /// First, so that it goes before what serves it.
    pub(super) mount: Mount,
    pub(super) content: Arc<dyn Content>,
    /// None for a layer that is no more than a local file.
    pub(super) spans: Option<Arc<Layer>>,
    /// What EROFS shows; none where we show inodes.
    pub(super) layer: Option<spanfs_mount::Layer>,
    pub(super) since: Instant,
    /// Fetches what nobody read yet, for the whole image; with its topmost layer.
    pub(super) prefetch: Option<Arc<Prefetch>>,
}

/// A layer and how it is shown, for operators. What has no value is not known, or not yet.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Id of its snapshot.
    pub snapshot: u64,
    /// Name of its snapshot.
    pub name: Option<String>,
    /// Where it is shown.
    pub mount_point: String,
    /// Repository that it was pulled from.
    pub image: String,
    /// Manifest that it was pulled for.
    pub manifest: String,
    /// Its blob.
    pub layer: String,
    /// Its zTOC.
    pub ztoc: Option<String>,
    /// Place in its image; 0 is the lowest.
    pub position: usize,
    /// Layers of its image.
    pub layers: usize,
    /// Bytes of the blob.
    pub bytes: u64,
    /// How it came: `lazy`, `whole` or `parallel`.
    pub decision: Option<Outcome>,
    /// Why.
    pub reason: Option<String>,
    /// What the kernel sees; none while it is not mounted.
    pub shown: Option<String>,
    /// How much of its files the kernel reads without us although we serve it, in percent: at 100 those who
    /// use it need nobody.
    pub past_us: Option<u8>,
    /// Spans that it has.
    pub spans: Option<usize>,
    /// Spans that need no fetch.
    pub spans_present: Option<usize>,
    /// Compressed bytes fetched since it was opened.
    pub fetched_bytes: Option<u64>,
    /// Spans that could not be had since then.
    pub failures: Option<u64>,
    /// Whether the whole was proved.
    pub verification: Option<String>,
    /// Why spans are not kept on the disk.
    pub disk_error: Option<String>,
}

struct Entry {
    note: Arc<Note>,
    shown: Option<Shown>,
}

/// All of them, by the id of their snapshot.
#[derive(Default)]
pub(super) struct Registry {
    entries: Mutex<HashMap<u64, Entry>>,
    /// Snapshots of layers of which nobody knows any more what they were, and why.
    lost: Mutex<HashMap<u64, String>>,
    /// Snapshots whose mount somebody is about to change.
    busy: Mutex<HashSet<u64>>,
    free: Condvar,
}

/// What the notes of all snapshots name.
pub(super) struct Wanted {
    pub(super) layers: HashSet<Digest>,
    pub(super) ztocs: HashSet<Digest>,
    /// Configs of images.
    pub(super) configs: HashSet<Digest>,
}

/// Whether a layer can be read, and what is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It is not one of these.
    Ordinary,
    /// It can be read.
    Shown,
    /// It can be read, and the kernel alone could show it.
    Ripe,
    /// It is to be mounted first.
    Noted(Arc<Note>),
    /// It was found out.
    Corrupt(String),
}

impl Registry {
    /// Have a snapshot's mount to oneself.
    pub(super) fn lock(&self, id: u64) -> Locked<'_> {
        let mut busy = self.busy.lock();
        while !busy.insert(id) {
            self.free.wait(&mut busy);
        }
        Locked { registry: self, id }
    }

    /// A snapshot has a note, and no mount yet.
    pub(super) fn note(&self, id: u64, note: Arc<Note>) {
        self.entries.lock().entry(id).or_insert(Entry { note, shown: None });
    }

    /// What a snapshot was to show is not known any more: nobody is to take its directory for it.
    pub(super) fn lose(&self, id: u64, reason: String) {
        self.lost.lock().insert(id, reason);
    }

    pub(super) fn show(&self, id: u64, note: Arc<Note>, shown: Shown) {
        let old = self.entries.lock().insert(id, Entry { note, shown: Some(shown) });
        assert!(old.is_none_or(|old| old.shown.is_none()), "snapshot {id} is shown twice");
    }

    /// Take a layer that needs us no more, but whose mount does: shown for so long, and complete.
    pub(super) fn take_complete(&self, id: u64, age: Duration) -> Option<Shown> {
        self.entries.lock().get_mut(&id)?.shown.take_if(|shown| shown.is_ripe(age))
    }

    /// Put back what was taken. Unmounted if the snapshot was removed meanwhile.
    pub(super) fn put_back(&self, id: u64, shown: Shown) {
        let gone = match self.entries.lock().get_mut(&id) {
            Some(entry) => entry.shown.replace(shown),
            None => Some(shown),
        };
        if let Some(gone) = gone {
            gone.unmount(id);
        }
    }

    /// `age`: how long a layer is shown before its mount is changed.
    pub(super) fn state(&self, id: u64, age: Duration) -> State {
        let entries = self.entries.lock();
        let Some(Entry { note, shown }) = entries.get(&id) else {
            let lost = self.lost.lock().get(&id).cloned();
            return lost.map_or(State::Ordinary, State::Corrupt);
        };
        let Some(shown) = shown else { return State::Noted(Arc::clone(note)) };
        match shown.spans.as_ref().map(|spans| spans.status().verification) {
            Some(Verification::Failed(reason)) => State::Corrupt(reason),
            _ if shown.is_ripe(age) => State::Ripe,
            _ => State::Shown,
        }
    }

    /// Bytes on disk of a snapshot's layer; 0 where a snapshot of a smaller id has the same.
    pub(super) fn bytes(&self, id: u64) -> Option<u64> {
        let entries = self.entries.lock();
        let Entry { note, shown } = entries.get(&id)?;
        let same = entries.iter().filter(|(_, entry)| entry.note.layer == note.layer);
        if same.map(|(id, _)| *id).min() != Some(id) {
            return Some(0);
        }
        let Some(Shown { content, spans, .. }) = shown else { return Some(0) };
        let spans = spans.clone();
        let local = content.len();
        drop(entries);
        // It looks at the disk.
        Some(spans.map_or(local, |spans| spans.usage_bytes()))
    }

    /// Spans of a layer, if a snapshot shows it.
    pub(super) fn spans(&self, layer: &Digest) -> Option<Arc<Layer>> {
        let entries = self.entries.lock();
        let mut all = entries.values().filter(|entry| entry.note.layer == *layer);
        all.find_map(|entry| entry.shown.as_ref()?.spans.clone())
    }

    /// Lazy layers that are complete by now, with their snapshots.
    pub(super) fn completed(&self) -> Vec<(u64, Arc<Note>, Arc<Layer>)> {
        let entries = self.entries.lock();
        let complete = |(id, entry): (&u64, &Entry)| {
            let spans = entry.shown.as_ref()?.spans.as_ref()?;
            let is_there = entry.note.is_lazy() && spans.complete_file().is_some();
            is_there.then(|| (*id, Arc::clone(&entry.note), Arc::clone(spans)))
        };
        entries.iter().filter_map(complete).collect()
    }

    /// Whether a snapshot is one of these.
    pub(super) fn has(&self, id: u64) -> bool {
        self.entries.lock().contains_key(&id)
    }

    /// Have an image's layers fetched as long as the snapshot `id` is shown.
    pub(super) fn prefetch(&self, id: u64, prefetch: Arc<Prefetch>) {
        if let Some(Entry { shown: Some(shown), .. }) = self.entries.lock().get_mut(&id) {
            shown.prefetch = Some(prefetch);
        }
    }

    /// Notes of all, by the id of the snapshot.
    pub(super) fn notes(&self) -> Vec<(u64, Arc<Note>)> {
        let entries = self.entries.lock();
        entries.iter().map(|(id, entry)| (*id, Arc::clone(&entry.note))).collect()
    }

    /// What a sweep must leave.
    pub(super) fn wanted(&self) -> Wanted {
        let entries = self.entries.lock();
        let notes = || entries.values().map(|entry| &entry.note);
        Wanted {
            layers: notes().map(|note| note.layer).collect(),
            ztocs: notes().filter_map(|note| note.ztoc).collect(),
            configs: notes().map(|note| note.config).collect(),
        }
    }

    /// All that are shown, as numbers; `mount_point` tells where a snapshot is.
    pub(super) fn samples(&self, mount_point: impl Fn(u64) -> String) -> Vec<LayerSample> {
        let entries = self.entries.lock();
        let sample = |(id, entry): (&u64, &Entry)| {
            let shown = entry.shown.as_ref()?;
            let mut sample = LayerSample {
                digest: entry.note.layer.to_string(),
                mount_point: mount_point(*id),
                size: entry.note.size,
                is_served: shown.needs_us(),
                ..LayerSample::default()
            };
            if let Some(status) = shown.spans.as_ref().map(|spans| spans.status()) {
                sample.fetched = status.fetched_bytes;
                sample.fetches = status.fetches;
                sample.failures = status.failures;
            }
            Some(sample)
        };
        entries.iter().filter_map(sample).collect()
    }

    /// All that there are, for people; `mount_point` tells where a snapshot is.
    pub(super) fn reports(&self, mount_point: impl Fn(u64) -> String) -> Vec<LayerReport> {
        let entries = self.entries.lock();
        let report = |(&snapshot, Entry { note, shown }): (&u64, &Entry)| {
            let past_us = shown.as_ref().and_then(|shown| shown.mount.past_us(0));
            let spans = shown.as_ref().and_then(|shown| shown.spans.as_ref());
            let status = spans.map(|spans| spans.status());
            let front = shown.as_ref().and_then(|shown| shown.mount.layers().first().copied());
            let report = LayerReport {
                snapshot,
                name: None,
                mount_point: mount_point(snapshot),
                image: note.image.clone(),
                manifest: note.manifest.to_string(),
                layer: note.layer.to_string(),
                ztoc: note.ztoc.map(|digest| digest.to_string()),
                position: note.position,
                layers: note.count,
                bytes: note.size,
                decision: note.how.as_ref().map(|how| how.outcome),
                reason: note.how.as_ref().map(|how| how.reason.clone()),
                shown: front.map(|front| format!("{front:?}")),
                past_us: None,
                spans: status.as_ref().map(|it| it.span_count),
                spans_present: status.as_ref().map(|it| it.spans_present),
                fetched_bytes: status.as_ref().map(|it| it.fetched_bytes),
                failures: status.as_ref().map(|it| it.failures),
                verification: status.as_ref().map(|it| format!("{:?}", it.verification)),
                disk_error: status.and_then(|it| it.disk_error),
            };
            (report, past_us)
        };
        let reports: Vec<_> = entries.iter().map(report).collect();
        drop(entries);
        let reports = reports.into_iter().map(|(report, past_us)| {
            let past_us = past_us.and_then(|it| it.percent());
            LayerReport { past_us, ..report }
        });
        let mut reports: Vec<_> = reports.collect();
        reports.sort_by_key(|report| report.snapshot);
        reports
    }

    /// Take away all but the snapshots that are wanted.
    pub(super) fn retain(&self, is_wanted: impl Fn(u64) -> bool) {
        self.lost.lock().retain(|id, _| is_wanted(*id));
        let gone: Vec<(u64, Entry)> =
            self.entries.lock().extract_if(|id, _| !is_wanted(*id)).collect();
        for (id, entry) in gone {
            if let Some(shown) = entry.shown {
                shown.unmount(id);
            }
        }
    }

    /// Forget all, once its mounts were left to the next start.
    pub(super) fn leave(&self) {
        let entries = std::mem::take(&mut *self.entries.lock());
        drop(entries);
    }
}

/// See [`Registry::lock`].
pub(super) struct Locked<'a> {
    registry: &'a Registry,
    id: u64,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.registry.busy.lock().remove(&self.id);
        self.registry.free.notify_all();
    }
}

/// Unmount what containers may still use: they keep it, and it is served.
pub(super) fn unmount_later(id: u64, mount: Mount) {
    let unmount = move || unmount(id, mount);
    if let Err(error) = std::thread::Builder::new().name("unmount".to_owned()).spawn(unmount) {
        tracing::warn!(id, %error, "a mount is taken away without a look at its users");
    }
}

fn unmount(id: u64, mount: Mount) {
    match mount.unmount(UNMOUNT_TIME, Busy::Leave) {
        Ok(Ended::Gone) => tracing::debug!(id, "layer unmounted"),
        Ok(Ended::InUse) => tracing::info!(id, "layer unmounted; who uses it goes on"),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(id, error, "a layer stays mounted");
        }
    }
}

impl Shown {
    fn is_ripe(&self, age: Duration) -> bool {
        let is_direct = || self.layer.as_ref().is_some_and(Mounter::is_direct);
        self.needs_us() && self.since.elapsed() >= age && is_direct()
    }

    fn needs_us(&self) -> bool {
        self.mount.layers().iter().any(|front| *front != spanfs_mount::Shown::ErofsDirect)
    }

    fn unmount(self, id: u64) {
        unmount(id, self.mount);
    }
}
