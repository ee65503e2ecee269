//! How many bytes nobody asked for may be fetched, over all images of a cache. Pure.

use std::time::Instant;

/// A cap on compressed bytes a second: as much as a second's worth at once.
#[derive(Debug)]
pub(crate) struct Bandwidth {
    /// Bytes a second; `None`: what the link gives.
    rate: Option<f64>,
    /// Bytes that may be asked for, and when that was worked out.
    credit: Option<(f64, Instant)>,
}

impl Bandwidth {
    /// With that cap.
    pub(crate) fn new(bytes_per_second_max: Option<u64>) -> Self {
        Self { rate: bytes_per_second_max.map(|rate| rate as f64), credit: None }
    }

    /// Take `bytes` from what the cap allows; false if that is used up for now.
    pub(crate) fn spend(&mut self, now: Instant, bytes: u64) -> bool {
        let Some(rate) = self.rate else { return true };
        let (credit, at) = self.credit.unwrap_or((rate, now));
        let passed = now.saturating_duration_since(at).as_secs_f64();
        let credit = (credit + passed * rate).min(rate);
        // A span larger than a second's worth leaves a debt to be waited for.
        let allowed = credit > 0.0;
        let left = if allowed { credit - bytes as f64 } else { credit };
        self.credit = Some((left, now));
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn keeps_to_the_bandwidth() {
        let rate = 1_000_000;
        let mut bandwidth = Bandwidth::new(Some(rate));
        let start = Instant::now();
        let mut bytes = 0;
        for ms in 0..10_000 {
            while bandwidth.spend(start + Duration::from_millis(ms), 300_000) {
                bytes += 300_000;
            }
        }
        assert!((10_000_000..=11_400_000).contains(&bytes), "{bytes} in 10 s at {rate}");
    }

    #[test]
    fn without_a_cap_the_link_decides() {
        let mut bandwidth = Bandwidth::new(None);
        let now = Instant::now();
        assert!((0..1000).all(|_| bandwidth.spend(now, u64::MAX / 2000)));
    }
}
