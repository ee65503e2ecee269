//! Symbols without care for the ends: as long as both input and room have more than any needs.
//!
//! The output is looked at through an array of fixed size, so that masks keep indices inside and nothing
//! is checked twice. What the loop waits for is the way from an entry to the next one: a look-up, a shift,
//! a mask. So nothing else is put on it.

use super::BadStream;
use super::bits::Bits;
use super::block::Codes;
use super::flow::Flow;
use super::symbol::Symbol;
use super::table;

/// Output in sight: the window and as much again, then what the last round needs.
const VIEW_LEN: usize = VIEW_MASK + 1 + ROOM_MARGIN;
const VIEW_MASK: usize = (64 << 10) - 1;

/// Room that one round takes at most: two literals and the longest copy, its last chunks as a whole.
const ROOM_MARGIN: usize = 2 + 258 + 2 * CHUNK_LEN;

/// Symbols copied at once.
const CHUNK_LEN: usize = 16;

/// Input that one round takes at most, and what a refill reads beyond it.
const INPUT_MARGIN: usize = 32;

/// Whether there is enough of both for a round.
pub(super) fn fits<S>(flow: &Flow<'_, '_, S>) -> bool {
    flow.input.len() >= INPUT_MARGIN
        && flow.buffer.len() >= VIEW_LEN
        && flow.buffer.len() - flow.filled > ROOM_MARGIN
}

/// Bits of a distance, extra ones included: of any, and of one that needs no sub-table.
const DISTANCE_BITS_MAX: u32 = 15 + 13;
const SHORT_DISTANCE_BITS_MAX: u32 = table::DISTANCE_BITS + 13;

const LITERAL_MASK: u64 = (1 << table::LITERAL_BITS) - 1;
const DISTANCE_MASK: u64 = (1 << table::DISTANCE_BITS) - 1;

/// The bits under way; above `count`, whose low byte alone counts, `hold` has bits that the next
/// refill brings again.
struct Reader<'a> {
    input: &'a [u8],
    /// Where the next refill begins.
    at: usize,
    hold: u64,
    count: u32,
}

impl Reader<'_> {
    /// Have 56 bits at least, given eight bytes of input.
    #[inline(always)]
    fn refill(&mut self) {
        let word = self.input.get(self.at..self.at + 8).and_then(|word| word.first_chunk());
        let Some(word) = word else { return };
        self.hold |= u64::from_le_bytes(*word).wrapping_shl(self.count);
        self.at += (63_u32.wrapping_sub(self.count) >> 3 & 7) as usize;
        self.count |= 56;
    }

    /// Take back an entry that was dropped from `hold`.
    #[inline(always)]
    fn undo(&mut self, entry: u32, hold: u64) {
        self.hold = hold;
        self.count = self.count.wrapping_add(entry);
    }

    /// Drop the bits of an entry; gives what they were among.
    #[inline(always)]
    fn take(&mut self, entry: u32) -> u64 {
        let hold = self.hold;
        self.hold = hold.wrapping_shr(entry);
        self.count = self.count.wrapping_sub(entry);
        hold
    }

    /// The entry of the next literal or length.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "a mask keeps the index in the table")]
    fn peek(&self, codes: &Codes) -> u32 {
        codes.literals[(self.hold & LITERAL_MASK) as usize]
    }

    /// The entry that a link to a sub-table, taken before, leads to.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "a mask keeps the index in the table")]
    fn follow<const N: usize>(&self, link: u32, table: &[u32; N]) -> u32 {
        let sub_bits = link >> 8 & 0xf;
        let index = (link >> 16) as usize + (self.hold & !(u64::MAX << sub_bits)) as usize;
        table[index & (N - 1)]
    }

    /// How far back a copy reaches.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "a mask keeps the index in the table")]
    fn distance(&mut self, codes: &Codes) -> Result<usize, BadStream> {
        let mut entry = codes.distances[(self.hold & DISTANCE_MASK) as usize];
        let is_link = entry & table::EXCEPTIONAL != 0;
        // One bit more than `count` says is there, always.
        let needed = if is_link { DISTANCE_BITS_MAX } else { SHORT_DISTANCE_BITS_MAX };
        if (self.count as u8) < (needed + table::LITERAL_BITS - 1) as u8 {
            self.refill();
        }
        if is_link {
            if entry & table::SUB_TABLE != 0 {
                self.take(entry);
                entry = self.follow(entry, &codes.distances);
            }
            if entry & table::EXCEPTIONAL != 0 {
                return Err(BadStream("invalid distance code"));
            }
        }
        let hold = self.take(entry);
        Ok(table::value(entry, hold))
    }
}

/// Symbols while input and room have a margin. Ends before the end of the block, and before what
/// is wrong: the careful loop says so.
///
/// Not called directly but through [`crate::sys::fast_symbols`], which has it compiled for the
/// processor that we are on.
#[inline(always)]
pub(crate) fn symbols<S: Symbol>(
    codes: &Codes,
    flow: &mut Flow<'_, '_, S>,
) -> Result<(), BadStream> {
    if !fits(flow) {
        return Ok(());
    }
    let base = flow.filled.saturating_sub(super::DISTANCE_MAX as usize);
    let base = base.min(flow.buffer.len() - VIEW_LEN);
    let Some(view) = flow.buffer.get_mut(base..).and_then(|rest| rest.first_chunk_mut()) else {
        return Ok(());
    };
    let (mut at, floor) = (flow.filled - base, flow.floor.saturating_sub(base));
    let mut reader =
        Reader { input: flow.input, at: 0, hold: flow.bits.hold, count: flow.bits.count };
    rounds(codes, &mut reader, view, floor, &mut at)?;
    let count = reader.count & 0xff;
    flow.bits = Bits { hold: reader.hold & !(u64::MAX << count), count };
    *flow.input = reader.input.get(reader.at..).unwrap_or_default();
    flow.filled = base + at;
    Ok(())
}

/// Two literals at most and then one more or a copy, again and again.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "the loop keeps a margin in the view")]
fn rounds<S: Symbol>(
    codes: &Codes,
    reader: &mut Reader<'_>,
    view: &mut [S; VIEW_LEN],
    floor: usize,
    filled: &mut usize,
) -> Result<(), BadStream> {
    let (input_end, mut at) = (reader.input.len() - INPUT_MARGIN, *filled);
    reader.refill();
    let mut entry = reader.peek(codes);
    // In each round `entry` is that of the next bits, of which there are 56 at least. Each next one is
    // looked up as soon as it can be, before any refill and while the copy goes on.
    while at <= VIEW_MASK && reader.at <= input_end {
        let mut hold = reader.take(entry);
        if entry & table::LITERAL != 0 {
            let first = entry;
            entry = reader.peek(codes);
            hold = reader.take(entry);
            view[at] = S::of(table::literal(first));
            at += 1;
            if entry & table::LITERAL != 0 {
                let second = entry;
                entry = reader.peek(codes);
                hold = reader.take(entry);
                view[at] = S::of(table::literal(second));
                at += 1;
            }
        }
        if entry & table::EXCEPTIONAL != 0 {
            let link = entry;
            if link & table::SUB_TABLE != 0 {
                entry = reader.follow(link, &codes.literals);
            }
            if entry & table::EXCEPTIONAL != 0 {
                reader.undo(link, hold);
                break;
            }
            hold = reader.take(entry);
        }
        if entry & table::LITERAL != 0 {
            view[at] = S::of(table::literal(entry));
            at += 1;
            entry = reader.peek(codes);
            reader.refill();
            continue;
        }
        let len = table::value(entry, hold);
        let distance = reader.distance(codes)?;
        if distance > at - floor {
            return Err(BadStream("invalid distance too far back"));
        }
        entry = reader.peek(codes);
        reader.refill();
        copy(view, at, len, distance);
        at += len;
    }
    *filled = at;
    Ok(())
}

/// Copy `len` symbols to `at` from `distance` before it, and perhaps up to two chunks more. The caller
/// checked the distance and keeps a margin of room.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "a mask keeps the index in the view")]
fn copy<S: Symbol>(view: &mut [S; VIEW_LEN], at: usize, len: usize, distance: usize) {
    let (mut from, mut to, end) = ((at - distance) & VIEW_MASK, at, at + len);
    if distance >= CHUNK_LEN {
        // Both chunks without asking: most copies are short.
        put_chunk(view, from, to);
        put_chunk(view, from + CHUNK_LEN, to + CHUNK_LEN);
        while to + 2 * CHUNK_LEN < end {
            from += CHUNK_LEN;
            to += CHUNK_LEN;
            put_chunk(view, from + CHUNK_LEN, to + CHUNK_LEN);
        }
    } else if distance == 1 {
        let chunk = [view[from]; CHUNK_LEN];
        while to < end {
            set_chunk(view, to, chunk);
            to += CHUNK_LEN;
        }
    } else {
        // A chunk that overlaps with what it is copied to leaves as many right symbols as it is far; from
        // twice as far the same follows.
        while to < end {
            put_chunk(view, from, to);
            let step = (to - from).min(CHUNK_LEN);
            to += step;
            from += if step < CHUNK_LEN { 0 } else { step };
        }
    }
}

/// Copy an array, as slices are copied by a call.
#[inline(always)]
fn put_chunk<S: Symbol>(view: &mut [S; VIEW_LEN], from: usize, to: usize) {
    let chunk = view.get(from..from + CHUNK_LEN).and_then(|chunk| chunk.first_chunk());
    let Some(&chunk) = chunk else { return };
    set_chunk(view, to, chunk);
}

#[inline(always)]
fn set_chunk<S: Symbol>(view: &mut [S; VIEW_LEN], to: usize, chunk: [S; CHUNK_LEN]) {
    let room = view.get_mut(to..to + CHUNK_LEN).and_then(|room| room.first_chunk_mut());
    if let Some(room) = room {
        *room = chunk;
    }
}
