//! Sets of half-open ranges of a blob.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of a blob, as ranges that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RangeSet {
    /// Start to end; every start lies behind the end before it.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Add a range; what is there already is no error.
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Everything that touches the new range melts into it. The one before it first, as it may
        // reach in; then those that start within.
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.ranges.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.ranges.insert(start, end);
    }

    /// Take a range out; what is not there is no error.
    pub(crate) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&s, &e)) = self.ranges.range(..range.end).next_back() {
            if e <= range.start {
                break;
            }
            self.ranges.remove(&s);
            if s < range.start {
                self.ranges.insert(s, range.start);
            }
            if e > range.end {
                self.ranges.insert(range.end, e);
            }
        }
    }

    /// First run of bytes within `within` that are in the set.
    pub(crate) fn first_in(&self, within: Range<u64>) -> Option<Range<u64>> {
        if within.is_empty() {
            return None;
        }
        let before = self.ranges.range(..=within.start).next_back();
        let run = before
            .filter(|&(_, &end)| end > within.start)
            .or_else(|| self.ranges.range(within.start..within.end).next())?;
        Some(within.start.max(*run.0)..within.end.min(*run.1))
    }

    /// First run of bytes within `within` that are *not* in the set.
    pub(crate) fn first_gap_in(&self, within: Range<u64>) -> Option<Range<u64>> {
        let mut start = within.start;
        while start < within.end {
            match self.first_in(start..within.end) {
                Some(run) if run.start == start => start = run.end,
                Some(run) => return Some(start..run.start),
                None => return Some(start..within.end),
            }
        }
        None
    }

    /// True if the set holds any byte of `range`.
    pub(crate) fn overlaps(&self, range: Range<u64>) -> bool {
        self.first_in(range).is_some()
    }
}

impl From<Range<u64>> for RangeSet {
    fn from(range: Range<u64>) -> Self {
        let mut set = Self::default();
        set.insert(range);
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEN: u64 = 40;

    fn range() -> impl Strategy<Value = Range<u64>> {
        (0..LEN, 0..LEN).prop_map(|(a, b)| a.min(b)..a.max(b))
    }

    fn runs(set: &RangeSet) -> Vec<Range<u64>> {
        set.ranges.iter().map(|(&start, &end)| start..end).collect()
    }

    proptest! {
        /// Any sequence of inserts and removes leaves what a plain set of bytes holds, in normal form.
        #[test]
        fn equals_a_set_of_bytes(steps in prop::collection::vec((any::<bool>(), range()), 0..40)) {
            let mut set = RangeSet::default();
            let mut model = std::collections::BTreeSet::new();
            for (insert, range) in steps {
                if insert {
                    set.insert(range.clone());
                    model.extend(range);
                } else {
                    set.remove(range.clone());
                    model.retain(|byte| !range.contains(byte));
                }
                prop_assert_eq!(runs(&set).into_iter().flatten().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                prop_assert!(runs(&set).windows(2).all(|pair| pair[0].end < pair[1].start));
            }
        }

        /// Runs and gaps of a window are those of the model.
        #[test]
        fn finds_runs_and_gaps(held in prop::collection::vec(range(), 0..8), window in range()) {
            let mut set = RangeSet::default();
            held.iter().cloned().for_each(|range| set.insert(range));
            let has = |byte: u64| held.iter().any(|range| range.contains(&byte));
            let run = |wanted: bool| {
                let start = window.clone().find(|&byte| has(byte) == wanted)?;
                let end = (start..window.end).find(|&byte| has(byte) != wanted);
                Some(start..end.unwrap_or(window.end))
            };
            prop_assert_eq!(set.first_in(window.clone()), run(true));
            prop_assert_eq!(set.first_gap_in(window.clone()), run(false));
            prop_assert_eq!(set.overlaps(window.clone()), run(true).is_some());
        }
    }
}
