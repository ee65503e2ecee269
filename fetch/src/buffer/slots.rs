//! Limits on how many do something at once.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So many at once, over all who share it.
#[derive(Debug)]
pub struct Slots {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    free: usize,
    /// Who stands in line.
    line: BTreeSet<Rank>,
    places: u64,
}

/// Whose turn comes first, and among equals who came first.
type Rank = (u64, u64);

/// One of them; free again when it is dropped.
#[derive(Debug)]
pub struct Slot(Arc<Slots>);

/// A place in the line for a slot, kept until one is taken, or it is dropped.
#[derive(Debug)]
pub struct Place {
    slots: Arc<Slots>,
    rank: Rank,
}

impl Slots {
    /// At least one.
    pub fn new(count: usize) -> Arc<Self> {
        let state = State { free: count.max(1), ..State::default() };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// One, if one is free, past all who stand in line.
    pub fn try_take(self: &Arc<Self>) -> Option<Slot> {
        let mut state = self.lock();
        state.free = state.free.checked_sub(1)?;
        Some(Slot(Arc::clone(self)))
    }

    /// One, waited for no longer than `wait`, behind all who stand in line.
    pub fn take_within(self: &Arc<Self>, wait: Duration) -> Option<Slot> {
        self.line_up(u64::MAX).take_within(wait)
    }

    /// Stand in line, before those of higher rank, whether they ask for a slot before or not.
    pub fn line_up(self: &Arc<Self>, rank: u64) -> Place {
        let mut state = self.lock();
        let rank = (rank, state.places);
        state.places += 1;
        state.line.insert(rank);
        Place { slots: Arc::clone(self), rank }
    }

    /// How many are free now.
    pub fn free(&self) -> usize {
        self.lock().free
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// A slot, once it is its turn and one is free, waited for no longer than `wait`.
    pub fn take_within(&self, wait: Duration) -> Option<Slot> {
        let until = Instant::now() + wait;
        let mut state = self.slots.lock();
        // One that had a slot before stands there again.
        state.line.insert(self.rank);
        while state.free == 0 || state.line.first() != Some(&self.rank) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let waited = self.slots.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.free -= 1;
        state.line.remove(&self.rank);
        drop(state);
        self.slots.changed.notify_all();
        Some(Slot(Arc::clone(&self.slots)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.slots.lock().line.remove(&self.rank);
        self.slots.changed.notify_all();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.lock().free += 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn no_more_than_that_many_and_who_waits_gets_what_is_freed() {
        let slots = Slots::new(2);
        let (first, _second) = (slots.try_take().unwrap(), slots.try_take().unwrap());
        assert!(slots.try_take().is_none() && slots.free() == 0);
        let place = slots.line_up(0);
        assert!(place.take_within(Duration::from_millis(5)).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| place.take_within(LONG).is_some());
            drop(first);
            assert!(waiting.join().unwrap());
        });
        assert_eq!(slots.free(), 1);
        assert_eq!(Slots::new(0).free(), 1);
    }

    #[test]
    fn who_stands_before_others_is_let_go_first_also_if_he_asks_later() {
        let slots = Slots::new(1);
        let (low, high) = (slots.line_up(1), slots.line_up(2));
        assert!(high.take_within(Duration::ZERO).is_none(), "one is free, for another");
        let lower = slots.line_up(0);
        assert!(low.take_within(Duration::ZERO).is_none());
        let slot = lower.take_within(Duration::ZERO).unwrap();
        drop((slot, low));
        let again = high.take_within(LONG).unwrap();
        assert!(lower.take_within(Duration::ZERO).is_none(), "none is free");
        drop(again);
        assert!(lower.take_within(Duration::ZERO).is_some(), "a second time");
    }
}
