//! What a layer can tell about itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use spanfs_layer::Digest;

use super::waits::{self, Waits};
use super::{Layer, Role};

/// Whether the whole layer was proved to be what its image promises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verification {
    /// Spans are missing, or the check has not run yet.
    Pending,
    /// The whole has the diffID.
    Verified,
    /// Nobody gave a diffID: spans are checked against the zTOC alone, and the layer file is never
    /// shown directly.
    Unverifiable,
    /// It has another digest, or its zTOC lied; the layer is not served any more.
    Failed(String),
}

/// State of a layer at one moment.
#[derive(Clone, Debug)]
pub struct LayerStatus {
    /// Digest of the compressed blob.
    pub digest: Digest,
    /// What this process may do with the files.
    pub role: Role,
    /// Spans of the layer.
    pub span_count: usize,
    /// Spans in the layer file that need no fetch.
    pub spans_present: usize,
    /// Bytes of the blob.
    pub compressed_bytes: u64,
    /// Bytes of the tar.
    pub uncompressed_bytes: u64,
    /// Compressed bytes that came from the source since the layer was opened.
    pub fetched_bytes: u64,
    /// Spans asked of the source since then, repeats included.
    pub fetches: u64,
    /// Spans that could not be had since then, each time counted.
    pub failures: u64,
    /// How long readers waited for what was not there.
    pub waits: Waits,
    /// Whether the whole was proved.
    pub verification: Verification,
    /// Why spans go to memory, or are not kept over a restart; the latest reason.
    pub disk_error: Option<String>,
}

/// Counted while the layer is open.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) fetches: AtomicU64,
    pub(super) fetched_bytes: AtomicU64,
    pub(super) failures: AtomicU64,
    /// Shared with the replies that are under way.
    pub(super) waits: Arc<waits::Counts>,
    /// Begins and ends of writes to the layer file.
    pub(super) writes: AtomicU64,
    /// Times that spans were found changed on disk.
    pub(super) lost: AtomicU64,
    pub(super) disk_error: Mutex<Option<String>>,
}

impl Layer {
    /// State at this moment.
    pub fn status(&self) -> LayerStatus {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LayerStatus {
            digest: self.digest,
            role: self.role,
            span_count: self.lives.count(),
            spans_present: self.lives.in_file(),
            compressed_bytes: self.table.compressed_len(),
            uncompressed_bytes: self.table.uncompressed_len(),
            fetched_bytes: count(&self.counters.fetched_bytes),
            fetches: count(&self.counters.fetches),
            failures: count(&self.counters.failures),
            waits: self.counters.waits.snapshot(),
            verification: self.verification.read().clone(),
            disk_error: self.counters.disk_error.lock().clone(),
        }
    }

    /// Bytes on disk that belong to the layer: layer file, journal, zTOC, index.
    pub fn usage_bytes(&self) -> u64 {
        crate::cache::directory::allocated_bytes(self.claim.path())
    }
}
