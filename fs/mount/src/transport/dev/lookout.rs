//! Whether to look for the next request for a moment instead of going to sleep.
//!
//! Who reads one piece after another asks again within microseconds. To put an idle core to sleep and to wake it
//! takes longer than that, in a virtual machine several times longer. Where nothing comes in time, as when the reader
//! waits for this very core, looking rests for more and more requests.

use std::time::{Duration, Instant};

/// What a reader on another core takes to wake up and to ask again: from 20 to 60 µs measured alike.
const LOOK_TIME: Duration = Duration::from_micros(30);
/// Requests without a look between two looks in vain, at most.
const REST_MAX: u32 = 255;

/// One thread's.
#[derive(Debug, Default)]
pub(super) struct Lookout {
    /// While it looks.
    until: Option<Instant>,
    /// It has looked since the last request.
    has_looked: bool,
    /// Requests to come without a look.
    rest: u32,
    /// How many they were the last time.
    rest_last: u32,
}

impl Lookout {
    /// A request was answered; if so, `may_look` for the next one, as nobody else waits for it.
    pub(super) fn answered(&mut self, may_look: bool, now: impl FnOnce() -> Instant) {
        self.until = None;
        if may_look && self.rest == 0 {
            self.until = Some(now() + LOOK_TIME);
        }
        self.rest = self.rest.saturating_sub(1);
    }

    /// No request is there: true if it is worth another look.
    pub(super) fn looks_on(&mut self, now: impl FnOnce() -> Instant) -> bool {
        let Some(until) = self.until else { return false };
        self.has_looked = now() < until;
        if !self.has_looked {
            self.until = None;
            self.rest_last = (2 * self.rest_last + 1).min(REST_MAX);
            self.rest = self.rest_last;
        }
        self.has_looked
    }

    /// A request is there.
    pub(super) fn came(&mut self) {
        if std::mem::take(&mut self.has_looked) {
            self.rest_last /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks in `count` requests, whose successors come `gap` after the answer.
    fn looks(lookout: &mut Lookout, count: usize, gap: Duration) -> usize {
        let start = Instant::now();
        let looks = (0..count).filter(|_| {
            lookout.came();
            lookout.answered(true, || start);
            let looks = lookout.looks_on(|| start);
            let _later = lookout.looks_on(|| start + gap);
            looks
        });
        looks.count()
    }

    #[test]
    fn it_looks_while_requests_come_in_time_and_rests_where_they_do_not() {
        let mut lookout = Lookout::default();
        assert!(!lookout.looks_on(Instant::now), "before the first request");
        assert_eq!(looks(&mut lookout, 1000, LOOK_TIME / 2), 1000);
        let in_vain = looks(&mut lookout, 10_000, LOOK_TIME * 2);
        assert!((8 + 35..8 + 45).contains(&in_vain), "{in_vain} looks");
        let again = looks(&mut lookout, 1000, LOOK_TIME / 2);
        assert!(again >= 1000 - REST_MAX as usize, "{again} looks");
    }

    #[test]
    fn it_leaves_requests_to_others_who_wait_for_them() {
        let mut lookout = Lookout::default();
        lookout.answered(false, Instant::now);
        assert!(!lookout.looks_on(Instant::now));
    }
}
