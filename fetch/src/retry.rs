//! When to try again, and when to give up. Pure: time comes in as values.

use std::time::Duration;

/// How stubborn the engine is.
#[derive(Clone, Debug)]
pub struct RetryOptions {
    /// Wait before the second try of a series; doubled with each further one.
    pub delay_first: Duration,
    /// Longest wait between two tries.
    pub delay_max: Duration,
    /// Longest wait that a server's Retry-After can impose.
    pub retry_after_max: Duration,
    /// Failures in a row, without progress, before wants fail: network and overload.
    pub tries_max: u32,
    /// The same for answers that are plainly wrong or refuse: repeating them helps little.
    pub tries_wrong_max: u32,
    /// How long a want waits while its blob makes no progress.
    pub deadline: Duration,
    /// How long a want may take altogether from its first request, however slowly it advances.
    pub total_max: Duration,
    /// Seed of the jitter.
    pub seed: u64,
}

impl Default for RetryOptions {
    fn default() -> Self {
        Self {
            // One lost packet costs a connection about as much.
            delay_first: Duration::from_millis(100),
            // A restarting registry is noticed soon, a dead one not hammered.
            delay_max: Duration::from_secs(5),
            retry_after_max: Duration::from_secs(60),
            // With the delays above more than the deadline of 30 s: it is the deadline that ends most.
            tries_max: 16,
            tries_wrong_max: 4,
            // A program that reads a file bears about this long before its user kills it.
            deadline: Duration::from_secs(30),
            total_max: Duration::from_secs(3600),
            seed: 0x5eed,
        }
    }
}

/// Exponential backoff with jitter that is the same for the same seed.
#[derive(Debug)]
pub(crate) struct Backoff {
    delay_first: Duration,
    delay_max: Duration,
    retry_after_max: Duration,
    random: Random,
}

impl Backoff {
    pub(crate) fn new(options: &RetryOptions) -> Self {
        Self {
            delay_first: options.delay_first,
            delay_max: options.delay_max,
            retry_after_max: options.retry_after_max,
            random: Random(options.seed),
        }
    }

    /// Wait after the `failures`-th failure in a row (from 1): between half of the step and all of it,
    /// and never less than the server asks for, within reason.
    pub(crate) fn delay(&mut self, failures: u32, retry_after: Option<Duration>) -> Duration {
        let doublings = failures.saturating_sub(1).min(30);
        let step = self.delay_first.saturating_mul(1 << doublings).min(self.delay_max);
        let half = step / 2;
        let jitter = half.mul_f64(self.random.next() as f64 / u64::MAX as f64);
        let asked = retry_after.unwrap_or_default().min(self.retry_after_max);
        (half + jitter).max(asked)
    }
}

/// SplitMix64: a repeatable source for jitter and simulated faults; not for secrets.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform enough below `bound`; 0 for a bound of 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        failures: u32,
        retry_after_s: Option<u64>,
        expected_ms: std::ops::RangeInclusive<u64>,
    ) {
        for seed in 0..50 {
            let mut backoff = Backoff::new(&RetryOptions { seed, ..RetryOptions::default() });
            let delay = backoff.delay(failures, retry_after_s.map(Duration::from_secs));
            let ms = u64::try_from(delay.as_millis()).unwrap();
            assert!(expected_ms.contains(&ms), "{ms} ms after {failures} failures, seed {seed}");
        }
    }

    #[test]
    fn delays() {
        check(1, None, 50..=100);
        check(2, None, 100..=200);
        check(6, None, 1600..=3200);
        check(7, None, 2500..=5000);
        check(u32::MAX, None, 2500..=5000);
        check(1, Some(0), 50..=100);
        check(1, Some(7), 7000..=7000);
        check(1, Some(86_400), 60_000..=60_000);
    }

    #[test]
    fn same_seed_same_jitter() {
        let run = |seed| {
            let mut backoff = Backoff::new(&RetryOptions { seed, ..RetryOptions::default() });
            (1..9).map(|n| backoff.delay(n, None)).collect::<Vec<_>>()
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }
}
