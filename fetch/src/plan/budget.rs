//! How much memory wants under way may hold.

use crate::blob::Priority;

/// Bytes charged, by the priority at which they were started.
///
/// Less urgent wants may fill only a share, so that an urgent one finds room at once; the first of
/// its kind always fits its share, or one larger than the share would wait for ever.
#[derive(Debug)]
pub(crate) struct Budget {
    max: u64,
    background: u64,
    prefetch: u64,
    on_demand: u64,
}

impl Budget {
    pub(crate) fn new(max: u64) -> Self {
        Self { max, background: 0, prefetch: 0, on_demand: 0 }
    }

    pub(crate) fn used(&self) -> u64 {
        self.background + self.prefetch + self.on_demand
    }

    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    pub(crate) fn fits(&self, priority: Priority, len: u64) -> bool {
        let within = |used: u64, share: u64| used == 0 || used + len <= share;
        self.used() + len <= self.max
            && match priority {
                Priority::Background => within(self.background, self.max / 2),
                Priority::Prefetch => within(self.background + self.prefetch, self.max / 4 * 3),
                Priority::OnDemand => true,
            }
    }

    pub(crate) fn charge(&mut self, priority: Priority, len: u64) {
        *self.account(priority) += len;
        assert!(self.used() <= self.max, "{} of {} bytes in flight", self.used(), self.max);
    }

    pub(crate) fn release(&mut self, priority: Priority, len: u64) {
        let account = self.account(priority);
        assert!(len <= *account, "releasing {len} of {account} bytes");
        *account -= len;
    }

    fn account(&mut self, priority: Priority) -> &mut u64 {
        match priority {
            Priority::Background => &mut self.background,
            Priority::Prefetch => &mut self.prefetch,
            Priority::OnDemand => &mut self.on_demand,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Priority::{Background, OnDemand, Prefetch};

    fn check(charged: &[(Priority, u64)], priority: Priority, len: u64, expected: bool) {
        let mut budget = Budget::new(100);
        charged.iter().for_each(|&(priority, len)| budget.charge(priority, len));
        assert_eq!(budget.fits(priority, len), expected, "{charged:?} {priority:?} {len}");
    }

    #[test]
    fn shares() {
        check(&[], Background, 100, true);
        check(&[], Background, 101, false);
        check(&[(Background, 40)], Background, 10, true);
        check(&[(Background, 40)], Background, 11, false);
        check(&[(OnDemand, 40)], Background, 60, true);
        check(&[(Background, 50)], Prefetch, 25, true);
        check(&[(Background, 50)], Prefetch, 26, false);
        check(&[(Background, 50), (Prefetch, 25)], OnDemand, 25, true);
        check(&[(Background, 50), (Prefetch, 25)], OnDemand, 26, false);
    }
}
