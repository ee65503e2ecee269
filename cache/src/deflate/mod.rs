//! A gzip stream in pieces, inflated as fast as may be, with a stop wherever a block begins.
//!
//! libdeflate decodes whole streams only and says nothing of blocks; zlib stops at blocks, but is half
//! as fast. This is the decoder for a first pass over a layer. It accepts what zlib accepts.
//!
//! Output goes behind what came before it, in the same buffer, so that copies need no window of their
//! own. The fast loop needs room on both sides and leaves the rest to a careful one.

mod bits;
mod block;
mod fast;
mod head;
mod table;
#[cfg(test)]
mod tests;

use crate::sys::{crc32_append, fast_symbols};

pub(crate) use bits::Bits;
pub(crate) use block::Codes;
use block::Lengths;
pub(crate) use fast::symbols;
use head::Head;

/// The bytes are not what the format allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadStream(pub(crate) &'static str);

/// Why a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// All input is taken.
    NeedsInput,
    /// The buffer is full.
    NeedsRoom,
    /// A block begins.
    Block {
        /// Position in the blob of its first whole byte.
        at: u64,
        /// High-order bits of the byte before that belong to it, too.
        bits: u8,
    },
    /// A member is complete and its trailer right; another may follow.
    End {
        /// Position in the blob behind it.
        at: u64,
    },
}

/// An [`Event`] before it is known where.
enum Pause {
    NeedsInput,
    NeedsRoom,
    Block,
    End,
}

/// Furthest that a copy reaches back.
const DISTANCE_MAX: u64 = 32 << 10;

/// Streaming decoder of gzip members.
pub(crate) struct Inflate {
    state: State,
    bits: Bits,
    /// Bytes of input taken into `bits`, or used.
    taken: u64,
    /// The block under way is its member's last.
    is_last: bool,
    codes: Box<Codes>,
    /// Of the output of this member.
    crc: u32,
    len: u64,
}

enum State {
    Head(Head),
    BlockHead,
    StoredLen,
    Stored {
        left: usize,
    },
    Lengths(Box<Lengths>),
    Symbols,
    /// A copy for which there was no room.
    Copy {
        len: usize,
        distance: usize,
    },
    BlockEnd,
    TrailerCrc,
    TrailerLen,
}

impl Inflate {
    /// Decoder at the start of a blob.
    pub(crate) fn new() -> Self {
        Self {
            state: State::Head(Head::new()),
            bits: Bits::default(),
            taken: 0,
            is_last: false,
            codes: Box::default(),
            crc: 0,
            len: 0,
        }
    }

    /// Decode on: from `input`, which moves on, to `buffer` behind `filled`, which moves on too.
    /// Before that must stand the last 32 KiB of output, or all there are.
    pub(crate) fn step(
        &mut self,
        input: &mut &[u8],
        buffer: &mut [u8],
        filled: &mut usize,
    ) -> Result<Event, BadStream> {
        let given = input.len();
        let result = loop {
            let from = *filled;
            let event = self.advance(input, buffer, filled);
            let new = buffer.get(from..*filled).unwrap_or_default();
            self.crc = crc32_append(self.crc, new);
            self.len += new.len() as u64;
            match event {
                Ok(Some(event)) => break Ok(event),
                Ok(None) => {}
                Err(bad) => break Err(bad),
            }
        };
        self.taken += (given - input.len()) as u64;
        let at = self.taken - u64::from(self.bits.count / 8);
        Ok(match result? {
            Pause::NeedsInput => Event::NeedsInput,
            Pause::NeedsRoom => Event::NeedsRoom,
            Pause::Block => Event::Block { at, bits: (self.bits.count % 8) as u8 },
            Pause::End => {
                (self.crc, self.len) = (0, 0);
                Event::End { at }
            }
        })
    }

    /// One state further. Ends at least where a block does, so that sums are right there.
    fn advance(
        &mut self,
        input: &mut &[u8],
        buffer: &mut [u8],
        filled: &mut usize,
    ) -> Result<Option<Pause>, BadStream> {
        let next = match &mut self.state {
            State::Head(head) => {
                let Some(byte) = self.bits.take(8, input) else {
                    return Ok(Some(Pause::NeedsInput));
                };
                if !head.take(byte as u8)? {
                    return Ok(None);
                }
                self.state = State::BlockHead;
                return Ok(Some(Pause::Block));
            }
            State::BlockHead => {
                let Some(head) = self.bits.take(3, input) else {
                    return Ok(Some(Pause::NeedsInput));
                };
                self.is_last = head & 1 != 0;
                match head >> 1 {
                    0 => {
                        self.bits.drop(self.bits.count % 8);
                        State::StoredLen
                    }
                    1 => {
                        self.codes.set_fixed()?;
                        State::Symbols
                    }
                    2 => State::Lengths(Box::default()),
                    _ => return Err(BadStream("invalid block type")),
                }
            }
            State::StoredLen => {
                let Some(lens) = self.bits.take(32, input) else {
                    return Ok(Some(Pause::NeedsInput));
                };
                let (len, check) = (lens & 0xffff, lens >> 16);
                if len != !check & 0xffff {
                    return Err(BadStream("invalid stored block lengths"));
                }
                State::Stored { left: len as usize }
            }
            State::Stored { left: 0 } => State::BlockEnd,
            State::Stored { left } => {
                return Ok(stored(left, &mut self.bits, input, buffer, filled));
            }
            State::Lengths(lengths) => {
                if !lengths.take(&mut self.bits, input, &mut self.codes)? {
                    return Ok(Some(Pause::NeedsInput));
                }
                State::Symbols
            }
            State::Symbols => {
                let reach = self.len.min(DISTANCE_MAX) as usize;
                let floor = filled.saturating_sub(reach);
                fast_symbols(&self.codes, &mut self.bits, input, buffer, filled, floor)?;
                match block::symbols(&self.codes, &mut self.bits, input, buffer, filled, floor)? {
                    block::Stop::NeedsInput => return Ok(Some(Pause::NeedsInput)),
                    block::Stop::NeedsRoom => return Ok(Some(Pause::NeedsRoom)),
                    block::Stop::Copy { len, distance } => State::Copy { len, distance },
                    block::Stop::FastAgain => return Ok(None),
                    block::Stop::End => State::BlockEnd,
                }
            }
            State::Copy { len, distance } => {
                let now = (*len).min(buffer.len() - *filled);
                block::copy(buffer, filled, now, *distance);
                *len -= now;
                match *len {
                    0 => State::Symbols,
                    _ => return Ok(Some(Pause::NeedsRoom)),
                }
            }
            State::BlockEnd if self.is_last => {
                self.bits.drop(self.bits.count % 8);
                State::TrailerCrc
            }
            State::BlockEnd => {
                self.state = State::BlockHead;
                return Ok(Some(Pause::Block));
            }
            State::TrailerCrc => {
                let Some(crc) = self.bits.take(32, input) else {
                    return Ok(Some(Pause::NeedsInput));
                };
                if crc != self.crc {
                    return Err(BadStream("incorrect data check"));
                }
                State::TrailerLen
            }
            State::TrailerLen => {
                let Some(len) = self.bits.take(32, input) else {
                    return Ok(Some(Pause::NeedsInput));
                };
                if len != self.len as u32 {
                    return Err(BadStream("incorrect length check"));
                }
                self.state = State::Head(Head::new());
                return Ok(Some(Pause::End));
            }
        };
        self.state = next;
        Ok(None)
    }
}

/// Bytes of a stored block; `None` once `left` has none.
fn stored(
    left: &mut usize,
    bits: &mut Bits,
    input: &mut &[u8],
    buffer: &mut [u8],
    filled: &mut usize,
) -> Option<Pause> {
    while *left > 0 {
        let room = buffer.get_mut(*filled..).unwrap_or_default();
        let Some(first) = room.first_mut() else { return Some(Pause::NeedsRoom) };
        if bits.count >= 8 {
            *first = bits.hold as u8;
            bits.drop(8);
            *filled += 1;
            *left -= 1;
            continue;
        }
        let len = room.len().min(input.len()).min(*left);
        if len == 0 {
            return Some(Pause::NeedsInput);
        }
        if let (Some((now, rest)), Some(room)) = (input.split_at_checked(len), room.get_mut(..len))
        {
            room.copy_from_slice(now);
            *input = rest;
        }
        *filled += len;
        *left -= len;
    }
    None
}
