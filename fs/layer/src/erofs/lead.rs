//! Leads: where in an index it is said which device holds a chunk.
//!
//! The kernel looks a chunk up whenever it reads some of it that it does not have. So who owns the
//! index, and has the same bytes in two devices, can lead later reads to the other one while the index
//! is mounted, by changing one number. To know which, an index carries a table of them behind the image,
//! in the order of the bytes in the layer file:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 4 | first block of the chunk in the layer file |
//! | 4 | 4 | offset of the device number in the index |
//! | 8 | 2 | blocks |
//! | 10 | 2 | device number as the index was written |

use alloc::vec::Vec;

use super::BLOCK_BITS;

/// log2 of the largest chunk that can be led elsewhere, in bytes: a quarter of a usual span.
pub(super) const CHUNK_BITS: u32 = 20;
/// The same in blocks.
pub const CHUNK_BLOCKS: u32 = 1 << (CHUNK_BITS - BLOCK_BITS);

/// One chunk of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lead {
    /// Its first block in the layer file.
    pub first_block: u32,
    /// Where its device number stands in the index: two bytes.
    pub at: u32,
    /// Its blocks, at most [`CHUNK_BLOCKS`].
    pub blocks: u16,
    /// The device that it was written with.
    pub device: u16,
}

impl Lead {
    /// Bytes of one in the table.
    pub const LEN: usize = 12;

    /// From the table.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
        Self {
            first_block: u32::from_le_bytes([a, b, c, d]),
            at: u32::from_le_bytes([e, f, g, h]),
            blocks: u16::from_le_bytes([i, j]),
            device: u16::from_le_bytes([k, l]),
        }
    }

    fn encode(self, to: &mut Vec<u8>) {
        let Self { first_block, at, blocks, device } = self;
        to.extend(first_block.to_le_bytes());
        to.extend(at.to_le_bytes());
        to.extend(blocks.to_le_bytes());
        to.extend(device.to_le_bytes());
    }
}

/// Write the table behind the image.
pub(super) fn append(leads: &mut [Lead], image: &mut Vec<u8>) {
    leads.sort_unstable();
    image.reserve_exact(leads.len() * Lead::LEN);
    leads.iter().for_each(|lead| lead.encode(image));
}
