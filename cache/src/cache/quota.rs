//! Which layers to give up when there are too many. Pure.

use std::time::SystemTime;

/// A layer that takes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
    pub(crate) last_used: SystemTime,
}

/// Indexes in the order in which layers should go until the rest fits into `quota_bytes`; the caller
/// skips those in use and stops when enough are gone. Empty if all fit.
pub(crate) fn order(sizes: &[Size], quota_bytes: u64) -> Vec<usize> {
    if total(sizes) <= quota_bytes {
        return Vec::new();
    }
    let mut order: Vec<_> = sizes.iter().map(|size| size.last_used).zip(0..).collect();
    order.sort();
    order.into_iter().map(|(_, index)| index).collect()
}

/// Bytes of all.
pub(crate) fn total(sizes: &[Size]) -> u64 {
    sizes.iter().map(|size| size.bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn oldest_first_and_only_if_need_be() {
        let size = |bytes, age: u64| Size {
            bytes,
            last_used: SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - age),
        };
        let sizes = [size(10, 1), size(20, 3), size(30, 2)];
        assert_eq!(order(&sizes, 60), [] as [usize; 0]);
        assert_eq!(order(&sizes, 59), [1, 2, 0]);
        assert_eq!(order(&[], 0), [] as [usize; 0]);
    }
}
