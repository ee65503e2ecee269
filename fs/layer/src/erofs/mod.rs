//! The layer index: an EROFS image that holds names and attributes, while file content stays in
//! layer files, the image's further devices.
//!
//! Source: the kernel's `fs/erofs/erofs_fs.h`. Everything is little-endian. An image is
//!
//! | byte | what |
//! |---|---|
//! | 0 | free |
//! | 1024 | [`superblock`], 128 bytes |
//! | 1152 | device slots, 128 bytes each |
//! | then, in 32-byte slots | the root's [`inode`], attributes shared by several inodes ([`xattr`]) |
//! | then | for each directory, breadth first: its full blocks ([`dirent`]), its children's inodes |
//! | behind the image | its [`Lead`]s, which the kernel doesn't know of |
//!
//! with each inode followed by its own attributes and its chunk indexes, or the tail of its
//! directory or symlink. Blocks have 512 bytes, as tar has, so that any file of a tar can be
//! addressed where it lies. A node's number (nid) is its offset divided by 32.
//!
//! The kernel checks little: most faults of a writer are silent wrong data. So [`write()`] refuses
//! what the format cannot hold, and [`Reader`] is written independently of it.

mod content;
mod dirent;
mod error;
mod image;
mod inode;
mod lead;
mod reader;
mod superblock;
mod writer;
mod xattr;

pub use content::DataCopy;
pub use error::ErofsError;
pub use lead::{CHUNK_BLOCKS, Lead};
pub use reader::{DeviceSlot, Dirent, Inode, ReadError, Reader, Xattr};
pub use writer::{Device, Index, WAYS, device_count, image_len, write, write_ways};

/// Bytes of a block: those of a tar's, so that a file's data begins at one.
pub const BLOCK: u64 = 512;
const BLOCK_BITS: u32 = 9;
/// Inodes begin at multiples of this, and are numbered by it.
const SLOT: u64 = 32;
/// "No block" and "hole".
const NO_BLOCK: u32 = u32::MAX;

#[cfg(test)]
mod tests;
