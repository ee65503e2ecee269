//! Reads that failed: the errno hides the reason from the reader, so the log must have it.

use std::sync::atomic::{AtomicU64, Ordering};

use spanfs_cache::ReadError;

use crate::Errno;

/// Counts failed reads of one layer, and logs the 1st, 2nd, 4th, 8th …: a broken layer is read by
/// every retry of every program, and must not fill the log.
#[derive(Debug)]
pub(crate) struct Failures {
    layer: String,
    count: AtomicU64,
}

impl Failures {
    pub(crate) fn of(layer: impl Into<String>) -> Self {
        Self { layer: layer.into(), count: AtomicU64::new(0) }
    }

    /// The layer's name.
    pub(crate) fn layer(&self) -> &str {
        &self.layer
    }

    /// Log `error` of a read at `offset` of the layer file, and choose its errno.
    pub(crate) fn note(&self, offset: u64, error: &ReadError) -> Errno {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            tracing::warn!(layer = self.layer, offset, count, "read failed: {error}");
        }
        error.into()
    }
}
