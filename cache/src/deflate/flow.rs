//! What a step works on.

use super::bits::Bits;

/// Input and output of a step.
pub(crate) struct Flow<'a, 'b, S> {
    pub(super) bits: Bits,
    /// Moves on as it is taken.
    pub(super) input: &'a mut &'b [u8],
    /// What came before, then room.
    pub(super) buffer: &'a mut [S],
    /// Where the room begins.
    pub(super) filled: usize,
    /// Copies reach back to here.
    pub(super) floor: usize,
}

impl<S> Flow<'_, '_, S> {
    /// The next `count` bits (at most 32), unless they have not come yet.
    pub(super) fn take(&mut self, count: u32) -> Option<u32> {
        self.bits.take(count, self.input)
    }

    /// What the buffer has room for.
    pub(super) fn room(&mut self) -> &mut [S] {
        self.buffer.get_mut(self.filled..).unwrap_or_default()
    }
}
