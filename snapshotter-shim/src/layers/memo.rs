//! Work that several want and one does; its outcome is kept for a while.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Outcomes by key: at most so many, and not for long.
#[derive(Debug)]
pub(super) struct Memo<K, T> {
    entries: Mutex<HashMap<K, Arc<Slot<T>>>>,
    entries_max: usize,
    /// How long an outcome is kept, by what it is.
    kept: fn(&T) -> Duration,
}

/// Work that somebody began.
pub(super) struct Begun<T>(Arc<Slot<T>>);

#[derive(Debug)]
struct Slot<T> {
    outcome: Mutex<Option<(T, Instant)>>,
    done: Condvar,
}

/// Why there is no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoOutcome {
    /// It goes on, but the time is up.
    #[error("it takes longer than {0:?}")]
    Late(Duration),
    /// Too much goes on already.
    #[error("{0} others are under way, the limit")]
    Full(usize),
    /// No thread.
    #[error("no thread can be started for it")]
    NoThread,
    /// Whoever waited has gone.
    #[error("nobody waits for it any more")]
    Unwanted,
}

/// How often a wait looks whether it is still wanted.
const POLL: Duration = Duration::from_millis(100);

impl<K: Clone + Eq + Hash + Debug, T: Clone + Send + 'static> Memo<K, T> {
    pub(super) fn new(entries_max: usize, kept: fn(&T) -> Duration) -> Self {
        Self { entries: Mutex::default(), entries_max, kept }
    }

    /// The outcome for `key`, waited for at most so long; `work` runs on a thread of its own if
    /// nobody has begun it, and goes on when nobody waits any more. `ended` is the outcome of work
    /// that panicked.
    pub(super) fn get(
        &self,
        key: &K,
        at_most: Duration,
        ended: T,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoOutcome> {
        self.get_while(key, at_most, ended, || true, work)
    }

    /// The same, waited for only as long as it `is_wanted`.
    pub(super) fn get_while(
        &self,
        key: &K,
        at_most: Duration,
        ended: T,
        is_wanted: impl Fn() -> bool,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoOutcome> {
        let begun = self.start(key, ended, work)?;
        self.wait(&begun, at_most, is_wanted)
    }

    /// The outcome of work that was begun, also one that is not kept.
    pub(super) fn wait(
        &self,
        Begun(slot): &Begun<T>,
        at_most: Duration,
        is_wanted: impl Fn() -> bool,
    ) -> Result<T, NoOutcome> {
        let until = Instant::now() + at_most;
        let mut outcome = slot.outcome.lock();
        while outcome.is_none() {
            let now = Instant::now();
            if now >= until {
                return Err(NoOutcome::Late(at_most));
            }
            if !is_wanted() {
                return Err(NoOutcome::Unwanted);
            }
            slot.done.wait_until(&mut outcome, until.min(now + POLL));
        }
        let known = outcome.as_ref().map(|(outcome, _)| outcome.clone());
        known.ok_or(NoOutcome::Late(at_most))
    }

    /// Begin the work unless it is under way or done.
    pub(super) fn start(
        &self,
        key: &K,
        ended: T,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Begun<T>, NoOutcome> {
        self.begin(key, ended, work).map(Begun)
    }

    /// Forget an outcome.
    pub(super) fn forget(&self, key: &K) {
        self.entries.lock().remove(key);
    }

    /// Forget all outcomes. What is under way goes on, and its outcome is kept.
    pub(super) fn forget_done(&self) {
        self.entries.lock().retain(|_, slot| slot.outcome.lock().is_none());
    }

    /// Forget outcomes that nobody wants, once they are known for `age`. True if some are too fresh.
    pub(super) fn retain_done(&self, age: Duration, is_wanted: impl Fn(&T) -> bool) -> bool {
        let now = Instant::now();
        let mut are_left = false;
        self.entries.lock().retain(|_, slot| match &*slot.outcome.lock() {
            Some((outcome, since)) if !is_wanted(outcome) => {
                let is_fresh = now - *since < age;
                are_left |= is_fresh;
                is_fresh
            }
            _ => true,
        });
        are_left
    }

    /// Forget outcomes whose time is over.
    pub(super) fn expire(&self) {
        let now = Instant::now();
        self.entries.lock().retain(|_, slot| {
            let outcome = slot.outcome.lock();
            outcome.as_ref().is_none_or(|(outcome, since)| now - *since < (self.kept)(outcome))
        });
    }

    fn begin(
        &self,
        key: &K,
        ended: T,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Arc<Slot<T>>, NoOutcome> {
        self.expire();
        let mut entries = self.entries.lock();
        if let Some(slot) = entries.get(key) {
            return Ok(Arc::clone(slot));
        }
        if entries.len() >= self.entries_max && !drop_oldest(&mut entries) {
            return Err(NoOutcome::Full(entries.len()));
        }
        let slot = Arc::new(Slot { outcome: Mutex::new(None), done: Condvar::new() });
        let end = End { slot: Arc::clone(&slot), outcome: Some(ended) };
        let run = move || {
            let mut end = end;
            end.outcome = Some(work());
        };
        std::thread::Builder::new()
            .name("layer".to_owned())
            .spawn(run)
            .map_err(|_| NoOutcome::NoThread)?;
        entries.insert(key.clone(), Arc::clone(&slot));
        Ok(slot)
    }
}

/// Make room by the outcome that was known first; false if all are under way.
fn drop_oldest<K: Clone + Eq + Hash, T>(entries: &mut HashMap<K, Arc<Slot<T>>>) -> bool {
    let since = |slot: &Slot<T>| slot.outcome.lock().as_ref().map(|(_, since)| *since);
    let known = entries.iter().filter_map(|(key, slot)| Some((since(slot)?, key.clone())));
    let Some((_, key)) = known.min_by_key(|(since, _)| *since) else { return false };
    entries.remove(&key);
    true
}

/// Tells those who wait, whatever happens.
struct End<T> {
    slot: Arc<Slot<T>>,
    outcome: Option<T>,
}

impl<T> Drop for End<T> {
    fn drop(&mut self) {
        *self.slot.outcome.lock() = self.outcome.take().map(|outcome| (outcome, Instant::now()));
        self.slot.done.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn memo(entries_max: usize) -> Memo<u32, &'static str> {
        Memo::new(entries_max, |outcome| if *outcome == "bad" { Duration::ZERO } else { LONG })
    }

    #[test]
    fn one_works_and_all_learn() {
        let (memo, count) = (memo(4), Arc::new(AtomicUsize::new(0)));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let count = Arc::clone(&count);
                    let work = move || {
                        std::thread::sleep(Duration::from_millis(20));
                        count.fetch_add(1, Ordering::Relaxed);
                        "good"
                    };
                    assert_eq!(memo.get(&1, LONG, "ended", work), Ok("good"));
                });
            }
        });
        assert_eq!(count.load(Ordering::Relaxed), 1);
        memo.forget(&1);
        assert_eq!(memo.get(&1, LONG, "ended", || "other"), Ok("other"));
    }

    #[test]
    fn who_waits_too_long_leaves_and_the_work_goes_on() {
        let memo = memo(4);
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let work = move || {
            let _told = wait.recv();
            "late"
        };
        let brief = Duration::from_millis(1);
        assert_eq!(memo.get(&1, brief, "ended", work), Err(NoOutcome::Late(brief)));
        drop(go);
        assert_eq!(memo.get(&1, LONG, "ended", || "again"), Ok("late"));
    }

    #[test]
    fn who_is_not_wanted_any_more_leaves_at_once() {
        let memo = memo(4);
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let work = move || {
            let _told = wait.recv();
            "late"
        };
        let since = Instant::now();
        let is_wanted = || since.elapsed() < Duration::from_millis(50);
        let outcome = memo.get_while(&1, LONG, "ended", is_wanted, work);
        assert_eq!(outcome, Err(NoOutcome::Unwanted));
        assert!(since.elapsed() < Duration::from_secs(5));
        drop(go);
    }

    #[test]
    fn a_panic_is_an_outcome_and_bad_ones_are_not_kept() {
        let memo = memo(4);
        assert_eq!(memo.get(&1, LONG, "ended", || panic!("meant")), Ok("ended"));
        assert_eq!(memo.get(&2, LONG, "ended", || "bad"), Ok("bad"));
        assert_eq!(memo.get(&2, LONG, "ended", || "good"), Ok("good"));
    }

    #[test]
    fn what_nobody_wants_is_forgotten_after_a_while() {
        let memo = memo(4);
        for (key, outcome) in [(1, "kept"), (2, "gone")] {
            assert_eq!(memo.get(&key, LONG, "ended", move || outcome), Ok(outcome));
        }
        let is_wanted = |outcome: &&str| *outcome == "kept";
        assert!(memo.retain_done(LONG, is_wanted), "one is too fresh");
        assert!(!memo.retain_done(Duration::ZERO, is_wanted));
        assert_eq!(memo.get(&1, LONG, "ended", || "again"), Ok("kept"));
        assert_eq!(memo.get(&2, LONG, "ended", || "again"), Ok("again"));
    }

    #[test]
    fn who_began_learns_also_what_is_not_kept() {
        let memo = memo(4);
        let begun = memo.start(&1, "ended", || "bad").unwrap();
        let end = Instant::now() + LONG;
        while begun.0.outcome.lock().is_none() {
            assert!(Instant::now() < end, "it comes to no end");
        }
        memo.expire();
        assert_eq!(memo.wait(&begun, LONG, || true), Ok("bad"));
    }

    #[test]
    fn the_oldest_outcome_gives_way_but_no_work_does() {
        let memo = memo(1);
        assert_eq!(memo.get(&1, LONG, "ended", || "one"), Ok("one"));
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let work = move || {
            let _told = wait.recv();
            "two"
        };
        drop(memo.start(&2, "ended", work).unwrap());
        assert_eq!(memo.get(&3, LONG, "ended", || "three"), Err(NoOutcome::Full(1)));
        drop(go);
        assert_eq!(memo.get(&2, LONG, "ended", || "again"), Ok("two"));
    }
}
