//! Work that nobody waits for: done by one thread, and finished before its owner is gone.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

type Work = Box<dyn FnOnce() + Send>;

/// What is done in order, but not at once.
#[derive(Default)]
pub(crate) struct Later {
    /// Made when it is first needed.
    worker: Mutex<Option<(Sender<Work>, JoinHandle<()>)>>,
}

impl Later {
    /// Do it soon. The owners bound how much that is: a few files for each layer of an image.
    pub(crate) fn add(&self, work: impl FnOnce() + Send + 'static) {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if worker.is_none() {
            *worker = start();
        }
        match &*worker {
            // The thread ends only after the sender.
            Some((sender, _)) => drop(sender.send(Box::new(work))),
            None => work(),
        }
    }
}

/// Disks are left alone for so long after the first work of a burst came: bringing a file to the disk
/// keeps others from making files there, and somebody waits for those.
const DELAY: Duration = Duration::from_secs(1);

/// `None` where there are no more threads.
fn start() -> Option<(Sender<Work>, JoinHandle<()>)> {
    let (sender, works) = channel::<Work>();
    let run = move || {
        while let Ok(first) = works.recv() {
            let (mut waiting, begin_at) = (vec![first], Instant::now() + DELAY);
            // Ends early with the sender.
            while let Ok(work) = works.recv_timeout(begin_at - Instant::now().min(begin_at)) {
                waiting.push(work);
            }
            waiting.into_iter().chain(works.try_iter()).for_each(|work| work());
        }
    };
    let thread = std::thread::Builder::new().name("later".into()).spawn(run);
    Some((sender, thread.ok()?))
}

impl Drop for Later {
    fn drop(&mut self) {
        let worker = self.worker.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some((sender, thread)) = worker else { return };
        drop(sender);
        if thread.join().is_err() {
            tracing::error!("work that nobody waited for has panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_done_in_order_before_the_end() {
        let (sender, done) = channel();
        let later = Later::default();
        for number in 0..100 {
            let sender = sender.clone();
            later.add(move || sender.send(number).unwrap());
        }
        drop(later);
        assert_eq!(done.try_iter().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }
}
