//! Bits of a stream, lowest first, over pieces of any length.

/// Bits taken from the input and not used yet.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bits {
    /// The next bits, lowest first; zeros above `count`.
    pub(super) hold: u64,
    /// Below 64.
    pub(super) count: u32,
}

impl Bits {
    /// Those of a byte that are left when `count` of them, less than 8, are not used yet.
    pub(super) fn high(byte: u8, count: u32) -> Self {
        debug_assert!(count < 8);
        Self { hold: u64::from(byte) >> (8 - count), count }
    }

    /// Take bytes of `input` while there is room.
    pub(super) fn refill(&mut self, input: &mut &[u8]) {
        while self.count < 56
            && let Some((&byte, rest)) = input.split_first()
        {
            self.hold |= u64::from(byte) << self.count;
            self.count += 8;
            *input = rest;
        }
    }

    /// The next `count` bits (at most 32), unless they have not come yet.
    pub(super) fn take(&mut self, count: u32, input: &mut &[u8]) -> Option<u32> {
        if self.count < count {
            self.refill(input);
        }
        (self.count >= count).then(|| {
            let value = self.hold & ((1 << count) - 1);
            self.drop(count);
            value as u32
        })
    }

    /// Forget bits that are there.
    pub(super) fn drop(&mut self, count: u32) {
        debug_assert!(count <= self.count);
        self.hold >>= count;
        self.count -= count;
    }
}
