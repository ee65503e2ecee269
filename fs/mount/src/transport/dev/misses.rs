//! Reads that wait for their bytes: no thread, no buffer, a number and a deadline.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::mounted::Mounted;
use crate::filesystem::Ino;
use crate::transport::uring::Late;

/// A read that waits.
#[derive(Clone)]
pub(crate) struct Miss {
    pub(crate) mount: Weak<Mounted>,
    pub(crate) via: Via,
    /// Of its request.
    pub(crate) unique: u64,
    pub(crate) ino: Ino,
    pub(crate) offset: u64,
    pub(crate) len: usize,
}

/// How a request came: its reply goes the same way.
#[derive(Clone)]
pub(crate) enum Via {
    Device,
    Ring(Arc<Late>),
}

/// Names a miss; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MissId(u64);

struct Waiting {
    miss: Miss,
    deadline: Instant,
    fill_count: u32,
}

/// All that wait. The oldest comes first and has the nearest deadline, as all wait equally long.
pub(super) struct Misses {
    table: Mutex<(u64, BTreeMap<MissId, Waiting>)>,
    /// Entries of the table, so that a look at an empty one takes no lock.
    count: AtomicUsize,
    count_max: usize,
    patience: Duration,
}

impl Misses {
    pub(super) fn new(count_max: usize, patience: Duration) -> Self {
        Self { table: Mutex::default(), count: AtomicUsize::new(0), count_max, patience }
    }

    /// Note one; `None` if too many wait already.
    pub(super) fn add(&self, miss: Miss) -> Option<MissId> {
        let mut table = self.table.lock();
        let (next, waiting) = &mut *table;
        if waiting.len() >= self.count_max {
            return None;
        }
        let id = MissId(*next);
        *next += 1;
        // Taken under the lock: deadlines rise with the numbers.
        let deadline = Instant::now() + self.patience;
        waiting.insert(id, Waiting { miss, deadline, fill_count: 0 });
        self.count.store(waiting.len(), Ordering::Release);
        Some(id)
    }

    /// Look at one; `None` once it was answered.
    pub(super) fn get(&self, id: MissId) -> Option<Miss> {
        self.table.lock().1.get(&id).map(|waiting| waiting.miss.clone())
    }

    /// Count one more fill of it; `None` once it was answered.
    pub(super) fn count_fill(&self, id: MissId) -> Option<(Miss, u32)> {
        let mut table = self.table.lock();
        let waiting = table.1.get_mut(&id)?;
        waiting.fill_count += 1;
        Some((waiting.miss.clone(), waiting.fill_count))
    }

    /// Take it out to answer it; `None` if somebody else did.
    pub(super) fn remove(&self, id: MissId) -> Option<Miss> {
        let mut table = self.table.lock();
        let waiting = table.1.remove(&id)?;
        self.count.store(table.1.len(), Ordering::Release);
        Some(waiting.miss)
    }

    /// Forget what a mount waited for: there is nobody left to answer.
    pub(super) fn remove_of(&self, mount: &Weak<Mounted>) {
        let mut table = self.table.lock();
        table.1.retain(|_, waiting| !waiting.miss.mount.ptr_eq(mount));
        self.count.store(table.1.len(), Ordering::Release);
    }

    /// When the next of them will have waited too long.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.table.lock().1.first_key_value().map(|(_, waiting)| waiting.deadline)
    }

    /// One that has waited too long, taken out.
    pub(super) fn pop_expired(&self, now: Instant) -> Option<Miss> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut table = self.table.lock();
        let first = table.1.first_entry().filter(|first| first.get().deadline <= now)?;
        let miss = first.remove().miss;
        self.count.store(table.1.len(), Ordering::Release);
        Some(miss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn miss(unique: u64) -> Miss {
        Miss { mount: Weak::new(), via: Via::Device, unique, ino: Ino(2), offset: 0, len: 1 }
    }

    #[test]
    fn each_is_taken_out_once_and_the_limit_holds() {
        let misses = Misses::new(2, Duration::from_secs(60));
        assert!(misses.next_deadline().is_none());
        let first = misses.add(miss(1)).unwrap();
        let second = misses.add(miss(2)).unwrap();
        assert!(misses.add(miss(3)).is_none(), "over the limit");
        assert_eq!(misses.count_fill(first).unwrap().1, 1);
        assert_eq!(misses.count_fill(first).unwrap().1, 2);
        assert_eq!(misses.remove(first).unwrap().unique, 1);
        assert!(misses.remove(first).is_none() && misses.count_fill(first).is_none());
        let now = Instant::now();
        assert!(misses.pop_expired(now).is_none());
        assert!(misses.next_deadline().unwrap() > now);
        assert_eq!(misses.pop_expired(now + Duration::from_secs(61)).unwrap().unique, 2);
        assert!(misses.remove(second).is_none() && misses.next_deadline().is_none());
    }

    #[test]
    fn those_of_an_ended_mount_are_forgotten() {
        let misses = Misses::new(9, Duration::from_secs(60));
        misses.add(miss(1)).unwrap();
        misses.remove_of(&Weak::new());
        assert!(misses.next_deadline().is_none());
    }
}
