//! Layers pulled whole, several of an image at once: the one asked for and those above it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use spanfs::image::OpenLayer;
use spanfs_layer::Digest;

use super::LayerError;
use super::catalog::Known;
use super::memo::{Memo, NoOutcome};
use super::open::Opener;
use crate::config::ParallelPull;
use crate::daemon::log::chain;

/// Whoever pulls whole layers may have slow links; a stalled one ends long before.
const WHOLE_TIME_MAX: Duration = Duration::from_secs(2 * 3600);
/// A layer that nobody asked for in that time belongs to a pull that was given up.
const KEPT: Duration = Duration::from_secs(600);
/// Layers of all images that are pulled or wait to be claimed; each has a thread meanwhile.
const LAYERS_MAX: usize = 512;

type Outcome = Result<OpenLayer, String>;

/// Whole layers that are pulled.
pub(super) struct Wholes {
    jobs: Memo<Digest, Outcome>,
    all: Arc<Permits>,
    per_image_max: usize,
}

impl Wholes {
    pub(super) fn new(settings: Option<&ParallelPull>) -> Self {
        let count = |limit: Option<u32>| limit.map_or(usize::MAX, |limit| limit as usize);
        // A layer that is pulled is unpacked on its way: both limits count it.
        let all =
            settings.map_or(usize::MAX, |it| count(it.downloads_max).min(count(it.unpacks_max)));
        let per_image_max = settings.map_or(1, |it| count(it.downloads_per_image_max));
        let kept = |outcome: &Outcome| if outcome.is_ok() { KEPT } else { Duration::ZERO };
        Self { jobs: Memo::new(LAYERS_MAX, kept), all: Arc::new(Permits::new(all)), per_image_max }
    }

    /// The layer at `position`, once it is there; those above it are begun.
    pub(super) fn obtain(
        &self,
        opener: &Opener,
        known: &Arc<Known>,
        position: usize,
    ) -> Result<OpenLayer, LayerError> {
        let here = Arc::new(Permits::new(self.per_image_max));
        // The lower ones come first; what can't be begun now is begun when it is asked for.
        for number in position..known.layers.len() {
            let job = self.job(opener, known, number, &here);
            let begun = job.and_then(|(digest, run)| self.jobs.start(&digest, ended(), run).ok());
            if begun.is_none() {
                break;
            }
        }
        let Some((digest, run)) = self.job(opener, known, position, &here) else {
            unreachable!("the layer was found in its image");
        };
        let outcome = self.jobs.get(&digest, WHOLE_TIME_MAX, ended(), run);
        self.jobs.forget(&digest);
        match outcome {
            Ok(Ok(open)) => Ok(open),
            Ok(Err(reason)) => Err(LayerError::Whole(reason)),
            Err(reason @ NoOutcome::Late(_)) => {
                Err(LayerError::Whole(format!("pulling layer {digest}: {reason}")))
            }
            Err(reason) => {
                Err(LayerError::Whole(format!("layer {digest} is not pulled: {reason}")))
            }
        }
    }

    fn job(
        &self,
        opener: &Opener,
        known: &Arc<Known>,
        position: usize,
        here: &Arc<Permits>,
    ) -> Option<(Digest, impl FnOnce() -> Outcome + Send + 'static)> {
        let digest = known.layers.get(position)?.descriptor.digest;
        let (opener, known) = (opener.clone(), Arc::clone(known));
        let (here, all) = (Arc::clone(here), Arc::clone(&self.all));
        let run = move || {
            let _of_image = here.take();
            let _of_node = all.take();
            let layer = known.layers.get(position).ok_or("the layer is not in its image")?;
            opener.whole(&known, layer).map_err(|error| chain(&error))
        };
        Some((digest, run))
    }

    /// Forget layers that were pulled long ago, and never asked for.
    pub(super) fn forget_done(&self) {
        self.jobs.expire();
    }
}

fn ended() -> Outcome {
    Err("pulling the layer came to no end".to_owned())
}

/// So many at once.
#[derive(Debug)]
struct Permits {
    left: Mutex<usize>,
    freed: Condvar,
}

impl Permits {
    fn new(count: usize) -> Self {
        Self { left: Mutex::new(count.max(1)), freed: Condvar::new() }
    }

    /// Waits as long as others go on, each of which has deadlines of its own.
    fn take(&self) -> Permit<'_> {
        let mut left = self.left.lock();
        while *left == 0 {
            self.freed.wait(&mut left);
        }
        *left -= 1;
        Permit(self)
    }
}

struct Permit<'a>(&'a Permits);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.left.lock() += 1;
        self.0.freed.notify_one();
    }
}
