//! What was served.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use spanfs_layer::Digest;

/// A request and how it was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// HTTP method.
    pub method: String,
    /// Path without query.
    pub path: String,
    /// Range header, or empty.
    pub range: String,
    /// Status sent.
    pub status: u16,
    /// When, since the counters began.
    pub at: Duration,
}

/// Counters since the start, or since [`crate::Registry::reset_stats`].
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Bytes written to sockets, heads and TLS included.
    pub bytes_sent: u64,
    /// Bytes read from sockets.
    pub bytes_received: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub connections_open: u64,
    /// Requests answered or left hanging.
    pub requests: u64,
    /// Requests that got a fault.
    pub faults: u64,
    /// Requests that carried credentials to the blob store behind redirects: always a client's bug.
    pub credential_leaks: u64,
    /// The latest requests, oldest first.
    pub log: Vec<Request>,
    /// When the limited link carried bytes, since the counters began.
    pub busy: Vec<Range<Duration>>,
    blobs: BTreeMap<Digest, Vec<Range<u64>>>,
}

impl Stats {
    /// Ranges of a blob that were served, in order of request; whole blobs as one range.
    pub fn blob(&self, digest: &Digest) -> &[Range<u64>] {
        self.blobs.get(digest).map_or(&[], Vec::as_slice)
    }

    /// Bytes of blobs asked for, each as often as it was.
    pub fn blob_bytes(&self) -> u64 {
        self.blobs.values().flatten().map(|range| range.end - range.start).sum()
    }

    /// Bytes of a blob that were asked for more than once, each counted for every further time.
    pub fn refetched_bytes(&self, digest: &Digest) -> u64 {
        let mut ranges = self.blob(digest).to_vec();
        ranges.sort_by_key(|range| (range.start, range.end));
        let mut end = 0;
        let mut twice = 0;
        for range in ranges {
            twice += end.min(range.end).saturating_sub(range.start);
            end = end.max(range.end);
        }
        twice
    }

    /// Share of a period in which the limited link carried bytes, 0 to 1.
    pub fn busy_share(&self, period: Range<Duration>) -> f64 {
        let clipped = |busy: &Range<Duration>| {
            busy.end.min(period.end).saturating_sub(busy.start.max(period.start))
        };
        let busy: Duration = self.busy.iter().map(clipped).sum();
        busy.as_secs_f64() / (period.end.saturating_sub(period.start)).as_secs_f64().max(1e-9)
    }
}

/// The latest requests kept: a long test's worth.
const LOG_LEN_MAX: usize = 1 << 16;
/// Ranges kept per blob: a 256 GiB blob in pieces of 256 KiB.
const RANGES_MAX: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Counters {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since: Instant,
    stats: Stats,
    log: VecDeque<Request>,
}

impl Counters {
    pub(crate) fn new() -> Self {
        let state = State { since: Instant::now(), stats: Stats::default(), log: VecDeque::new() };
        Self { state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn reset(&self) {
        let mut state = self.lock();
        let connections_open = state.stats.connections_open;
        state.since = Instant::now();
        state.stats = Stats { connections_open, ..Stats::default() };
        state.log.clear();
    }

    pub(crate) fn snapshot(&self, busy: &[(Instant, Instant)]) -> Stats {
        let state = self.lock();
        let since = |at: Instant| at.saturating_duration_since(state.since);
        let busy = busy
            .iter()
            .map(|(start, end)| since(*start)..since(*end))
            .filter(|range| !range.is_empty())
            .collect();
        Stats { busy, log: state.log.iter().cloned().collect(), ..state.stats.clone() }
    }

    pub(crate) fn bytes_sent(&self) -> u64 {
        self.lock().stats.bytes_sent
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.lock().since.elapsed()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Stats)) {
        change(&mut self.lock().stats);
    }

    pub(crate) fn add_request(&self, request: Request) {
        let mut state = self.lock();
        state.stats.requests += 1;
        if state.log.len() >= LOG_LEN_MAX {
            state.log.pop_front();
        }
        state.log.push_back(request);
    }

    pub(crate) fn add_range(&self, digest: Digest, range: Range<u64>) {
        let mut state = self.lock();
        let ranges = state.stats.blobs.entry(digest).or_default();
        if ranges.len() < RANGES_MAX {
            ranges.push(range);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_what_was_fetched_again() {
        let digest = Digest::of(b"");
        let check = |ranges: &[Range<u64>], expected| {
            let counters = Counters::new();
            ranges.iter().for_each(|range| counters.add_range(digest, range.clone()));
            assert_eq!(counters.snapshot(&[]).refetched_bytes(&digest), expected, "{ranges:?}");
        };
        check(&[0..10, 10..20], 0);
        check(&[10..20, 0..11], 1);
        check(&[0..100, 10..20, 30..40], 20);
        check(&[0..5, 0..5, 0..5], 10);
    }
}
