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
mod flow;
mod head;
mod search;
mod symbol;
mod table;
#[cfg(test)]
mod tests;

use crate::sys::fast_symbols;

use bits::Bits;
pub(crate) use block::Codes;
use block::Lengths;
pub(crate) use fast::symbols;
pub(crate) use flow::Flow;
use head::Head;
pub(crate) use search::find_block;
pub(crate) use symbol::{Meaning, Symbol, is_known, unknown_window};

/// The bytes are not what the format allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadStream(pub(crate) &'static str);

/// Where a block begins in a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Position of its first whole byte.
    pub(crate) at: u64,
    /// High-order bits of the byte before that belong to it, too.
    pub(crate) bits: u8,
}

impl Place {
    /// Behind so many bits of the blob.
    pub(crate) fn behind(bits: u64) -> Self {
        Self { at: bits.div_ceil(8), bits: ((8 - bits % 8) % 8) as u8 }
    }

    /// Bits of the blob before it.
    pub(crate) fn in_bits(self) -> u64 {
        8 * self.at - u64::from(self.bits)
    }
}

/// Why a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// All input is taken.
    NeedsInput,
    /// The buffer is full.
    NeedsRoom,
    /// A block begins.
    Block(Place),
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
    /// Of the output of this member; `None` where not all of it is known.
    crc: Option<u32>,
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
            crc: Some(0),
            len: 0,
        }
    }

    /// Decoder at a block inside a member, behind a window of which nothing is known. It can't tell
    /// whether the member's trailer is right, and refuses it.
    pub(crate) fn inside(place: Place, before: u8) -> Self {
        let mut decoder = Self { crc: None, len: DISTANCE_MAX, ..Self::new() };
        decoder.go_on(place, before);
        decoder
    }

    /// Go on at a block further on in the same member, where `before` is the byte before it. Somebody
    /// else decoded what lies between; see [`Self::sum_up`].
    pub(crate) fn go_on(&mut self, place: Place, before: u8) {
        self.state = State::BlockHead;
        self.bits = Bits::high(before, place.bits.into());
        self.taken = place.at;
    }

    /// These bytes of the member's output came from somebody else.
    pub(crate) fn sum_up(&mut self, bytes: &[u8]) {
        self.crc = self.crc.map(|crc| Symbol::sum(crc, bytes));
        self.len += bytes.len() as u64;
    }

    /// Whether copies may reach back as far as they ever can.
    pub(crate) fn has_window(&self) -> bool {
        self.len >= DISTANCE_MAX
    }

    /// Decode on: from `input`, which moves on, to `buffer` behind `filled`, which moves on too.
    /// Before that must stand the last 32 KiB of output, or all there are.
    pub(crate) fn step<S: Symbol>(
        &mut self,
        input: &mut &[u8],
        buffer: &mut [S],
        filled: &mut usize,
    ) -> Result<Event, BadStream> {
        let given = input.len();
        let mut flow = Flow { bits: self.bits, input, buffer, filled: *filled, floor: 0 };
        let result = loop {
            let from = flow.filled;
            let event = self.advance(&mut flow);
            let new = flow.buffer.get(from..flow.filled).unwrap_or_default();
            self.crc = self.crc.map(|crc| S::sum(crc, new));
            self.len += new.len() as u64;
            match event {
                Ok(Some(event)) => break Ok(event),
                Ok(None) => {}
                Err(bad) => break Err(bad),
            }
        };
        (self.bits, *filled) = (flow.bits, flow.filled);
        self.taken += (given - input.len()) as u64;
        let place = Place::behind(8 * self.taken - u64::from(self.bits.count));
        Ok(match result? {
            Pause::NeedsInput => Event::NeedsInput,
            Pause::NeedsRoom => Event::NeedsRoom,
            Pause::Block => Event::Block(place),
            Pause::End => {
                (self.crc, self.len) = (Some(0), 0);
                Event::End { at: place.at }
            }
        })
    }

    /// One state further. Ends at least where a block does, so that sums are right there.
    fn advance<S: Symbol>(
        &mut self,
        flow: &mut Flow<'_, '_, S>,
    ) -> Result<Option<Pause>, BadStream> {
        let next = match &mut self.state {
            State::Head(head) => {
                let Some(byte) = flow.take(8) else { return Ok(Some(Pause::NeedsInput)) };
                if !head.take(byte as u8)? {
                    return Ok(None);
                }
                self.state = State::BlockHead;
                return Ok(Some(Pause::Block));
            }
            State::BlockHead => {
                let Some(head) = flow.take(3) else { return Ok(Some(Pause::NeedsInput)) };
                self.block_head(head, &mut flow.bits)?
            }
            State::StoredLen => {
                let Some(lens) = flow.take(32) else { return Ok(Some(Pause::NeedsInput)) };
                let (len, check) = (lens & 0xffff, lens >> 16);
                if len != !check & 0xffff {
                    return Err(BadStream("invalid stored block lengths"));
                }
                State::Stored { left: len as usize }
            }
            State::Stored { left: 0 } => State::BlockEnd,
            State::Stored { left } => return Ok(stored(left, flow)),
            State::Lengths(lengths) => {
                if !lengths.take(&mut flow.bits, flow.input, &mut self.codes)? {
                    return Ok(Some(Pause::NeedsInput));
                }
                State::Symbols
            }
            State::Symbols => match self.symbols(flow)? {
                block::Stop::NeedsInput => return Ok(Some(Pause::NeedsInput)),
                block::Stop::NeedsRoom => return Ok(Some(Pause::NeedsRoom)),
                block::Stop::Copy { len, distance } => State::Copy { len, distance },
                block::Stop::FastAgain => return Ok(None),
                block::Stop::End => State::BlockEnd,
            },
            State::Copy { len, distance } => {
                let now = (*len).min(flow.buffer.len() - flow.filled);
                block::copy(flow, now, *distance);
                *len -= now;
                match *len {
                    0 => State::Symbols,
                    _ => return Ok(Some(Pause::NeedsRoom)),
                }
            }
            State::BlockEnd if self.is_last => {
                flow.bits.drop(flow.bits.count % 8);
                State::TrailerCrc
            }
            State::BlockEnd => {
                self.state = State::BlockHead;
                return Ok(Some(Pause::Block));
            }
            State::TrailerCrc | State::TrailerLen => return self.trailer(flow),
        };
        self.state = next;
        Ok(None)
    }

    /// What follows the three bits that each block begins with.
    fn block_head(&mut self, head: u32, bits: &mut Bits) -> Result<State, BadStream> {
        self.is_last = head & 1 != 0;
        match head >> 1 {
            0 => {
                bits.drop(bits.count % 8);
                Ok(State::StoredLen)
            }
            1 => {
                self.codes.set_fixed()?;
                Ok(State::Symbols)
            }
            2 => Ok(State::Lengths(Box::default())),
            _ => Err(BadStream("invalid block type")),
        }
    }

    fn symbols<S: Symbol>(&self, flow: &mut Flow<'_, '_, S>) -> Result<block::Stop, BadStream> {
        let reach = self.len.min(DISTANCE_MAX) as usize;
        flow.floor = flow.filled.saturating_sub(reach);
        fast_symbols(&self.codes, flow)?;
        block::symbols(&self.codes, flow)
    }

    fn trailer<S>(&mut self, flow: &mut Flow<'_, '_, S>) -> Result<Option<Pause>, BadStream> {
        let Some(found) = flow.take(32) else { return Ok(Some(Pause::NeedsInput)) };
        if matches!(self.state, State::TrailerCrc) {
            if self.crc != Some(found) {
                return Err(BadStream("incorrect data check"));
            }
            self.state = State::TrailerLen;
            return Ok(None);
        }
        if found != self.len as u32 {
            return Err(BadStream("incorrect length check"));
        }
        self.state = State::Head(Head::new());
        Ok(Some(Pause::End))
    }
}

/// Bytes of a stored block; `None` once `left` has none.
fn stored<S: Symbol>(left: &mut usize, flow: &mut Flow<'_, '_, S>) -> Option<Pause> {
    while *left > 0 {
        let held = flow.bits;
        let Some(first) = flow.room().first_mut() else { return Some(Pause::NeedsRoom) };
        if held.count >= 8 {
            *first = S::of(held.hold as u8);
            flow.bits.drop(8);
            flow.filled += 1;
            *left -= 1;
            continue;
        }
        let len = flow.room().len().min(flow.input.len()).min(*left);
        if len == 0 {
            return Some(Pause::NeedsInput);
        }
        let input: &[u8] = flow.input;
        let (now, rest) = input.split_at_checked(len).unwrap_or_default();
        flow.room().iter_mut().zip(now).for_each(|(to, byte)| *to = S::of(*byte));
        *flow.input = rest;
        flow.filled += len;
        *left -= len;
    }
    None
}
