//! Counters of the engine.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread writes and others read; nothing is ordered by it.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bytes: Counter,
    pub(crate) requests: Counter,
    pub(crate) failures: Counter,
    pub(crate) connections: Counter,
    pub(crate) busy_ns: Counter,
    pub(crate) inflight_bytes: Counter,
    pub(crate) transfers: Counter,
}

/// What an engine has done so far, and is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Bytes of bodies received, those thrown away included.
    pub bytes: u64,
    /// Requests sent, repeats included.
    pub requests: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Connections opened.
    pub connections: u64,
    /// Time the engine's own thread did not wait, in nanoseconds.
    pub busy_ns: u64,
    /// Memory behind started wants now, in bytes.
    pub inflight_bytes: u64,
    /// Requests under way now.
    pub transfers: u64,
}

impl Counters {
    pub(crate) fn snapshot(&self) -> EngineStats {
        EngineStats {
            bytes: self.bytes.load(),
            requests: self.requests.load(),
            failures: self.failures.load(),
            connections: self.connections.load(),
            busy_ns: self.busy_ns.load(),
            inflight_bytes: self.inflight_bytes.load(),
            transfers: self.transfers.load(),
        }
    }
}
