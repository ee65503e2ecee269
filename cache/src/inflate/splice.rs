//! A span as a complete DEFLATE stream, built around its compressed bytes without moving them.
//!
//! libdeflate decodes only whole streams: it takes neither a window nor a start inside a byte. So we
//! put in front of the span its window as a stored block, then empty blocks until the bit position
//! is right, and behind it an empty final block:
//!
//! ```text
//! stored block: window | filler | span: first bits merged … last bits kept | empty final block
//! ```
//!
//! The output is the window followed by the span.

use spanfs_layer::ztoc::WINDOW_LEN;

/// Bytes in front of a span's data that its framing may need: let fetched bytes leave them free, and
/// the span is decoded where it lies.
pub const HEADROOM: usize = 33 * 1024;

/// Bytes behind a span's data that its framing may need.
const TAILROOM: usize = 2;

const STORED_HEADER_LEN: usize = 5;

/// How a span's compressed bytes end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Another span follows; that many high-order bits of the last byte belong to it.
    Inside(u8),
    /// The blob ends.
    Blob,
    /// The table ends, but the blob goes on with more padding: what the last byte's bits belong to
    /// is not known.
    Unknown,
}

/// What surrounds a span.
#[derive(Clone, Copy)]
pub(super) struct Edges<'a> {
    /// High-order bits of the first byte that belong to the span; 0 = all.
    pub(super) bits: u8,
    /// How it ends.
    pub(super) end: End,
    /// Output before it.
    pub(super) window: Option<&'a [u8; WINDOW_LEN]>,
}

/// A framed span. The bytes that the frame changed come back with [`Splice::into_data`].
pub(super) struct Splice {
    bytes: Vec<u8>,
    /// Where the stream begins.
    begin: usize,
    /// Where the span's data begins.
    data: usize,
    data_len: usize,
    first: u8,
    last: u8,
    /// Window bytes at the start of the output.
    window_len: usize,
}

impl Splice {
    /// Frame the span at `bytes[headroom..]`. Gives the bytes back where the frame does not fit:
    /// spans below two bytes, or
    /// whose last bit is not known.
    pub(super) fn new(
        mut bytes: Vec<u8>,
        mut headroom: usize,
        edges: Edges<'_>,
    ) -> Result<Self, Vec<u8>> {
        let Edges { bits, end, window } = edges;
        let data_len = bytes.len().saturating_sub(headroom);
        let filler = Filler::up_to((8 - bits) % 8);
        let window_len = window.map_or(0, |window| window.len());
        let stored_len = if window.is_some() { STORED_HEADER_LEN + window_len } else { 0 };
        let front_len = stored_len + filler.whole().len();
        let (Some(&first), Some(&last)) = (bytes.get(headroom), bytes.last()) else {
            return Err(bytes);
        };
        if data_len < 2 || end == End::Unknown {
            return Err(bytes);
        }
        if headroom < front_len {
            bytes = moved(&bytes, headroom);
            headroom = HEADROOM;
        }
        let begin = headroom - front_len;
        if let Some((front, data)) = bytes.split_at_mut_checked(headroom) {
            if let Some(front) = front.get_mut(begin..) {
                write_front(front, window, filler.whole());
            }
            if let (Some(byte), true) = (data.first_mut(), bits != 0) {
                *byte = *byte & !low_mask(8 - bits) | filler.partial();
            }
        }
        if let End::Inside(next_bits) = end {
            append_end(&mut bytes, next_bits);
        }
        Ok(Self { bytes, begin, data: headroom, data_len, first, last, window_len })
    }

    /// The stream: window, filler, span, end.
    pub(super) fn stream(&self) -> &[u8] {
        self.bytes.get(self.begin..).unwrap_or_default()
    }

    /// Bytes of window at the start of the output.
    pub(super) fn window_len(&self) -> usize {
        self.window_len
    }

    /// The span's bytes as they were, and where they begin.
    pub(super) fn into_data(mut self) -> (Vec<u8>, usize) {
        self.bytes.truncate(self.data + self.data_len);
        if let Some(byte) = self.bytes.last_mut() {
            *byte = self.last;
        }
        if let Some(byte) = self.bytes.get_mut(self.data) {
            *byte = self.first;
        }
        (self.bytes, self.data)
    }
}

/// The data again, behind enough room.
fn moved(bytes: &[u8], headroom: usize) -> Vec<u8> {
    let data = bytes.get(headroom..).unwrap_or_default();
    let mut roomy = Vec::with_capacity(HEADROOM + data.len() + TAILROOM);
    roomy.resize(HEADROOM, 0);
    roomy.extend_from_slice(data);
    roomy
}

fn write_front(front: &mut [u8], window: Option<&[u8; WINDOW_LEN]>, filler: &[u8]) {
    const LEN: [u8; 2] = (WINDOW_LEN as u16).to_le_bytes();
    let mut rest = front;
    for part in [
        window.map(|_| [0, LEN[0], LEN[1], !LEN[0], !LEN[1]]).as_slice().as_flattened(),
        window.map_or(&[], |window| window.as_slice()),
        filler,
    ] {
        let Some((to, behind)) = rest.split_at_mut_checked(part.len()) else { return };
        to.copy_from_slice(part);
        rest = behind;
    }
}

/// Keep the bits of the last byte that are ours, then an empty fixed-Huffman block marked final.
fn append_end(bytes: &mut Vec<u8>, next_bits: u8) {
    const FINAL_EMPTY_BLOCK: u32 = 0b011;
    const FINAL_EMPTY_BLOCK_BITS: u32 = 10;
    if next_bits == 0 {
        bytes.extend_from_slice(&(FINAL_EMPTY_BLOCK as u16).to_le_bytes());
        return;
    }
    let ours = 8 - next_bits;
    let Some(last) = bytes.pop() else { return };
    let end = u32::from(last & low_mask(ours)) | FINAL_EMPTY_BLOCK << ours;
    let len = (u32::from(ours) + FINAL_EMPTY_BLOCK_BITS).div_ceil(8) as usize;
    bytes.extend(end.to_le_bytes().into_iter().take(len));
}

fn low_mask(bits: u8) -> u8 {
    u8::MAX.checked_shr(8 - u32::from(bits)).unwrap_or(0)
}

/// Blocks that emit nothing and end at a wanted bit of a byte.
struct Filler {
    bytes: [u8; 16],
    bits: usize,
}

/// An empty fixed-Huffman block: type 01, end-of-block code of seven zeros. Ten bits.
const EVEN_BLOCK: u128 = 0b010;
const EVEN_BLOCK_BITS: usize = 10;

/// An empty dynamic block of an odd number of bits.
///
/// HLIT 257, HDIST 1, 19 code-length codes of which only those of 18 and 1 have a length, 1: so
/// "1" is the bit 0 and "18" the bit 1. Then 256 absent literals as runs of 138 and 118, length 1
/// for end-of-block, length 1 for distance 0, and the end-of-block code itself, the bit 0.
const ODD_BLOCK: u128 = {
    const TYPE: u128 = 0b100; // not final, type 10; HLIT and HDIST are zeros
    const CODE_COUNT: u128 = (19 - 4) << 13;
    // Lengths stand in the order 16 17 18 0 8 7 9 6 10 5 11 4 12 3 13 2 14 1 15, three bits each.
    const LENGTH_OF_18: u128 = 1 << (17 + 2 * 3);
    const LENGTH_OF_1: u128 = 1 << (17 + 17 * 3);
    const RUNS_AT: u32 = 17 + 19 * 3;
    const RUN_OF_138: u128 = (1 | 127 << 1) << RUNS_AT;
    const RUN_OF_118: u128 = (1 | 107 << 1) << (RUNS_AT + 8);
    TYPE | CODE_COUNT | LENGTH_OF_18 | LENGTH_OF_1 | RUN_OF_138 | RUN_OF_118
};
const ODD_BLOCK_BITS: usize = 17 + 19 * 3 + 2 * 8 + 3;

impl Filler {
    /// Blocks whose bits end, modulo 8, at `bit`.
    fn up_to(bit: u8) -> Self {
        let (mut acc, mut bits) = (0, 0);
        if bit % 2 == 1 {
            (acc, bits) = (ODD_BLOCK, ODD_BLOCK_BITS);
        }
        while bits % 8 != usize::from(bit) {
            acc |= EVEN_BLOCK << bits;
            bits += EVEN_BLOCK_BITS;
        }
        Self { bytes: acc.to_le_bytes(), bits }
    }

    fn whole(&self) -> &[u8] {
        self.bytes.get(..self.bits / 8).unwrap_or_default()
    }

    /// The bits of the byte shared with the span.
    fn partial(&self) -> u8 {
        self.bytes.get(self.bits / 8).copied().unwrap_or(0)
    }
}
