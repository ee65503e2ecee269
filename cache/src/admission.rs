//! How many compressed bytes may be fetched or wait for inflation at once, and who goes first.
//!
//! Pure. Spans that find no room wait here as a few words each, not as buffers; a reader's span goes
//! before an expected one, that before a background one, and among equals the first come first.

use std::collections::{BTreeMap, HashMap};

use spanfs_fetch::Priority;

use crate::memory::Key;

/// What a span needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiting {
    order: Order,
    bytes: u64,
}

/// Most urgent and oldest first.
type Order = (std::cmp::Reverse<Priority>, u64);

/// Budget of bytes on their way.
#[derive(Debug)]
pub(crate) struct Admission {
    bytes_max: u64,
    bytes_inflight: u64,
    sequence: u64,
    queue: BTreeMap<Order, Key>,
    waiting: HashMap<Key, Waiting>,
}

impl Admission {
    /// At most `bytes_max` at once; a single larger span still passes, alone.
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            bytes_inflight: 0,
            sequence: 0,
            queue: BTreeMap::new(),
            waiting: HashMap::new(),
        }
    }

    /// A span wants to start; [`Self::poll_start`] says when.
    pub(crate) fn handle_ask(&mut self, key: Key, bytes: u64, priority: Priority) {
        self.sequence += 1;
        let order = (std::cmp::Reverse(priority), self.sequence);
        let before = self.waiting.insert(key, Waiting { order, bytes });
        assert!(before.is_none(), "span {key:?} asks twice");
        self.queue.insert(order, key);
    }

    /// A waiting span became more urgent; false if it does not wait (any more).
    pub(crate) fn handle_promote(&mut self, key: Key, priority: Priority) -> bool {
        let Some(waiting) = self.waiting.get_mut(&key) else { return false };
        if waiting.order.0.0 < priority {
            self.queue.remove(&waiting.order);
            waiting.order.0.0 = priority;
            self.queue.insert(waiting.order, key);
        }
        true
    }

    /// A started span came to its end.
    pub(crate) fn handle_end(&mut self, bytes: u64) {
        assert!(bytes <= self.bytes_inflight, "more bytes end than started");
        self.bytes_inflight -= bytes;
    }

    /// The next span that may start, and what it counts for until its end.
    pub(crate) fn poll_start(&mut self) -> Option<(Key, u64)> {
        let entry = self.queue.first_entry()?;
        let bytes = self.waiting.get(entry.get())?.bytes;
        if self.bytes_inflight > 0 && self.bytes_inflight + bytes > self.bytes_max {
            return None;
        }
        self.bytes_inflight += bytes;
        let key = entry.remove();
        self.waiting.remove(&key);
        Some((key, bytes))
    }

    /// Bytes started and not ended.
    pub(crate) fn bytes_inflight(&self) -> u64 {
        self.bytes_inflight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain(admission: &mut Admission) -> Vec<u32> {
        std::iter::from_fn(|| admission.poll_start()).map(|(key, _)| key.1).collect()
    }

    #[test]
    fn urgent_first_then_first_come() {
        let mut admission = Admission::new(30);
        for (span, priority) in [
            (0, Priority::Background),
            (1, Priority::Prefetch),
            (2, Priority::OnDemand),
            (3, Priority::Background),
            (4, Priority::OnDemand),
        ] {
            admission.handle_ask((0, span), 10, priority);
        }
        assert!(admission.handle_promote((0, 3), Priority::Prefetch));
        assert!(admission.handle_promote((0, 4), Priority::Background), "lowering is ignored");
        assert_eq!(drain(&mut admission), [2, 4, 1]);
        assert!(!admission.handle_promote((0, 2), Priority::OnDemand), "started already");
        admission.handle_end(10);
        assert_eq!(drain(&mut admission), [3]);
        admission.handle_end(10);
        assert_eq!(drain(&mut admission), [0]);
    }

    #[test]
    fn a_span_larger_than_the_budget_passes_alone() {
        let mut admission = Admission::new(30);
        admission.handle_ask((0, 0), 10, Priority::OnDemand);
        admission.handle_ask((0, 1), 100, Priority::OnDemand);
        assert_eq!(drain(&mut admission), [0]);
        admission.handle_end(10);
        assert_eq!(drain(&mut admission), [1]);
    }

    proptest! {
        #[test]
        fn everybody_starts_once_within_the_budget(sizes in proptest::collection::vec(1u64..50, 1..60)) {
            let mut admission = Admission::new(60);
            for (span, bytes) in sizes.iter().enumerate() {
                admission.handle_ask((0, span as u32), *bytes, Priority::Prefetch);
            }
            let mut started = Vec::new();
            while started.len() < sizes.len() {
                let now = drain(&mut admission);
                prop_assert!(!now.is_empty() && admission.bytes_inflight() <= 60);
                now.iter().for_each(|span| admission.handle_end(sizes[*span as usize]));
                started.extend(now);
            }
            prop_assert_eq!(started, (0..sizes.len() as u32).collect::<Vec<_>>());
            prop_assert_eq!(admission.bytes_inflight(), 0);
        }
    }
}
