//! Huffman codes as tables: the next bits of the stream index them.
//!
//! An entry is 32 bits. Its low byte is always how many bits of the stream it takes.
//!
//! ```text
//! literal     1 | ······· | byte: 8 | ········ | bits: 8
//! length      0 | base: 15          | 0 ··· code bits: 4 | code and extra bits: 8
//! distance    0 | base: 15          | 0 ··· code bits: 4 | code and extra bits: 8
//! sub-table   0 | start: 15         | 1 1 ·· its bits: 4 | bits: 8
//! end, bad    0 | ···               | 1 0 e · ········   | bits: 8
//! ```

#![expect(
    clippy::indexing_slicing,
    reason = "lengths are at most 15, symbols below those of `entries`, codes within their bits"
)]

use super::BadStream;

pub(super) const LITERAL: u32 = 1 << 31;
pub(super) const EXCEPTIONAL: u32 = 1 << 15;
pub(super) const SUB_TABLE: u32 = 1 << 14;
pub(super) const END_OF_BLOCK: u32 = 1 << 13;

/// Longest code.
const BITS_MAX: usize = 15;

/// Bits that index a table before any sub-table.
pub(super) const LITERAL_BITS: u32 = 11;
pub(super) const DISTANCE_BITS: u32 = 8;
pub(super) const LENGTH_CODE_BITS: u32 = 7;

/// Powers of two, so that a mask keeps an index inside; complete codes need at most 2,342 and 402.
pub(super) const LITERAL_TABLE_LEN: usize = 4096;
pub(super) const DISTANCE_TABLE_LEN: usize = 512;
pub(super) const LENGTH_CODE_TABLE_LEN: usize = 1 << LENGTH_CODE_BITS;

/// Symbols of the fixed codes; more than a dynamic block may name.
pub(super) const LITERALS_MAX: usize = 288;
pub(super) const DISTANCES_MAX: usize = 32;

/// Bits, from the lowest, that an entry takes from the stream.
pub(super) fn bits(entry: u32) -> u32 {
    entry & 0xff
}

/// The byte that a literal's entry stands for.
pub(super) fn literal(entry: u32) -> u8 {
    (entry >> 16) as u8
}

/// The number that an entry and the stream's next bits give: its base and the extra bits.
pub(super) fn value(entry: u32, hold: u64) -> usize {
    let taken = hold & !u64::MAX.wrapping_shl(entry);
    (entry >> 16) as usize + taken.wrapping_shr(entry >> 8) as usize
}

/// What a symbol means, as an entry without its code's bits: base and extra bits.
const fn number(base: u32, extra: u32) -> u32 {
    base << 16 | extra
}

const BAD: u32 = EXCEPTIONAL;

pub(super) const LITERAL_ENTRIES: [u32; LITERALS_MAX] = {
    let mut entries = [BAD; LITERALS_MAX];
    let mut symbol = 0;
    while symbol < 256 {
        entries[symbol] = LITERAL | (symbol as u32) << 16;
        symbol += 1;
    }
    entries[256] = EXCEPTIONAL | END_OF_BLOCK;
    let (mut symbol, mut base) = (257, 3);
    while symbol < 285 {
        let extra = if symbol < 265 { 0 } else { (symbol - 261) / 4 };
        entries[symbol] = number(base, extra as u32);
        base += 1 << extra;
        symbol += 1;
    }
    entries[285] = number(258, 0);
    entries
};

pub(super) const DISTANCE_ENTRIES: [u32; DISTANCES_MAX] = {
    let mut entries = [BAD; DISTANCES_MAX];
    let (mut symbol, mut base) = (0, 1);
    while symbol < 30 {
        let extra = if symbol < 4 { 0 } else { (symbol - 2) / 2 };
        entries[symbol] = number(base, extra as u32);
        base += 1 << extra;
        symbol += 1;
    }
    entries
};

/// The code of the code lengths themselves: symbols are their own meaning.
pub(super) const LENGTH_CODE_ENTRIES: [u32; 19] = {
    let mut entries = [0; 19];
    let mut symbol = 0;
    while symbol < 19 {
        entries[symbol] = number(symbol as u32, 0);
        symbol += 1;
    }
    entries
};

/// Whether a code may leave bit patterns without a symbol.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Gaps {
    Never,
    /// A lone code of one bit.
    Lone,
}

/// Fill `table`, indexed by `table_bits` bits, for the code whose lengths are `lens`.
pub(super) fn fill<const N: usize>(
    table: &mut [u32; N],
    table_bits: u32,
    lens: &[u8],
    entries: &[u32],
    gaps: Gaps,
    bad: BadStream,
) -> Result<(), BadStream> {
    let mut counts = [0_u16; BITS_MAX + 1];
    for &len in lens {
        counts[usize::from(len)] += 1;
    }
    counts[0] = 0;
    let len_max = counts.iter().rposition(|&count| count > 0).unwrap_or(0);
    let mut left = 1_i32;
    for &count in &counts[1..] {
        left = 2 * left - i32::from(count);
        if left < 0 {
            return Err(bad);
        }
    }
    if left > 0 {
        // As zlib has it, no code at all is no fault before it is used: each bit stands for symbol 0.
        if len_max > 1 || gaps == Gaps::Never && len_max == 1 {
            return Err(bad);
        }
        table.fill(BAD | 1);
    }
    let (symbols, count) = sorted(lens, &counts);
    let mut filler = Filler { table, table_bits, end: 1 << table_bits, code: 0, counts };
    let (mut filled_bits, table_bits) = (0, table_bits as usize);
    for &symbol in &symbols[..count] {
        let symbol = usize::from(symbol);
        let len = usize::from(lens[symbol]);
        while filled_bits < len.min(table_bits) {
            // What shorter codes filled is the same whatever the next bit.
            filler.table.copy_within(..1 << filled_bits, 1 << filled_bits);
            filled_bits += 1;
        }
        filler.put(entries[symbol], len)?;
    }
    if left == 0 {
        while filled_bits < table_bits {
            table.copy_within(..1 << filled_bits, 1 << filled_bits);
            filled_bits += 1;
        }
    } else if count > 0 {
        // The lone code is the bit 0: every other entry.
        let lone = table[0];
        table[..1 << table_bits].iter_mut().step_by(2).for_each(|entry| *entry = lone);
    }
    Ok(())
}

/// Symbols that have a code, by its length and their number: the order of the codes. And how many.
fn sorted(lens: &[u8], counts: &[u16; BITS_MAX + 1]) -> ([u16; LITERALS_MAX], usize) {
    let mut next = [0_u16; BITS_MAX + 2];
    for len in 1..=BITS_MAX {
        next[len + 1] = next[len] + counts[len];
    }
    let count = usize::from(next[BITS_MAX + 1]);
    let mut symbols = [0; LITERALS_MAX];
    for (symbol, &len) in lens.iter().enumerate().filter(|(_, len)| **len > 0) {
        let place = &mut next[usize::from(len)];
        symbols[usize::from(*place)] = symbol as u16;
        *place += 1;
    }
    (symbols, count)
}

struct Filler<'a, const N: usize> {
    table: &'a mut [u32; N],
    table_bits: u32,
    /// Behind the last sub-table.
    end: usize,
    /// The next code, its first bit lowest.
    code: usize,
    /// Codes of each length that are still to come.
    counts: [u16; BITS_MAX + 1],
}

impl<const N: usize> Filler<'_, N> {
    fn put(&mut self, entry: u32, len: usize) -> Result<(), BadStream> {
        let table_bits = self.table_bits as usize;
        if len <= table_bits {
            self.table[self.code] = with_code(entry, len);
        } else {
            let first = self.code & ((1 << table_bits) - 1);
            let head = self.code >> table_bits;
            if head == 0 {
                self.begin_sub_table(first, len)?;
            }
            let link = self.table[first];
            let (start, sub_bits) = ((link >> 16) as usize, link >> 8 & 0xf);
            let sub_table = self.table.get_mut(start..start + (1 << sub_bits));
            let rest = len - table_bits;
            sub_table
                .unwrap_or_default()
                .iter_mut()
                .skip(head)
                .step_by(1 << rest)
                .for_each(|to| *to = with_code(entry, rest));
        }
        self.counts[len] -= 1;
        // Count up, the first bit being the highest in value.
        let zeros = !self.code & ((1 << len) - 1);
        if let Some(highest) = zeros.checked_ilog2() {
            self.code = self.code & ((1 << highest) - 1) | 1 << highest;
        }
        Ok(())
    }

    /// A table for all codes that begin with `first`, of which the next has `len` bits.
    fn begin_sub_table(&mut self, first: usize, len: usize) -> Result<(), BadStream> {
        let table_bits = self.table_bits as usize;
        let mut sub_bits = len - table_bits;
        let mut covered = usize::from(self.counts[len]);
        while covered < 1 << sub_bits && table_bits + sub_bits < BITS_MAX {
            sub_bits += 1;
            covered = 2 * covered + usize::from(self.counts[table_bits + sub_bits]);
        }
        let start = self.end;
        self.end += 1 << sub_bits;
        if self.end > N {
            return Err(BadStream("a code has too many long words"));
        }
        let link = EXCEPTIONAL | SUB_TABLE | (start as u32) << 16 | (sub_bits as u32) << 8;
        self.table[first] = link | self.table_bits;
        Ok(())
    }
}

/// An entry for a code of `len` bits.
fn with_code(entry: u32, len: usize) -> u32 {
    let len = len as u32;
    // Only numbers need to know where their extra bits begin.
    let code_bits = if entry & (LITERAL | EXCEPTIONAL) == 0 { len << 8 } else { 0 };
    entry + code_bits + len
}
