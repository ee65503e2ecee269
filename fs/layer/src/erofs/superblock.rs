//! Superblock and device slots.
//!
//! Offsets from byte 1024:
//!
//! | at | bytes | what | ours |
//! |---|---|---|---|
//! | 0 | 4 | magic | `0xE0F5E1E2` |
//! | 4 | 4 | CRC-32C of the block with this field 0, not inverted at the end | for our reader |
//! | 8 | 4 | compatible features | mtime, xattr filter |
//! | 12 | 1 | log2 of the block size | 9 |
//! | 13 | 1 | superblock extension slots | 0 |
//! | 14 | 2 | nid of the root | < 65536 |
//! | 16 | 8 | inodes | |
//! | 24 | 8 + 4 | time of compact inodes: seconds, nanoseconds | the most frequent one |
//! | 36 | 4 | blocks | |
//! | 40, 44 | 4 + 4 | first block of nids, of shared xattrs | 0, 0 |
//! | 48 | 16 | uuid | from the content |
//! | 64 | 16 | volume name | empty |
//! | 80 | 4 | incompatible features | chunks, device table |
//! | 84 | 2 | compression | 0 |
//! | 86 | 2 | devices | |
//! | 88 | 2 | device slots / 128 | 9 |
//! | 90–127 | | all else | 0 |
//!
//! A device slot: tag 64, blocks 4, first block in the flat view 4, reserved 56.

use super::image::Image;

pub(super) const AT: usize = 1024;
pub(super) const LEN: usize = 128;
pub(super) const MAGIC: u32 = 0xE0F5_E1E2;
pub(super) const DEVICE_SLOT: usize = 128;
pub(super) const DEVICES_AT: usize = AT + LEN;
pub(super) const TAG_LEN: usize = 64;

/// Not the checksum's bit (1): fsck.erofs of erofs-utils 1.8 checks it in blocks of 512 bytes by
/// reading far outside of its buffer, and crashes. The checksum is there all the same.
const COMPAT: u32 = 2 | 4;
pub(super) const INCOMPAT: u32 = 4 | 8;

pub(super) struct Superblock {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) epoch_seconds: i64,
    pub(super) epoch_nanoseconds: u32,
    pub(super) blocks: u32,
    pub(super) devices: u16,
}

impl Superblock {
    /// Writes all but uuid and checksum.
    pub(super) fn encode(&self, image: &mut Image) {
        image.put(AT, &MAGIC.to_le_bytes());
        image.put(AT + 8, &COMPAT.to_le_bytes());
        image.put(AT + 12, &[super::BLOCK_BITS as u8]);
        image.put(AT + 14, &self.root_nid.to_le_bytes());
        image.put(AT + 16, &self.inodes.to_le_bytes());
        image.put(AT + 24, &self.epoch_seconds.to_le_bytes());
        image.put(AT + 32, &self.epoch_nanoseconds.to_le_bytes());
        image.put(AT + 36, &self.blocks.to_le_bytes());
        image.put(AT + 80, &INCOMPAT.to_le_bytes());
        image.put(AT + 86, &self.devices.to_le_bytes());
        image.put(AT + 88, &((DEVICES_AT / DEVICE_SLOT) as u16).to_le_bytes());
    }
}

/// Devices of the image that begins with `head`.
pub(super) fn device_count(head: &[u8]) -> Option<u16> {
    field(head, 86).map(u16::from_le_bytes)
}

/// Its blocks.
pub(super) fn block_count(head: &[u8]) -> Option<u32> {
    field(head, 36).map(u32::from_le_bytes)
}

fn field<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    let superblock = head.get(AT..AT + LEN)?;
    let magic = superblock.first_chunk()?;
    let field = superblock.get(at..)?.first_chunk()?;
    (u32::from_le_bytes(*magic) == MAGIC).then_some(*field)
}

pub(super) fn put_device(image: &mut Image, number: usize, tag: &[u8], blocks: u32, flat: u32) {
    let at = DEVICES_AT + number * DEVICE_SLOT;
    image.put(at, tag);
    image.put(at + 64, &blocks.to_le_bytes());
    image.put(at + 68, &flat.to_le_bytes());
}

pub(super) fn put_uuid(image: &mut Image, hash: &[u8]) {
    let mut uuid = [0; 16];
    uuid.iter_mut().zip(hash).for_each(|(to, from)| *to = *from);
    // RFC 9562: version 8 (of our own making), variant 10.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    image.put(AT + 48, &uuid);
}

/// Checksums the superblock's block, which may hold device slots and the first inodes: the last
/// thing to be written.
pub(super) fn put_checksum(image: &mut Image) {
    let sum = checksum(image.bytes.get(AT..AT + super::BLOCK as usize).unwrap_or_default());
    image.put(AT + 4, &sum.to_le_bytes());
}

/// CRC-32C (reflected `0x82F63B78`) from all ones, without the usual inversion at the end.
pub(super) fn checksum(block: &[u8]) -> u32 {
    block.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| sum >> 1 ^ (0x82F6_3B78 * (sum & 1)))
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checksum_is_crc32c() {
        // The check value of the CRC catalogues is inverted at the end.
        assert_eq!(!super::checksum(b"123456789"), 0xE306_9283);
    }
}
