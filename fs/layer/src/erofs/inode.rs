//! Inodes.
//!
//! | compact | extended | bytes | what |
//! |---|---|---|---|
//! | 0 | 0 | 2 | bit 0 extended; bits 1–3 layout |
//! | 2 | 2 | 2 | xattr bytes, see [`super::xattr`] |
//! | 4 | 4 | 2 | mode |
//! | 6 | 44 | 2 / 4 | link count |
//! | 8 | 8 | 4 / 8 | size |
//! | 16 | 16 | 4 | first block, device number or chunk format, by layout and type |
//! | 20 | 20 | 4 | nid, as a 32-bit kernel would show it |
//! | 24, 26 | 24, 28 | 2 / 4 | uid, gid |
//! | – | 32, 40 | 8, 4 | mtime: seconds, nanoseconds (compact: that of the superblock) |

use crate::Time;
use crate::tree::{Device, Node};

pub(super) const COMPACT_LEN: u64 = 32;
pub(super) const EXTENDED_LEN: u64 = 64;

/// How the bytes of a file are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Layout {
    /// In whole blocks.
    Plain = 0,
    /// In whole blocks, the tail behind the inode.
    Inline = 2,
    /// By chunk indexes behind the inode.
    Chunks = 4,
}

/// Chunk format: 8-byte indexes; the low bits are log2 of a chunk in blocks.
pub(super) const CHUNK_INDEXES: u32 = 0x20;
/// log2 of the largest chunk that the format can express, in bytes.
pub(super) const CHUNK_BITS_MAX: u32 = super::BLOCK_BITS + 31;
pub(super) const CHUNK_INDEX_LEN: u64 = 8;

pub(super) struct Inode<'a> {
    pub(super) node: Node<'a>,
    pub(super) nid: u32,
    pub(super) is_extended: bool,
    pub(super) layout: Layout,
    pub(super) xattr_count: u16,
    pub(super) size: u64,
    /// First block, device number or chunk format.
    pub(super) union: u32,
}

/// Whether the small form cannot hold a node.
pub(super) fn needs_extended(node: &Node<'_>, size: u64, epoch: Time) -> bool {
    let ids = u16::try_from(node.uid()).and(u16::try_from(node.gid()));
    let small = ids.is_ok() && u16::try_from(node.nlink()).is_ok() && u32::try_from(size).is_ok();
    !small || node.mtime() != epoch
}

pub(super) fn len(is_extended: bool) -> u64 {
    if is_extended { EXTENDED_LEN } else { COMPACT_LEN }
}

impl Inode<'_> {
    pub(super) fn encode(&self, out: &mut [u8; EXTENDED_LEN as usize]) -> usize {
        let Self { node, nid, is_extended, layout, xattr_count, size, union } = self;
        *out = [0; EXTENDED_LEN as usize];
        let format = (*layout as u16) << 1 | u16::from(*is_extended);
        out[0..2].copy_from_slice(&format.to_le_bytes());
        out[2..4].copy_from_slice(&xattr_count.to_le_bytes());
        out[4..6].copy_from_slice(&node.mode().to_le_bytes());
        out[16..20].copy_from_slice(&union.to_le_bytes());
        out[20..24].copy_from_slice(&nid.to_le_bytes());
        if *is_extended {
            out[8..16].copy_from_slice(&size.to_le_bytes());
            out[24..28].copy_from_slice(&node.uid().to_le_bytes());
            out[28..32].copy_from_slice(&node.gid().to_le_bytes());
            out[32..40].copy_from_slice(&node.mtime().seconds.to_le_bytes());
            out[40..44].copy_from_slice(&node.mtime().nanoseconds.to_le_bytes());
            out[44..48].copy_from_slice(&node.nlink().to_le_bytes());
        } else {
            out[6..8].copy_from_slice(&(node.nlink() as u16).to_le_bytes());
            out[8..12].copy_from_slice(&(*size as u32).to_le_bytes());
            out[24..26].copy_from_slice(&(node.uid() as u16).to_le_bytes());
            out[26..28].copy_from_slice(&(node.gid() as u16).to_le_bytes());
        }
        len(*is_extended) as usize
    }
}

/// Device number as the kernel's `new_encode_dev` writes it.
pub(super) fn encode_device(Device { major, minor }: Device) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}
