//! Where a block may begin, in the middle of a stream of which nothing before is known.
//!
//! Only blocks with codes of their own are looked for, and of them those that are not their member's
//! last: their heads are long and hardly ever right by chance. What is found is a guess nevertheless.

use super::bits::Bits;
use super::block::{Codes, Lengths};

/// The bits that such a block begins with: not the last, codes of its own.
const HEAD: u32 = 0b100;

/// Most that either count of codes in a block's head may say.
const COUNT_MAX: u32 = 29;

/// Bits before the lengths of the length code: head and three counts.
const COUNTS_END: u32 = 3 + 14;

/// The first place not before bit `from` of `bytes` where a block may begin, in bits.
pub(crate) fn find_block(bytes: &[u8], from: usize) -> Option<usize> {
    let mut codes = Box::default();
    let starts = bytes.windows(size_of::<u128>()).enumerate().skip(from / 8);
    for (at, window) in starts {
        let word = u128::from_le_bytes(*window.first_chunk()?);
        let low = word as u32;
        let first = if at == from / 8 { (from % 8) as u32 } else { 0 };
        for shift in first..8 {
            if may_begin(low >> shift)
                && is_complete(word >> shift)
                && has_codes(bytes, 8 * at + shift as usize, &mut codes)
            {
                return Some(8 * at + shift as usize);
            }
        }
    }
    None
}

/// By its head and its counts.
fn may_begin(bits: u32) -> bool {
    bits & 7 == HEAD && bits >> 3 & 31 <= COUNT_MAX && bits >> 8 & 31 <= COUNT_MAX
}

/// By the lengths of the length code, which must leave no gap.
fn is_complete(word: u128) -> bool {
    let count = 4 + (word >> 13 & 15) as u32;
    let lens = (word >> COUNTS_END) as u64 & !(u64::MAX << (3 * count));
    let shares = (0..5).map(|group| {
        let four = (lens >> (12 * group)) as usize & (SHARES.len() - 1);
        SHARES.get(four).copied().unwrap_or_default()
    });
    shares.sum::<u16>() == SHARE_ALL
}

/// Of all code words there can be, how many four lengths of three bits take together.
#[expect(clippy::indexing_slicing, reason = "a constant is checked when it is made")]
const SHARES: [u16; 1 << 12] = {
    let mut shares = [0; 1 << 12];
    let mut four = 0;
    while four < shares.len() {
        let mut lens = four;
        while lens > 0 {
            if lens & 7 > 0 {
                shares[four] += SHARE_ALL >> (lens & 7);
            }
            lens >>= 3;
        }
        four += 1;
    }
    shares
};
const SHARE_ALL: u16 = 128;

/// By all its codes, as the decoder reads them.
fn has_codes(bytes: &[u8], place: usize, codes: &mut Codes) -> bool {
    let lens_at = place + 3;
    let Some(mut input) = bytes.get(lens_at / 8..) else { return false };
    let mut bits = Bits::default();
    let skipped = bits.take((lens_at % 8) as u32, &mut input).is_some();
    skipped && Lengths::default().take(&mut bits, &mut input, codes) == Ok(true)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::deflate::{Event, Inflate};

    /// All places found are where blocks begin, and of those none is left out that can be found.
    #[test]
    fn blocks_are_found_where_they_begin() {
        let mut state = 1_u32;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 27) as u8
        });
        let content: Vec<u8> = noise.take(400_000).collect();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(&content).unwrap();
        let blob = encoder.finish().unwrap();
        let (mut decoder, mut input) = (Inflate::new(), blob.as_slice());
        let (mut buffer, mut filled) = (vec![0_u8; 500_000], 0);
        let mut begun = Vec::new();
        while let Event::Block(place) = decoder.step(&mut input, &mut buffer, &mut filled).unwrap()
        {
            begun.push(place.in_bits() as usize);
        }
        let mut found = Vec::new();
        while let Some(place) = find_block(&blob, found.last().map_or(0, |last| last + 1)) {
            found.push(place);
        }
        // The last one is not looked for.
        begun.pop();
        assert!(begun.len() > 5, "{begun:?}");
        assert_eq!(found, begun);
    }
}
