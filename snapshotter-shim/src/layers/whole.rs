//! Layers pulled whole, several of an image at once: the one asked for and those above it.
//!
//! A pull belongs to whoever waits for a layer of its image. When the last of them goes away without
//! it, all that is under way for the image stops; what has come is gone on with later. Between two
//! layers nobody waits: an image that is removed then takes its jobs along.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use spanfs::image::OpenLayer;
use spanfs_fetch::Class;
use spanfs_layer::Digest;

use super::catalog::Known;
use super::find::Wanted;
use super::memo::{Begun, Memo, NoOutcome};
use super::open::Opener;
use super::pull::{OfImage, Task, blob_name};
use super::{Caller, LayerError, Request};
use crate::daemon::log::chain;

/// Whoever pulls whole layers may have slow links; a stalled one ends long before.
const WHOLE_TIME_MAX: Duration = Duration::from_secs(2 * 3600);
/// A layer that nobody asked for in that time belongs to a pull that was given up.
const KEPT: Duration = Duration::from_secs(600);
/// Layers of all images that are pulled or wait to be claimed; each has a thread meanwhile.
const LAYERS_MAX: usize = 512;
/// Times that somebody begins a layer himself when those who had begun it gave up.
const TRIES_MAX: u32 = 3;

/// Between two layers containerd takes milliseconds.
const IDLE_TIME_MAX: Duration = Duration::from_secs(5);

type Outcome = Result<Pulled, Ended>;

/// A layer that has come.
#[derive(Clone)]
struct Pulled {
    open: OpenLayer,
    /// The image that it was pulled for.
    manifest: Digest,
}

/// Why a layer did not come.
#[derive(Clone, Debug)]
struct Ended {
    reason: String,
    /// Nobody wanted it any more.
    stopped: bool,
}

/// Whole layers that are pulled.
pub(super) struct Wholes {
    jobs: Memo<Digest, Outcome>,
    groups: Mutex<Groups>,
}

#[derive(Default)]
struct Groups {
    /// By the digest of the manifest.
    images: HashMap<Digest, Arc<Group>>,
    /// The process ends.
    closed: bool,
}

/// Pulls of one image.
struct Group {
    of_image: Arc<OfImage>,
    /// Limits of layers that can't be lazy.
    of_few: Arc<OfImage>,
    stop: Arc<AtomicBool>,
    waiting: Mutex<Waits>,
}

/// Who waits for one of an image's layers.
struct Waits {
    count: usize,
    /// Since somebody came or went.
    since: Instant,
}

impl Wholes {
    pub(super) fn new() -> Self {
        let kept = |outcome: &Outcome| if outcome.is_ok() { KEPT } else { Duration::ZERO };
        Self { jobs: Memo::new(LAYERS_MAX, kept), groups: Mutex::default() }
    }

    /// The layer at `position`, once it is there; those above it are begun.
    pub(super) fn obtain(
        &self,
        opener: &Opener,
        known: &Arc<Known>,
        position: usize,
        request: &Request,
        caller: &Caller<'_>,
    ) -> Result<OpenLayer, LayerError> {
        let wants = Wants { known, request, are: Are::Parallel };
        self.get(
            opener,
            &wants,
            position,
            &(position..known.layers.len()).collect::<Vec<_>>(),
            caller,
        )
    }

    /// Begin layers that can't be lazy, of an image whose other layers are.
    pub(super) fn begin(
        &self,
        opener: &Opener,
        known: &Known,
        request: &Request,
        numbers: &[usize],
    ) {
        if let [first, ..] = *numbers {
            let waiting = self.enter(opener, &request.manifest);
            let wants = Wants { known, request, are: Are::Few };
            self.start(opener, &wants, numbers, first, &waiting.group);
        }
    }

    /// The wanted one of them, once it is there.
    pub(super) fn obtain_few(
        &self,
        opener: &Opener,
        wanted: &Wanted,
        caller: &Caller<'_>,
    ) -> Result<OpenLayer, LayerError> {
        self.get(opener, &Wants::few(wanted), wanted.position, &wanted.whole, caller)
    }

    /// Begin layers, the lower ones first; what can't be begun now is begun when it is asked for. The
    /// one at `position`, if it is among them.
    fn start(
        &self,
        opener: &Opener,
        wants: &Wants<'_>,
        numbers: &[usize],
        position: usize,
        group: &Group,
    ) -> Option<Begun<Outcome>> {
        let mut wanted = None;
        for &number in numbers {
            let task = wants.task(number, group)?;
            let digest = task.name.descriptor.digest;
            let begun = self.jobs.start(&digest, ended(), run(opener.clone(), task)).ok();
            match begun {
                None => break,
                begun if number == position => wanted = begun,
                Some(_) => {}
            }
        }
        wanted
    }

    fn get(
        &self,
        opener: &Opener,
        wants: &Wants<'_>,
        position: usize,
        numbers: &[usize],
        caller: &Caller<'_>,
    ) -> Result<OpenLayer, LayerError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let mut waiting = self.enter(opener, &wants.request.manifest);
            let begun = self.start(opener, wants, numbers, position, &waiting.group);
            let Some(layer) = wants.known.layers.get(position) else {
                unreachable!("the layer was found in its image");
            };
            let digest = layer.descriptor.digest;
            let is_wanted = || !caller.is_gone();
            let outcome = match begun {
                // It may have failed already.
                Some(begun) => self.jobs.wait(&begun, WHOLE_TIME_MAX, is_wanted),
                None => {
                    let Some(task) = wants.task(position, &waiting.group) else {
                        unreachable!("the layer was found in its image");
                    };
                    let run = run(opener.clone(), task);
                    self.jobs.get_while(&digest, WHOLE_TIME_MAX, ended(), is_wanted, run)
                }
            };
            if outcome.is_ok() {
                self.jobs.forget(&digest);
            }
            waiting.is_given_up = caller.is_gone();
            return match outcome {
                Ok(Ok(Pulled { open, .. })) => Ok(open),
                // It was begun for another image, whose pull was given up.
                Ok(Err(ended)) if ended.stopped && !caller.is_gone() && tries < TRIES_MAX => {
                    continue;
                }
                Ok(Err(ended)) => Err(LayerError::Whole(ended.reason)),
                Err(reason @ NoOutcome::Late(_)) => {
                    Err(LayerError::Whole(format!("pulling layer {digest}: {reason}")))
                }
                Err(reason) => {
                    Err(LayerError::Whole(format!("layer {digest} is not pulled: {reason}")))
                }
            };
        }
    }

    /// Wait among those of an image.
    fn enter(&self, opener: &Opener, manifest: &Digest) -> Waiting<'_> {
        let mut groups = self.groups.lock();
        groups.images.retain(|_, group| group.is_used());
        let stop = groups.closed;
        let group = groups.images.entry(*manifest).or_insert_with(|| {
            let of_image = opener.puller.of_image(manifest);
            let stop = Arc::new(AtomicBool::new(stop));
            let waiting = Mutex::new(Waits { count: 0, since: Instant::now() });
            Arc::new(Group { of_image, of_few: OfImage::of_few(), stop, waiting })
        });
        group.waiting.lock().count += 1;
        let group = Arc::clone(group);
        Waiting { wholes: self, manifest: *manifest, group, is_given_up: false }
    }

    /// Stop everything, for good.
    pub(super) fn stop(&self) {
        let mut groups = self.groups.lock();
        groups.closed = true;
        groups.images.values().for_each(|group| group.stop.store(true, Ordering::Relaxed));
    }

    /// Give up what is pulled for images that are not wanted, and forget layers that were pulled long
    /// ago, and never asked for. True if some may have to be given up soon.
    pub(super) fn retain(&self, is_wanted: impl Fn(&Digest) -> bool) -> bool {
        let mut groups = self.groups.lock();
        let mut are_left = false;
        groups.images.retain(|manifest, group| {
            let waiting = group.waiting.lock();
            if waiting.count > 0 || is_wanted(manifest) {
                return true;
            }
            let is_idle = waiting.since.elapsed() >= IDLE_TIME_MAX;
            if is_idle {
                group.stop.store(true, Ordering::Relaxed);
            }
            are_left |= !is_idle;
            !is_idle
        });
        let is_wanted = |outcome: &Outcome| match outcome {
            Ok(pulled) => {
                groups.images.contains_key(&pulled.manifest) || is_wanted(&pulled.manifest)
            }
            Err(_) => true,
        };
        are_left |= self.jobs.retain_done(IDLE_TIME_MAX, is_wanted);
        drop(groups);
        self.jobs.expire();
        are_left
    }
}

/// One who waits for a layer of an image.
struct Waiting<'a> {
    wholes: &'a Wholes,
    manifest: Digest,
    group: Arc<Group>,
    /// Without the layer.
    is_given_up: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut groups = self.wholes.groups.lock();
        let mut waiting = self.group.waiting.lock();
        waiting.count -= 1;
        waiting.since = Instant::now();
        // Between two layers of a pull nobody waits either: only giving up ends it.
        if waiting.count == 0 && self.is_given_up {
            self.group.stop.store(true, Ordering::Relaxed);
            groups.images.remove(&self.manifest);
        }
    }
}

impl Group {
    /// Whether somebody waits, or works for it.
    fn is_used(&self) -> bool {
        self.waiting.lock().count > 0 || Arc::strong_count(&self.stop) > 1
    }
}

/// Layers that are wanted whole.
struct Wants<'a> {
    known: &'a Known,
    request: &'a Request,
    are: Are,
}

/// Why layers come whole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Are {
    /// All layers do.
    Parallel,
    /// They can't be lazy.
    Few,
}

impl<'a> Wants<'a> {
    fn few(wanted: &'a Wanted) -> Self {
        Self { known: &wanted.known, request: &wanted.request, are: Are::Few }
    }

    /// What is to be done for the layer at `position`; `None` if there is none.
    fn task(&self, position: usize, group: &Group) -> Option<Task> {
        let layer = self.known.layers.get(position)?;
        let is_parallel = self.are == Are::Parallel;
        let of_image = if is_parallel { &group.of_image } else { &group.of_few };
        Some(Task {
            source: self.known.source.clone(),
            name: blob_name(&layer.descriptor, layer.diff_id, self.request),
            is_parallel,
            of_image: Arc::clone(of_image),
            places: of_image.line_up(position),
            stop: Arc::clone(&group.stop),
        })
    }
}

fn run(opener: Opener, task: Task) -> impl FnOnce() -> Outcome + Send + 'static {
    move || {
        let pulled = opener.pull(&task);
        let ended = |error: spanfs::image::ImageError| Ended {
            stopped: error.class() == Class::Cancelled,
            reason: chain(&error),
        };
        let manifest = task.name.manifest;
        pulled.map(|open| Pulled { open, manifest }).map_err(ended)
    }
}

fn ended() -> Outcome {
    Err(Ended { reason: "pulling the layer came to no end".to_owned(), stopped: false })
}
