//! A block with care: its codes, and its symbols where input or room may end at any of them.

use super::BadStream;
use super::bits::Bits;
use super::flow::Flow;
use super::symbol::Symbol;
use super::table::{self, Gaps};

/// The codes of a block.
pub(crate) struct Codes {
    pub(super) literals: [u32; table::LITERAL_TABLE_LEN],
    pub(super) distances: [u32; table::DISTANCE_TABLE_LEN],
    is_fixed: bool,
}

impl Default for Codes {
    fn default() -> Self {
        Self {
            literals: [0; table::LITERAL_TABLE_LEN],
            distances: [0; table::DISTANCE_TABLE_LEN],
            is_fixed: false,
        }
    }
}

impl Codes {
    /// The codes that need not be told.
    pub(super) fn set_fixed(&mut self) -> Result<(), BadStream> {
        if self.is_fixed {
            return Ok(());
        }
        let mut lens = [8; table::LITERALS_MAX];
        lens.iter_mut().take(256).skip(144).for_each(|len| *len = 9);
        lens.iter_mut().take(280).skip(256).for_each(|len| *len = 7);
        self.set(&lens, &[5; table::DISTANCES_MAX])?;
        self.is_fixed = true;
        Ok(())
    }

    fn set(&mut self, literal_lens: &[u8], distance_lens: &[u8]) -> Result<(), BadStream> {
        self.is_fixed = false;
        table::fill(
            &mut self.literals,
            table::LITERAL_BITS,
            literal_lens,
            &table::LITERAL_ENTRIES,
            Gaps::Lone,
            BadStream("invalid literal/lengths set"),
        )?;
        table::fill(
            &mut self.distances,
            table::DISTANCE_BITS,
            distance_lens,
            &table::DISTANCE_ENTRIES,
            Gaps::Lone,
            BadStream("invalid distances set"),
        )
    }
}

/// Most codes that a block may name; zlib's limits.
const LITERALS_MAX: usize = 286;
const DISTANCES_MAX: usize = 30;

/// In which order the lengths of the length code come.
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// The code lengths of a block, while they come.
pub(super) struct Lengths {
    /// Literals, distances, lengths of the length code; zeros until told.
    counts: [usize; 3],
    length_lens: [u8; 19],
    length_table: [u32; table::LENGTH_CODE_TABLE_LEN],
    lens: [u8; LITERALS_MAX + DISTANCES_MAX],
    /// How many of `length_lens`, then of `lens`, are known.
    length_len_count: usize,
    len_count: usize,
}

impl Default for Lengths {
    fn default() -> Self {
        Self {
            counts: [0; 3],
            length_lens: [0; 19],
            length_table: [0; table::LENGTH_CODE_TABLE_LEN],
            lens: [0; LITERALS_MAX + DISTANCES_MAX],
            length_len_count: 0,
            len_count: 0,
        }
    }
}

impl Lengths {
    /// Take what comes; once all is there, set the codes: `true`.
    pub(super) fn take(
        &mut self,
        bits: &mut Bits,
        input: &mut &[u8],
        codes: &mut Codes,
    ) -> Result<bool, BadStream> {
        if self.counts == [0; 3] {
            let Some(sizes) = bits.take(14, input) else { return Ok(false) };
            let size = |at: u32, bits: u32| (sizes >> at) as usize & ((1 << bits) - 1);
            self.counts = [257 + size(0, 5), 1 + size(5, 5), 4 + size(10, 4)];
        }
        let [literals, distances, length_lens] = self.counts;
        if literals > LITERALS_MAX || distances > DISTANCES_MAX {
            return Err(BadStream("too many length or distance symbols"));
        }
        while self.length_len_count < length_lens {
            let Some(len) = bits.take(3, input) else { return Ok(false) };
            let place = ORDER.get(self.length_len_count).copied().unwrap_or(0);
            self.length_lens.iter_mut().skip(place).take(1).for_each(|to| *to = len as u8);
            self.length_len_count += 1;
            if self.length_len_count == length_lens {
                self.fill_length_table()?;
            }
        }
        while self.len_count < literals + distances {
            if !self.take_run(literals + distances, bits, input)? {
                return Ok(false);
            }
        }
        let (literal_lens, rest) = self.lens.split_at_checked(literals).unwrap_or_default();
        if literal_lens.get(256) == Some(&0) {
            return Err(BadStream("invalid code -- missing end-of-block"));
        }
        codes.set(literal_lens, rest.get(..distances).unwrap_or_default())?;
        Ok(true)
    }

    fn fill_length_table(&mut self) -> Result<(), BadStream> {
        table::fill(
            &mut self.length_table,
            table::LENGTH_CODE_BITS,
            &self.length_lens,
            &table::LENGTH_CODE_ENTRIES,
            Gaps::Never,
            BadStream("invalid code lengths set"),
        )
    }

    /// Take one length, or a run of equal ones; `false` if it has not come yet.
    fn take_run(
        &mut self,
        count: usize,
        bits: &mut Bits,
        input: &mut &[u8],
    ) -> Result<bool, BadStream> {
        bits.refill(input);
        let index = bits.hold as usize & (table::LENGTH_CODE_TABLE_LEN - 1);
        let entry = self.length_table.get(index).copied().unwrap_or_default();
        let symbol = entry >> 16;
        let (base, extra) = match symbol {
            16 => (3, 2),
            17 => (3, 3),
            18 => (11, 7),
            _ => (1, 0),
        };
        let code_bits = table::bits(entry);
        if bits.count < code_bits + extra {
            return Ok(false);
        }
        bits.drop(code_bits);
        let run = base + (bits.hold & ((1 << extra) - 1)) as usize;
        bits.drop(extra);
        let len = match symbol {
            16 => {
                let before = self.len_count.checked_sub(1).and_then(|at| self.lens.get(at));
                *before.ok_or(BadStream("invalid bit length repeat"))?
            }
            17 | 18 => 0,
            len => len as u8,
        };
        if self.len_count + run > count {
            return Err(BadStream("invalid bit length repeat"));
        }
        self.lens.iter_mut().skip(self.len_count).take(run).for_each(|to| *to = len);
        self.len_count += run;
        Ok(true)
    }
}

/// Why [`symbols`] ended.
pub(super) enum Stop {
    NeedsInput,
    NeedsRoom,
    /// There was no room for all of a copy.
    Copy {
        len: usize,
        distance: usize,
    },
    /// There is room and input for the fast loop again.
    FastAgain,
    End,
}

/// Symbols one by one; each is taken as a whole or not at all.
pub(super) fn symbols<S: Symbol>(
    codes: &Codes,
    flow: &mut Flow<'_, '_, S>,
) -> Result<Stop, BadStream> {
    let start = flow.filled;
    loop {
        // The first symbol is the one that the fast loop left.
        if flow.filled > start && super::fast::fits(flow) {
            return Ok(Stop::FastAgain);
        }
        flow.bits.refill(flow.input);
        let mut ahead = flow.bits;
        let Some(entry) = entry(&codes.literals, table::LITERAL_BITS, &mut ahead) else {
            return Ok(Stop::NeedsInput);
        };
        if entry & table::LITERAL != 0 {
            let Some(to) = flow.buffer.get_mut(flow.filled) else { return Ok(Stop::NeedsRoom) };
            *to = S::of((entry >> 16) as u8);
            flow.filled += 1;
            ahead.drop(table::bits(entry));
            flow.bits = ahead;
            continue;
        }
        if entry & table::END_OF_BLOCK != 0 {
            ahead.drop(table::bits(entry));
            flow.bits = ahead;
            return Ok(Stop::End);
        }
        let Some((len, distance)) = pair(codes, entry, &mut ahead)? else {
            return Ok(Stop::NeedsInput);
        };
        flow.bits = ahead;
        if distance > flow.filled - flow.floor {
            return Err(BadStream("invalid distance too far back"));
        }
        let room = flow.buffer.len() - flow.filled;
        copy(flow, len.min(room), distance);
        if len > room {
            return Ok(Stop::Copy { len: len - room, distance });
        }
    }
}

/// Length and distance of the copy that `entry` begins; `None` if not all of it has come.
fn pair(codes: &Codes, entry: u32, bits: &mut Bits) -> Result<Option<(usize, usize)>, BadStream> {
    if entry & table::EXCEPTIONAL != 0 {
        return Err(BadStream("invalid literal/length code"));
    }
    let len = table::value(entry, bits.hold);
    bits.drop(table::bits(entry));
    let Some(entry) = self::entry(&codes.distances, table::DISTANCE_BITS, bits) else {
        return Ok(None);
    };
    if entry & table::EXCEPTIONAL != 0 {
        return Err(BadStream("invalid distance code"));
    }
    let distance = table::value(entry, bits.hold);
    bits.drop(table::bits(entry));
    Ok(Some((len, distance)))
}

/// The entry for the next bits, those of a link to its table dropped; `None` if not all have come.
fn entry<const N: usize>(table: &[u32; N], table_bits: u32, bits: &mut Bits) -> Option<u32> {
    let index = bits.hold as usize & ((1 << table_bits) - 1);
    let mut entry = table.get(index).copied()?;
    if entry & table::SUB_TABLE != 0 {
        if bits.count < table_bits {
            return None;
        }
        bits.drop(table_bits);
        let index = bits.hold as usize & ((1 << (entry >> 8 & 0xf)) - 1);
        entry = table.get((entry >> 16 & 0x7fff) as usize + index).copied()?;
    }
    (table::bits(entry) <= bits.count).then_some(entry)
}

/// Append `len` symbols that stand `distance` before the end; the caller checked both.
pub(super) fn copy<S: Symbol>(flow: &mut Flow<'_, '_, S>, len: usize, distance: usize) {
    for at in flow.filled..flow.filled + len {
        let symbol = flow.buffer.get(at - distance).copied().unwrap_or_default();
        if let Some(to) = flow.buffer.get_mut(at) {
            *to = symbol;
        }
    }
    flow.filled += len;
}
