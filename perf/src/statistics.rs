//! Medians and how far they can be trusted. Pure, and the same for the same input.

/// Resamples of a bootstrap: the interval's ends are stable to a percent or so.
const RESAMPLES: usize = 2000;
/// Two-sided.
const CONFIDENCE: f64 = 0.95;

/// The middle value, or the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).copied()?;
    Some(match values.len() % 2 {
        1 => upper,
        _ => (upper + values.get(middle.checked_sub(1)?)?) / 2.0,
    })
}

/// A figure with the ends of its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// The median with its bootstrap interval.
pub(crate) fn estimate(values: &[f64]) -> Option<Estimate> {
    bootstrap(|rng| median(&resample(values, rng)), median(values)?)
}

/// Ratio of two medians with its interval; none where the lower one is not positive.
///
/// Resampling a handful of runs finds nothing outside of them, and takes chance for difference: so the
/// interval is at least as wide as that of Welch's test on the logarithms.
pub(crate) fn ratio(above: &[f64], below: &[f64]) -> Option<Estimate> {
    let of = |above: &[f64], below: &[f64]| {
        let below = median(below)?;
        (below > 0.0).then_some(median(above)? / below)
    };
    let value = of(above, below)?;
    let found = bootstrap(|rng| of(&resample(above, rng), &resample(below, rng)), value)?;
    let factor = welch(above, below).map_or(1.0, f64::exp);
    Some(Estimate {
        value,
        low: found.low.min(value / factor),
        high: found.high.max(value * factor),
    })
}

/// Half the width of the interval of the difference of two means, of logarithms; none of single values.
fn welch(one: &[f64], other: &[f64]) -> Option<f64> {
    let error = |values: &[f64]| {
        let logs: Vec<_> = values.iter().map(|value| value.max(f64::MIN_POSITIVE).ln()).collect();
        let count = logs.len() as f64;
        let mean = logs.iter().sum::<f64>() / count;
        let squares = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>();
        (count > 1.0).then_some((squares / (count - 1.0) / count, count - 1.0))
    };
    let ((one, freedom), (other, others)) = (error(one)?, error(other)?);
    let both = one + other;
    let freedom = both.powi(2) / (one.powi(2) / freedom + other.powi(2) / others);
    (both > 0.0).then(|| student(freedom) * both.sqrt())
}

/// Student's t at [`CONFIDENCE`].
fn student(freedom: f64) -> f64 {
    match freedom {
        freedom if freedom < 2.0 => 12.71,
        freedom if freedom < 3.0 => 4.30,
        freedom if freedom < 4.0 => 3.18,
        freedom if freedom < 5.0 => 2.78,
        freedom => 1.96 + 2.37 / freedom + 2.82 / freedom.powi(2),
    }
}

fn bootstrap(mut draw: impl FnMut(&mut Rng) -> Option<f64>, value: f64) -> Option<Estimate> {
    let mut rng = Rng(0x5eed);
    let mut drawn: Vec<f64> = (0..RESAMPLES).filter_map(|_| draw(&mut rng)).collect();
    drawn.sort_by(f64::total_cmp);
    let tail = (drawn.len() as f64 * (1.0 - CONFIDENCE) / 2.0) as usize;
    let low = *drawn.get(tail)?;
    let high = *drawn.get(drawn.len().checked_sub(1 + tail)?)?;
    Some(Estimate { value, low, high })
}

fn resample(values: &[f64], rng: &mut Rng) -> Vec<f64> {
    (0..values.len()).map(|_| values[rng.below(values.len())]).collect()
}

/// SplitMix64: small, seeded, and the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut state = self.0;
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    }

    /// Below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// From 0 to 1.
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[3.0, 1.0]), Some(2.0));
        assert_eq!(median(&[3.0, 1.0, 9.0]), Some(3.0));
    }

    #[test]
    fn interval_holds_the_value_and_narrows_with_more_runs() {
        let mut rng = Rng(1);
        let mut sample = |count: usize| (0..count).map(|_| 1.0 + rng.share()).collect::<Vec<_>>();
        let (few, many) = (estimate(&sample(5)).unwrap(), estimate(&sample(200)).unwrap());
        assert!(few.low <= few.value && few.value <= few.high, "{few:?}");
        assert!(many.high - many.low < few.high - few.low, "{many:?} {few:?}");
        assert_eq!(
            estimate(&[2.0, 2.0, 2.0]).unwrap(),
            Estimate { value: 2.0, low: 2.0, high: 2.0 }
        );
    }

    #[test]
    fn chance_is_rarely_taken_for_difference() {
        let mut rng = Rng(7);
        for (count, others) in [(2, 2), (2, 4), (3, 3), (4, 4), (5, 5), (10, 10)] {
            let mut sample =
                |count| (0..count).map(|_| 1.0 + 0.5 * rng.share()).collect::<Vec<_>>();
            let is_apart = |_: &usize| ratio(&sample(count), &sample(others)).unwrap().low > 1.0;
            let wrong = (0..400).filter(is_apart).count();
            assert!(wrong <= 16, "{wrong} of 400 with {count} and {others} runs");
        }
        let found = ratio(&[2.0, 2.1], &[1.0, 1.03]).unwrap();
        assert!(found.low > 1.3, "what is large is seen in two runs: {found:?}");
    }

    #[test]
    fn student_is_that_of_the_tables() {
        for (freedom, expected) in [(2.0, 4.303), (5.0, 2.571), (10.0, 2.228), (60.0, 2.0)] {
            assert!((student(freedom) - expected).abs() < 0.03, "{freedom}");
        }
    }

    #[test]
    fn ratio_of_equal_samples_holds_one() {
        let found = ratio(&[1.0, 1.1, 0.9, 1.05], &[1.02, 0.93, 1.1, 0.97]).unwrap();
        assert!(found.low < 1.0 && found.high > 1.0, "{found:?}");
        assert_eq!(ratio(&[1.0], &[0.0]), None);
        assert_eq!(ratio(&[], &[1.0]), None);
    }
}
