//! How long readers waited for spans, counted in buckets that are a quarter of their value wide.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Four buckets an octave, up to 2^28 µs: no wait is longer than four minutes.
const BUCKET_COUNT: usize = 4 * 28;

/// Counts while a layer is open.
#[derive(Debug)]
pub(super) struct Counts([AtomicU64; BUCKET_COUNT]);

impl Default for Counts {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; BUCKET_COUNT])
    }
}

impl Counts {
    pub(super) fn add(&self, wait: Duration) {
        if let Some(bucket) = self.0.get(bucket(wait)) {
            super::add(bucket, 1);
        }
    }

    pub(super) fn snapshot(&self) -> Waits {
        Waits(self.0.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect())
    }
}

/// Waits of readers for bytes that were not there, until they came or failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waits(Vec<u64>);

impl Waits {
    /// Add those of another layer.
    pub fn merge(&mut self, other: &Self) {
        self.0.resize(BUCKET_COUNT, 0);
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine += theirs);
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The time within which `share` (0 to 1) of them ended, up to a quarter too long; `None` if there
    /// were none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        let reached = |count: &u64| {
            seen += count;
            seen >= wanted.max(1)
        };
        self.0.iter().position(reached).map(end)
    }
}

fn bucket(wait: Duration) -> usize {
    let micros = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
    let index = match micros.checked_ilog2() {
        None | Some(0 | 1) => micros,
        Some(octave) => 4 * u64::from(octave - 1) + ((micros >> (octave - 2)) & 3),
    };
    usize::try_from(index).unwrap_or(usize::MAX).min(BUCKET_COUNT - 1)
}

/// Where a bucket ends.
fn end(bucket: usize) -> Duration {
    let next = bucket as u64 + 1;
    let micros = match next {
        0..4 => next,
        _ => (4 + next % 4) << (next / 4 - 1),
    };
    Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wait_lies_in_a_bucket_that_ends_little_later() {
        let check = |micros: u64| {
            let wait = Duration::from_micros(micros);
            let end = end(bucket(wait));
            assert!(wait < end && end.as_micros() as u64 <= micros + micros / 4 + 1, "{micros}");
        };
        (0..5000).for_each(check);
        (12..28).for_each(|octave| {
            [-1, 0, 1].iter().for_each(|it| check((1_u64 << octave).saturating_add_signed(*it)))
        });
        assert_eq!(bucket(Duration::MAX), BUCKET_COUNT - 1);
    }

    #[test]
    fn quantiles_of_several_layers() {
        assert_eq!(Waits::default().quantile(0.5), None);
        let (one, two) = (Counts::default(), Counts::default());
        (0..98).for_each(|_| one.add(Duration::from_millis(1)));
        (0..2).for_each(|_| two.add(Duration::from_secs(1)));
        let mut waits = Waits::default();
        waits.merge(&one.snapshot());
        waits.merge(&two.snapshot());
        assert_eq!(waits.count(), 100);
        let near = |share, millis: u64| {
            let found = waits.quantile(share).unwrap().as_micros() as u64;
            assert!((millis * 1000..=millis * 1250).contains(&found), "{share}: {found} µs");
        };
        near(0.5, 1);
        near(0.98, 1);
        near(0.99, 1000);
        near(1.0, 1000);
    }
}
