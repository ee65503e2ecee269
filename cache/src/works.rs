//! What all layers of a cache share: decoding threads, the budget of bytes on their way, memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use spanfs_fetch::Priority;

use crate::ReadError;
use crate::admission::Admission;
use crate::inflate::{Pool, PoolOptions};
use crate::layer::Layer;
use crate::memory::{Key, MemoryTier};
use crate::prefetch::Bandwidth;
use crate::verify::Verifier;

/// Shared by the layers of one cache.
pub(crate) struct Works {
    pub(crate) pool: Pool,
    pub(crate) memory: MemoryTier,
    admission: Mutex<Admission>,
    layers: Mutex<HashMap<u32, Weak<Layer>>>,
    next_id: AtomicU32,
    demand: Arc<AtomicUsize>,
    started: Instant,
    /// When somebody read last, in milliseconds since `started`.
    read_ms: AtomicU64,
    over_quota: AtomicBool,
    /// What is fetched in the background.
    pub(crate) bandwidth: Mutex<Bandwidth>,
    pub(crate) verifier: Verifier,
}

/// A reader waits while this lives.
pub(crate) struct Demand(Arc<AtomicUsize>);

impl Drop for Demand {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Least that a span counts for: also a tiny one needs a request and a job.
const SPAN_CHARGE_MIN: u64 = 16 * 1024;

impl Works {
    /// Start the threads.
    pub(crate) fn new(
        threads: usize,
        fetch_bytes_max: u64,
        memory_bytes_max: u64,
        background_bytes_per_second_max: Option<u64>,
    ) -> std::io::Result<Arc<Self>> {
        let mut options = PoolOptions::for_threads(threads);
        // The budget below bounds what comes here: at worst one large span above it.
        options.jobs_max = usize::MAX;
        options.bytes_max = usize::MAX;
        Ok(Arc::new(Self {
            pool: Pool::new(&options)?,
            memory: MemoryTier::new(memory_bytes_max),
            admission: Mutex::new(Admission::new(fetch_bytes_max)),
            layers: Mutex::default(),
            next_id: AtomicU32::new(0),
            demand: Arc::default(),
            started: Instant::now(),
            read_ms: AtomicU64::new(0),
            over_quota: AtomicBool::new(false),
            bandwidth: Mutex::new(Bandwidth::new(background_bytes_per_second_max)),
            verifier: Verifier::new()?,
        }))
    }

    /// A number that no other layer of this cache has.
    pub(crate) fn new_id(&self) -> u32 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// A reader begins to wait.
    pub(crate) fn wait_on_demand(&self) -> Demand {
        self.demand.fetch_add(1, Ordering::AcqRel);
        Demand(self.demand.clone())
    }

    /// Readers that wait.
    pub(crate) fn demand(&self) -> usize {
        self.demand.load(Ordering::Acquire)
    }

    /// Somebody reads.
    pub(crate) fn note_read(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.read_ms.store(now, Ordering::Relaxed);
    }

    /// Time since somebody read.
    pub(crate) fn idle(&self) -> Duration {
        let read = Duration::from_millis(self.read_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(read)
    }

    /// Whether the layers in use take more than the quota.
    pub(crate) fn is_over_quota(&self) -> bool {
        self.over_quota.load(Ordering::Relaxed)
    }

    /// See [`Self::is_over_quota`].
    pub(crate) fn set_over_quota(&self, over: bool) {
        self.over_quota.store(over, Ordering::Relaxed);
    }

    /// Spans of `layer` may ask from now on.
    pub(crate) fn enter(&self, id: u32, layer: &Arc<Layer>) {
        self.layers.lock().insert(id, Arc::downgrade(layer));
    }

    /// The layer is closed.
    pub(crate) fn leave(&self, id: u32) {
        self.layers.lock().remove(&id);
    }

    /// Layers open.
    pub(crate) fn layers(&self) -> Vec<Arc<Layer>> {
        self.layers.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// A span wants to be fetched; its layer's `launch` is called now or when there is room.
    pub(crate) fn ask(self: &Arc<Self>, key: Key, bytes: u64, priority: Priority) {
        self.admission.lock().handle_ask(key, bytes.max(SPAN_CHARGE_MIN), priority);
        self.pump();
    }

    /// A span became more urgent; false if it started already.
    pub(crate) fn promote(&self, key: Key, priority: Priority) -> bool {
        self.admission.lock().handle_promote(key, priority)
    }

    /// Compressed bytes being fetched or inflated.
    pub(crate) fn bytes_inflight(&self) -> u64 {
        self.admission.lock().bytes_inflight()
    }

    fn pump(self: &Arc<Self>) {
        loop {
            let Some((key, bytes)) = self.admission.lock().poll_start() else { return };
            let layer = self.layers.lock().get(&key.0).cloned().unwrap_or_default();
            let asked = Asked { works: self.clone(), layer, span: key.1, bytes, open: true };
            if let Some(layer) = asked.layer.upgrade() {
                layer.launch(asked);
            }
        }
    }
}

/// A span on its way: its share of the budget, and the duty to say how it ended.
///
/// Wherever this is lost, the span's readers are told, and the share comes back.
pub(crate) struct Asked {
    works: Arc<Works>,
    layer: Weak<Layer>,
    span: u32,
    bytes: u64,
    open: bool,
}

impl Asked {
    /// The span.
    pub(crate) fn span(&self) -> usize {
        self.span as usize
    }

    /// Decoding threads and memory.
    pub(crate) fn works(&self) -> &Arc<Works> {
        &self.works
    }

    /// Its layer, if that is still open.
    pub(crate) fn layer(&self) -> Option<Arc<Layer>> {
        self.layer.upgrade()
    }

    /// The span's readers have been told.
    pub(crate) fn close(mut self) {
        self.open = false;
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if std::mem::take(&mut self.open)
            && let Some(layer) = self.layer.upgrade()
        {
            let message =
                format!("span {} of layer {} was lost on its way", self.span, layer.digest());
            layer.settle(self.span as usize, Err(ReadError::Unavailable(message)));
        }
        self.works.admission.lock().handle_end(self.bytes);
        self.works.pump();
    }
}
