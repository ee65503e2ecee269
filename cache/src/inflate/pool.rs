//! Decoding threads.
//!
//! The queue is bounded in jobs and in bytes, and [`Pool::submit`] never waits: the thread that
//! moves everybody's bytes calls it. A refused job comes back to its owner, who keeps it until
//! [`Pool::wait_for_room`] or drops the span. If `bytes_max` is at least the fetch engine's budget of
//! bytes in flight, and owners count a span against that budget until its job ran, it never happens.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use spanfs_fetch::Priority;

use super::{Buffers, Decoder};

/// Settings of a [`Pool`].
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Decoding threads; as many as there are cores. At least one is made.
    pub threads: usize,
    /// Most jobs waiting.
    pub jobs_max: usize,
    /// Most bytes that waiting jobs hold, as their submitters say.
    pub bytes_max: usize,
    /// Free output buffers to keep, in bytes.
    pub buffer_bytes_max: usize,
}

impl PoolOptions {
    /// For `threads` cores: the queue holds the 64 MiB that the fetch engine may have in flight, in
    /// spans as small as 16 KiB; two free buffers of a default span and its window each thread.
    pub fn for_threads(threads: usize) -> Self {
        Self {
            threads,
            jobs_max: 4096,
            bytes_max: 64 << 20,
            buffer_bytes_max: threads.max(1) * 2 * (6 << 20),
        }
    }
}

/// Work on a span, or on anything else that needs a core.
pub type Job = Box<dyn FnOnce(&mut Decoder) + Send>;

/// The queue has no room; here is the job again.
pub struct PoolFull(pub Job);

/// Decoding threads behind one queue: on-demand work first, then prefetch, then background; within
/// one priority first come, first served.
///
/// Dropping the pool runs what is queued, then ends the threads.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Somebody submitted, or the pool closes.
    work: Condvar,
    /// A job left the queue.
    room: Condvar,
    jobs_max: usize,
    bytes_max: usize,
    /// See [`Turn`].
    turns: AtomicUsize,
    threads: usize,
}

#[derive(Default)]
struct Queue {
    /// In rising order of [`Priority`].
    levels: [VecDeque<(Job, usize)>; 3],
    jobs: usize,
    bytes: usize,
    closed: bool,
}

impl Queue {
    fn pop(&mut self) -> Option<Job> {
        let (job, bytes) = self.levels.iter_mut().rev().find_map(VecDeque::pop_front)?;
        self.jobs -= 1;
        self.bytes -= bytes;
        Some(job)
    }

    /// A job larger than the limit goes in alone: it must run some time.
    fn has_room(&self, bytes: usize, shared: &Shared) -> bool {
        let fits = self.bytes.saturating_add(bytes) <= shared.bytes_max;
        self.jobs == 0 || (self.jobs < shared.jobs_max && fits)
    }
}

impl Pool {
    /// Start the threads.
    pub fn new(options: &PoolOptions) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            jobs_max: options.jobs_max,
            bytes_max: options.bytes_max,
            turns: AtomicUsize::new(0),
            threads: options.threads.max(1),
        });
        let buffers = Buffers::new(options.buffer_bytes_max);
        let mut pool = Self { shared, threads: Vec::new() };
        for number in 0..options.threads.max(1) {
            let (shared, buffers) = (pool.shared.clone(), buffers.clone());
            let run = move || shared.run(&mut Decoder::new(buffers));
            pool.threads.push(thread::Builder::new().name(format!("decode-{number}")).spawn(run)?);
        }
        Ok(pool)
    }

    /// Queue `job`, which holds `bytes` bytes until it ran. Never waits.
    pub fn submit(&self, priority: Priority, bytes: usize, job: Job) -> Result<(), PoolFull> {
        self.shared.submit(priority, bytes, job)
    }

    /// Its threads, for work that only idle cores are to do.
    pub(crate) fn crew(&self) -> Crew {
        Crew(Arc::clone(&self.shared))
    }

    /// Wait until a job of `bytes` bytes would find room, at most `timeout`; true if it would.
    ///
    /// For threads that may wait; not for a fetch reply, and not for a job of this pool.
    pub fn wait_for_room(&self, bytes: usize, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut queue = self.shared.queue.lock();
        while !queue.has_room(bytes, &self.shared) {
            if self.shared.room.wait_until(&mut queue, deadline).timed_out() {
                return queue.has_room(bytes, &self.shared);
            }
        }
        true
    }

    /// Jobs waiting, not counting those that run.
    pub fn queued(&self) -> usize {
        self.shared.queue.lock().jobs
    }
}

impl Shared {
    fn submit(&self, priority: Priority, bytes: usize, job: Job) -> Result<(), PoolFull> {
        let mut queue = self.queue.lock();
        if queue.closed || !queue.has_room(bytes, self) {
            return Err(PoolFull(job));
        }
        let [background, prefetch, on_demand] = &mut queue.levels;
        let level = match priority {
            Priority::Background => background,
            Priority::Prefetch => prefetch,
            Priority::OnDemand => on_demand,
        };
        level.push_back((job, bytes));
        queue.jobs += 1;
        queue.bytes += bytes;
        drop(queue);
        self.work.notify_one();
        Ok(())
    }

    fn run(&self, decoder: &mut Decoder) {
        while let Some(job) = self.next() {
            self.room.notify_all();
            // A job that panics is our mistake, but it must not take a core away from all others.
            // The decoder is reset before each use, so a panic half way leaves nothing behind.
            if catch_unwind(AssertUnwindSafe(|| job(decoder))).is_err() {
                tracing::error!("a decoding job panicked; its span is not answered");
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.pop() {
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            self.work.wait(&mut queue);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.work.notify_all();
        let this_thread = thread::current().id();
        for thread in self.threads.drain(..) {
            // The last owner may be a job of this pool: that thread can't wait for itself.
            if thread.thread().id() != this_thread && thread.join().is_err() {
                tracing::error!("a decoding thread panicked");
            }
        }
    }
}

/// The threads of a [`Pool`], for decoding ahead of one who decodes in order.
#[derive(Clone)]
pub(crate) struct Crew(Arc<Shared>);

/// A core, as far as those who decode in order and ahead share them: there are as many turns as
/// threads. Those who decode in order take theirs in any case, so that the others stand back.
pub(crate) struct Turn(Arc<Shared>);

impl Crew {
    /// How many threads there are.
    pub(crate) fn len(&self) -> usize {
        self.0.threads
    }

    /// A core, if one is left.
    pub(crate) fn turn(&self) -> Option<Turn> {
        let turn = self.turn_in_any_case();
        (self.0.turns.load(Ordering::Relaxed) <= self.0.threads).then_some(turn)
    }

    /// A core that others may have to share.
    pub(crate) fn turn_in_any_case(&self) -> Turn {
        self.0.turns.fetch_add(1, Ordering::Relaxed);
        Turn(Arc::clone(&self.0))
    }

    /// Run `job` behind all that is queued; `false` if it can't be.
    pub(crate) fn submit(&self, job: impl FnOnce(&mut Decoder) + Send + 'static) -> bool {
        self.0.submit(Priority::Background, 0, Box::new(job)).is_ok()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.turns.fetch_sub(1, Ordering::Relaxed);
    }
}
