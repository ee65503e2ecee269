//! The engine as its callers see it: start, open blobs, stop.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use rustix::event::{EventfdFlags, eventfd};
use spanfs_layer::Digest;

use crate::blob::{Blob, FetchError, FetchErrorDetail, Priority, Ticket, TicketControl, Want};
use crate::connection::PaceLimits;
use crate::driver::Driver;
use crate::mailbox::{Command, Mailbox};
use crate::memory::BufferPool;
use crate::plan::{BlobId, PlanOptions, WantId};
use crate::ring::ShellOptions;
use crate::stats::{Counters, EngineStats};
use crate::sys::Ring;
use crate::target::Locate;
use crate::{ring, threads};

/// How bytes are moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// By io_uring where the kernel lets us, else by threads.
    #[default]
    Auto,
    /// By io_uring, on one thread.
    Ring,
    /// By blocking threads.
    Threads,
}

/// Settings of an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// How bytes are moved.
    pub kind: EngineKind,
    /// Sizes, limits, retries.
    pub plan: PlanOptions,
    /// Wait for one address to accept a connection.
    pub connect_timeout: Duration,
    /// Wait from a request, or a connection's opening, to the end of the reply's header.
    pub head_timeout: Duration,
    /// Window in which a body must bring [`Self::stall_bytes_min`]; else its rest is requested anew.
    pub stall_timeout: Duration,
    /// See [`Self::stall_timeout`].
    pub stall_bytes_min: u64,
    /// Recycled memory kept for later wants, in bytes.
    pub pool_bytes_max: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            kind: EngineKind::Auto,
            plan: PlanOptions::default(),
            // Three lost SYNs (1, 2, 4 s) mean that nobody is there.
            connect_timeout: Duration::from_secs(5),
            // A registry that fetches the blob itself first may need most of this.
            head_timeout: Duration::from_secs(15),
            // A lost route heals or fails over within seconds; a slow link brings more than this
            // even when eight connections share 56 kbit/s.
            stall_timeout: Duration::from_secs(5),
            stall_bytes_min: 1 << 10,
            // As much as eight connections fill at once.
            pool_bytes_max: 32 << 20,
        }
    }
}

/// What a blob is, before anything is known of where.
#[derive(Clone, Copy, Debug)]
pub struct BlobSpec {
    /// As its descriptor gives it.
    pub digest: Digest,
    /// Length in bytes, as its descriptor gives it.
    pub size: u64,
}

/// The engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The ring engine was asked for by name and cannot be had.
    #[error("the io_uring engine cannot start: {0}")]
    Ring(String),
    /// No thread, or no eventfd.
    #[error("starting the fetch engine: {0}")]
    Start(#[source] std::io::Error),
}

/// Moves bytes of many blobs over few connections, within one budget.
///
/// Dropping it ends its thread within a few seconds; wants that are pending then are replied to with
/// [`FetchError::Cancelled`].
pub struct Engine {
    mailbox: Arc<Mailbox>,
    pool: Arc<BufferPool>,
    counters: Arc<Counters>,
    kind: EngineKind,
    reason: String,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Probe the kernel and start.
    pub fn start(options: EngineOptions) -> Result<Self, EngineError> {
        match options.kind {
            EngineKind::Threads => Self::start_threads(&options, "asked for".to_owned()),
            EngineKind::Ring => match Self::start_ring(&options, "asked for".to_owned())? {
                Ok(engine) => Ok(engine),
                Err(reason) => Err(EngineError::Ring(reason)),
            },
            EngineKind::Auto => match Self::start_ring(&options, "probed".to_owned())? {
                Ok(engine) => Ok(engine),
                Err(reason) => Self::start_threads(&options, reason),
            },
        }
    }

    /// A blob whose bytes `locate` can find.
    pub fn open(&self, spec: BlobSpec, locate: Arc<dyn Locate>) -> Arc<dyn Blob> {
        let blob = BlobId(self.mailbox.id());
        let whole = Arc::new(AtomicBool::new(false));
        let BlobSpec { digest, size } = spec;
        let shared = Arc::clone(&whole);
        self.mailbox.send(Command::Open { blob, digest, size, locate, whole: shared });
        let (mailbox, pool) = (Arc::clone(&self.mailbox), Arc::clone(&self.pool));
        Arc::new(EngineBlob { id: blob, spec, mailbox, pool, whole })
    }

    /// How bytes are moved: never [`EngineKind::Auto`].
    pub fn kind(&self) -> EngineKind {
        self.kind
    }

    /// Why this kind was chosen, for the log.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// What was done so far.
    pub fn stats(&self) -> EngineStats {
        self.counters.snapshot()
    }

    /// The outer error is fatal, the inner a reason to take threads.
    fn start_ring(
        options: &EngineOptions,
        reason: String,
    ) -> Result<Result<Self, String>, EngineError> {
        let event = eventfd(0, EventfdFlags::CLOEXEC).map_err(start_error)?;
        let event: Arc<OwnedFd> = Arc::new(event);
        let waker = Arc::clone(&event);
        let parts = Parts::new(options, move || {
            // Fails only when the count is full, and then the thread is awake.
            let _ = rustix::io::write(&waker, &1u64.to_ne_bytes());
        });
        let (mailbox, counters) = (Arc::clone(&parts.mailbox), Arc::clone(&parts.counters));
        let driver = parts.driver(options);
        let shell = shell_options(options);
        let (probed, probe) = bounded(1);
        // The ring belongs to the thread that makes it.
        let work = move || match Ring::new() {
            Ok(ring) => {
                let _ = probed.send(Ok(()));
                ring::run(ring, event, driver, &mailbox, counters, shell);
            }
            Err(reason) => drop(probed.send(Err(reason))),
        };
        let thread = spawn(work)?;
        match probe.recv() {
            Ok(Ok(())) => Ok(Ok(parts.engine(EngineKind::Ring, reason, thread))),
            Ok(Err(reason)) => Ok(Err(reason)),
            Err(_) => Ok(Err("its thread ended while probing".to_owned())),
        }
    }

    fn start_threads(options: &EngineOptions, reason: String) -> Result<Self, EngineError> {
        /// Enough that workers rarely wait for the driver.
        const SIGNALS_MAX: usize = 256;
        let signals = bounded(SIGNALS_MAX);
        let waker = signals.0.clone();
        // A full channel wakes the thread as well.
        let parts = Parts::new(options, move || drop(waker.try_send(threads::Signal::Wake)));
        let (mailbox, counters) = (Arc::clone(&parts.mailbox), Arc::clone(&parts.counters));
        let driver = parts.driver(options);
        let shell = shell_options(options);
        let workers = options.plan.connections_max;
        let work = move || threads::run(signals, driver, &mailbox, counters, shell, workers);
        let thread = spawn(work)?;
        Ok(parts.engine(EngineKind::Threads, reason, thread))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.mailbox.close();
        if let Some(thread) = self.thread.take() {
            // Replies run on the engine's thread, and one of them may hold the last reference.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("the fetch engine's thread had panicked");
            }
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stats = self.stats();
        f.debug_struct("Engine").field("kind", &self.kind).field("stats", &stats).finish()
    }
}

/// What both kinds share.
struct Parts {
    mailbox: Arc<Mailbox>,
    pool: Arc<BufferPool>,
    counters: Arc<Counters>,
}

impl Parts {
    fn new(options: &EngineOptions, wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            mailbox: Arc::new(Mailbox::new(Box::new(wake))),
            pool: Arc::new(BufferPool::new(options.pool_bytes_max)),
            counters: Arc::new(Counters::default()),
        }
    }

    fn driver(&self, options: &EngineOptions) -> Driver {
        let (pool, mailbox) = (Arc::clone(&self.pool), Arc::clone(&self.mailbox));
        Driver::new(options.plan.clone(), pool, mailbox, Arc::clone(&self.counters))
    }

    fn engine(self, kind: EngineKind, reason: String, thread: JoinHandle<()>) -> Engine {
        tracing::info!(?kind, reason, "fetch engine started");
        let Self { mailbox, pool, counters } = self;
        Engine { mailbox, pool, counters, kind, reason, thread: Some(thread) }
    }
}

fn shell_options(options: &EngineOptions) -> ShellOptions {
    ShellOptions {
        connect_timeout: options.connect_timeout,
        pace: PaceLimits {
            head: options.head_timeout,
            window: options.stall_timeout,
            bytes_min: options.stall_bytes_min,
        },
        idle_max: options.plan.connections_max * 2,
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, EngineError> {
    std::thread::Builder::new().name("spanfs-fetch".into()).spawn(work).map_err(EngineError::Start)
}

fn start_error(errno: rustix::io::Errno) -> EngineError {
    EngineError::Start(errno.into())
}

/// A blob that the engine fetches.
struct EngineBlob {
    id: BlobId,
    spec: BlobSpec,
    mailbox: Arc<Mailbox>,
    pool: Arc<BufferPool>,
    whole: Arc<AtomicBool>,
}

impl Blob for EngineBlob {
    fn digest(&self) -> &Digest {
        &self.spec.digest
    }

    fn size(&self) -> u64 {
        self.spec.size
    }

    fn want(&self, want: Want) -> Ticket {
        let id = WantId(self.mailbox.id());
        let ticket = Ticket::new(Arc::new(Hold { id, mailbox: Arc::clone(&self.mailbox) }));
        self.mailbox.send(Command::Want { id, blob: self.id, want });
        ticket
    }

    fn prepare(&self) {
        self.mailbox.send(Command::Prepare { blob: self.id });
    }

    fn recycle(&self, bytes: Vec<u8>) {
        self.pool.give(bytes);
    }

    fn distrust(&self) {
        self.mailbox.send(Command::Distrust { blob: self.id });
    }

    fn has_ranges(&self) -> bool {
        !self.whole.load(Ordering::Relaxed)
    }
}

impl Drop for EngineBlob {
    fn drop(&mut self) {
        self.mailbox.send(Command::Close { blob: self.id });
    }
}

struct Hold {
    id: WantId,
    mailbox: Arc<Mailbox>,
}

impl TicketControl for Hold {
    fn promote(&self, priority: Priority) {
        self.mailbox.send(Command::Promote { id: self.id, priority });
    }

    fn cancel(&self) {
        self.mailbox.send(Command::Cancel { id: self.id });
    }
}

/// Get a range and wait for it, for callers that have a thread to spare.
///
/// # Errors
/// What the want was replied; [`FetchError::Unreachable`] if there was no reply at all in `patience`.
pub fn fetch_blocking(
    blob: &dyn Blob,
    range: Range<u64>,
    priority: Priority,
    patience: Duration,
) -> Result<crate::blob::Fetched, FetchError> {
    let (sender, receiver) = bounded(1);
    let reply = Box::new(move |result| drop(sender.try_send(result)));
    let begun = Instant::now();
    let ticket = blob.want(Want { range: range.clone(), priority, headroom: 0, reply });
    receiver.recv_timeout(patience).unwrap_or_else(|_| {
        ticket.cancel();
        let message = format!("no reply within {:.1} s", begun.elapsed().as_secs_f64());
        Err(FetchError::Unreachable(FetchErrorDetail { digest: *blob.digest(), range, message }))
    })
}

#[cfg(test)]
mod tests;
