//! Symbols without care for the ends: as long as both input and room have more than any needs.

use super::BadStream;
use super::bits::Bits;
use super::block::Codes;
use super::flow::Flow;
use super::symbol::Symbol;
use super::table;

/// Input that one round takes at most, and what a refill reads beyond it.
const INPUT_MARGIN: usize = 32;

/// Room that one round takes at most: three literals, the longest copy, and its last whole chunk.
const ROOM_MARGIN: usize = 3 + 258 + CHUNK_LEN;

/// Symbols copied at once.
const CHUNK_LEN: usize = 16;

/// Whether there is enough of both for a round.
pub(super) fn fits<S>(flow: &Flow<'_, '_, S>) -> bool {
    flow.input.len() >= INPUT_MARGIN && flow.buffer.len() - flow.filled >= ROOM_MARGIN
}

const LITERAL_MASK: u64 = (1 << table::LITERAL_BITS) - 1;
const DISTANCE_MASK: u64 = (1 << table::DISTANCE_BITS) - 1;

/// The bits under way; above `count`, `hold` has bits that the next refill brings again.
struct Reader<'a> {
    input: &'a [u8],
    hold: u64,
    count: u32,
}

impl Reader<'_> {
    /// Have 56 bits at least, given eight bytes of input.
    #[inline(always)]
    fn refill(&mut self) {
        let Some(word) = self.input.first_chunk() else { return };
        self.hold |= u64::from_le_bytes(*word) << self.count;
        let taken = (63 - self.count) >> 3;
        self.input = self.input.get(taken as usize..).unwrap_or_default();
        self.count |= 56;
    }

    #[inline(always)]
    fn drop(&mut self, entry: u32) {
        self.hold >>= table::bits(entry);
        self.count = self.count.wrapping_sub(table::bits(entry));
    }

    /// The entry that a link to a sub-table leads to.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "a mask keeps the index in the table")]
    fn follow<const N: usize>(&mut self, link: u32, table: &[u32; N]) -> u32 {
        let start = (link >> 16) as usize;
        let sub_bits = link >> 8 & 0xf;
        self.drop(link);
        let index = start + (self.hold & !(u64::MAX << sub_bits)) as usize;
        table[index & (N - 1)]
    }

    /// How far back a copy reaches.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "a mask keeps the index in the table")]
    fn distance(&mut self, codes: &Codes) -> Result<usize, BadStream> {
        let mut entry = codes.distances[(self.hold & DISTANCE_MASK) as usize];
        if self.count < 28 {
            self.refill();
            entry = codes.distances[(self.hold & DISTANCE_MASK) as usize];
        }
        if entry & table::EXCEPTIONAL != 0 {
            if entry & table::SUB_TABLE == 0 {
                return Err(BadStream("invalid distance code"));
            }
            entry = self.follow(entry, &codes.distances);
            if entry & table::EXCEPTIONAL != 0 {
                return Err(BadStream("invalid distance code"));
            }
        }
        let distance = table::value(entry, self.hold);
        self.drop(entry);
        Ok(distance)
    }
}

/// Symbols while input and room have a margin. Ends before the end of the block, and before what
/// is wrong: the careful loop says so.
///
/// Not called directly but through [`crate::sys::fast_symbols`], which has it compiled for the
/// processor that we are on.
#[inline(always)]
#[expect(
    clippy::indexing_slicing,
    reason = "masks keep indices in tables, the margin keeps them in the buffer"
)]
pub(crate) fn symbols<S: Symbol>(
    codes: &Codes,
    flow: &mut Flow<'_, '_, S>,
) -> Result<(), BadStream> {
    if !fits(flow) {
        return Ok(());
    }
    let (buffer, floor, mut at) = (&mut *flow.buffer, flow.floor, flow.filled);
    let mut reader = Reader { input: flow.input, hold: flow.bits.hold, count: flow.bits.count };
    reader.refill();
    let mut entry = codes.literals[(reader.hold & LITERAL_MASK) as usize];
    // In each round `entry` is that of the next bits, of which there are 56 at least.
    while reader.input.len() >= INPUT_MARGIN
        && let Some(room) = room_at(buffer, at)
    {
        if entry & table::LITERAL != 0 {
            room[0] = S::of((entry >> 16) as u8);
            at += 1;
            reader.drop(entry);
            entry = codes.literals[(reader.hold & LITERAL_MASK) as usize];
            if entry & table::LITERAL != 0 {
                room[1] = S::of((entry >> 16) as u8);
                at += 1;
                reader.drop(entry);
                entry = codes.literals[(reader.hold & LITERAL_MASK) as usize];
                if entry & table::LITERAL != 0 {
                    room[2] = S::of((entry >> 16) as u8);
                    at += 1;
                    reader.drop(entry);
                    reader.refill();
                    entry = codes.literals[(reader.hold & LITERAL_MASK) as usize];
                    continue;
                }
            }
        }
        // 34 bits are left at least, 20 are needed.
        let before = (reader.hold, reader.count);
        if entry & table::EXCEPTIONAL != 0 {
            if entry & table::SUB_TABLE == 0 {
                break;
            }
            entry = reader.follow(entry, &codes.literals);
            if entry & table::LITERAL != 0 {
                buffer[at] = S::of((entry >> 16) as u8);
                at += 1;
                reader.drop(entry);
                reader.refill();
                entry = codes.literals[(reader.hold & LITERAL_MASK) as usize];
                continue;
            }
            if entry & table::EXCEPTIONAL != 0 {
                (reader.hold, reader.count) = before;
                break;
            }
        }
        let len = table::value(entry, reader.hold);
        reader.drop(entry);
        let distance = reader.distance(codes)?;
        if distance > at - floor {
            return Err(BadStream("invalid distance too far back"));
        }
        // The next symbol is looked up while the copy goes on.
        reader.refill();
        entry = codes.literals[(reader.hold & LITERAL_MASK) as usize];
        copy(buffer, at, len, distance);
        at += len;
    }
    let Reader { input, hold, count } = reader;
    *flow.input = input;
    flow.bits = Bits { hold: hold & !(u64::MAX << count), count };
    flow.filled = at;
    Ok(())
}

/// Copy `len` symbols to `at` from `distance` before it, and perhaps up to a chunk more. The caller
/// checked the distance and keeps a margin of room.
#[inline(always)]
fn copy<S: Symbol>(buffer: &mut [S], at: usize, len: usize, distance: usize) {
    let mut from = at - distance;
    let (mut to, end) = (at, at + len);
    if distance == 1 {
        let chunk = [buffer.get(from).copied().unwrap_or_default(); CHUNK_LEN];
        while to < end {
            put_chunk(buffer, to, chunk);
            to += CHUNK_LEN;
        }
        return;
    }
    // A chunk that overlaps with what it is copied to leaves `distance` right symbols more.
    let step = distance.min(CHUNK_LEN);
    loop {
        put_chunk(buffer, to, chunk_at(buffer, from));
        to += step;
        from += step;
        if to >= end {
            break;
        }
    }
}

/// What a round may write to.
#[inline(always)]
fn room_at<S>(buffer: &mut [S], at: usize) -> Option<&mut [S; ROOM_MARGIN]> {
    buffer.get_mut(at..)?.first_chunk_mut()
}

/// Arrays, as slices are copied by a call.
#[inline(always)]
fn chunk_at<S: Symbol>(buffer: &[S], at: usize) -> [S; CHUNK_LEN] {
    let chunk = buffer.get(at..).and_then(|rest| rest.first_chunk());
    chunk.copied().unwrap_or([S::default(); CHUNK_LEN])
}

#[inline(always)]
fn put_chunk<S: Symbol>(buffer: &mut [S], at: usize, chunk: [S; CHUNK_LEN]) {
    if let Some(to) = buffer.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *to = chunk;
    }
}
