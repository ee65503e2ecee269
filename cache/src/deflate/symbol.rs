//! What comes out of a decoder: bytes, or bytes of which some are not known yet.

use crate::sys::crc32_append;

/// One place of the output.
pub(crate) trait Symbol: Copy + Default {
    fn of(byte: u8) -> Self;

    /// CRC-32 of what `sum` is the sum of, continued by `symbols`, where it can be told.
    fn sum(sum: u32, symbols: &[Self]) -> u32;
}

impl Symbol for u8 {
    fn of(byte: u8) -> Self {
        byte
    }

    fn sum(sum: u32, symbols: &[Self]) -> u32 {
        crc32_append(sum, symbols)
    }
}

/// A byte, or from [`UNKNOWN`] on a place in the window that was not known.
impl Symbol for u16 {
    fn of(byte: u8) -> Self {
        byte.into()
    }

    fn sum(sum: u32, _: &[Self]) -> u32 {
        sum
    }
}

/// The first symbol that is no byte: it stands for the window's first.
pub(crate) const UNKNOWN: u16 = 256;

/// Symbols for a window of which nothing is known.
pub(crate) fn unknown_window() -> impl Iterator<Item = u16> {
    (UNKNOWN..).take(super::DISTANCE_MAX as usize)
}

/// What stands for what, once the window is known.
pub(crate) struct Meaning(Box<[u8; 1 << 16]>);

impl Meaning {
    /// Behind this window.
    pub(crate) fn behind(window: &[u8]) -> Self {
        let mut bytes = Box::new([0; 1 << 16]);
        let known = 0..=u8::MAX;
        bytes.iter_mut().zip(known.chain(window.iter().copied())).for_each(|(to, it)| *to = it);
        Self(bytes)
    }

    /// Put the bytes that `symbols` stand for into `room`, which is as long.
    pub(crate) fn put(&self, symbols: &[u16], room: &mut [u8]) {
        debug_assert_eq!(symbols.len(), room.len());
        let (groups, rest) = symbols.as_chunks::<GROUP_LEN>();
        let (room_groups, room_rest) = room.as_chunks_mut::<GROUP_LEN>();
        for (symbols, room) in groups.iter().zip(room_groups) {
            // Put together in a register: bytes stored one by one take twice as long.
            let word = symbols.iter().rev().fold(0, |word, symbol| word << 8 | self.of(*symbol));
            *room = word.to_le_bytes();
        }
        room_rest.iter_mut().zip(rest).for_each(|(to, symbol)| *to = self.of(*symbol) as u8);
    }

    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "there is a meaning for each number of 16 bits")]
    fn of(&self, symbol: u16) -> u64 {
        self.0[usize::from(symbol)].into()
    }
}

/// Bytes of a word.
const GROUP_LEN: usize = 8;

/// Whether all of them are bytes.
pub(crate) fn is_known(symbols: &[u16]) -> bool {
    symbols.iter().fold(0, |all, symbol| all | symbol) < UNKNOWN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_unknown_gets_the_windows_bytes() {
        let window: Vec<u8> = (0..32 << 10).map(|at: u32| (at / 7) as u8).collect();
        let meaning = Meaning::behind(&window);
        let unknown: Vec<u16> = unknown_window().collect();
        assert_eq!(unknown.len(), window.len());
        let symbols = [&[7, 255, 0], &unknown[..], &[1; 40], &unknown[500..600]].concat();
        let expected = [&[7, 255, 0], &window[..], &[1; 40], &window[500..600]].concat();
        let mut room = vec![0; symbols.len()];
        meaning.put(&symbols, &mut room);
        assert!(room == expected);
        assert!(is_known(&[0, 255]) && !is_known(&[3, UNKNOWN]));
    }
}
