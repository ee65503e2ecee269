//! What a helper decoded, taken over by the scan.

use std::vec::IntoIter;

use spanfs_layer::ztoc::WINDOW_LEN;

use super::BuildError;
use super::ahead::Decoded;
use super::output::{BUFFER_LEN, Output};
use super::spent::Spent;
use crate::deflate::{Inflate, Meaning, Place};

/// The output of a stretch on its way into the layer's.
pub(super) struct Join {
    meaning: Meaning,
    spent: Spent<u16>,
    unknown: IntoIter<Vec<u16>>,
    known: IntoIter<Vec<u8>>,
    /// The first buffer of those left, and what of it has been taken.
    room: Vec<u16>,
    taken: usize,
    /// Bytes left in the buffer that the output has adopted.
    adopted: usize,
}

impl Join {
    /// Also gives where blocks begin, and after how many bytes.
    pub(super) fn new(
        decoded: Decoded,
        meaning: Meaning,
        spent: Spent<u16>,
    ) -> (Self, Vec<(Place, u64)>) {
        let Decoded { blocks, unknown, known, .. } = decoded;
        let (unknown, known) = (unknown.into_iter(), known.into_iter());
        let (room, taken, adopted) = (Vec::new(), 0, 0);
        (Self { meaning, spent, unknown, known, room, taken, adopted }, blocks)
    }

    /// The next `len` bytes.
    pub(super) fn pour(
        &mut self,
        len: u64,
        decoder: &mut Inflate,
        output: &mut Output,
    ) -> Result<(), BuildError> {
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        while left > 0 {
            if self.taken == self.room.len() && !self.next_room() {
                left -= self.pour_known(left, decoder, output)?;
                continue;
            }
            let symbols = self.room.get(self.taken..).unwrap_or_default();
            let room = output.room()?;
            let len = left.min(symbols.len()).min(room.len());
            let (Some(symbols), Some(room)) = (symbols.get(..len), room.get_mut(..len)) else {
                unreachable!("the least of three lengths")
            };
            self.meaning.put(symbols, room);
            decoder.sum_up(room);
            output.advance(len)?;
            self.taken += len;
            left -= len;
        }
        Ok(())
    }

    fn next_room(&mut self) -> bool {
        let next = self.unknown.next();
        let has_next = next.is_some();
        let room = std::mem::replace(&mut self.room, next.unwrap_or_default());
        if !room.is_empty() {
            self.spent.give(room);
        }
        self.taken = if has_next { WINDOW_LEN } else { 0 };
        has_next
    }

    /// Take whole buffers over; how much of them.
    fn pour_known(
        &mut self,
        max: usize,
        decoder: &mut Inflate,
        output: &mut Output,
    ) -> Result<usize, BuildError> {
        if self.adopted == 0 {
            let Some(room) = self.known.next() else { unreachable!("blocks begin in the output") };
            output.adopt(room)?;
            self.adopted = BUFFER_LEN - WINDOW_LEN;
        }
        let len = max.min(self.adopted);
        output.advance(len)?;
        decoder.sum_up(output.last(len));
        self.adopted -= len;
        Ok(len)
    }
}

impl Drop for Join {
    fn drop(&mut self) {
        while self.next_room() {}
    }
}
