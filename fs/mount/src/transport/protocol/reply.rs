//! Replies to the kernel: meaning in, bytes out. Pure.

use super::abi;
use crate::filesystem::{Attributes, DirectoryEntry, FileType, NAME_LEN_MAX, Statfs};

/// Nothing ever changes: 136 years in seconds, far from any overflow in the kernel.
const FOREVER: u64 = u32::MAX as u64;

/// The body of a reply being written: what does not fit is refused whole.
pub(crate) struct Body<'a> {
    bytes: &'a mut [u8],
    len: usize,
}

impl<'a> Body<'a> {
    /// An empty body in `bytes`.
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, len: 0 }
    }

    /// Bytes written so far.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Append, if there is room.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.len.checked_add(bytes.len())?;
        self.bytes.get_mut(self.len..end)?.copy_from_slice(bytes);
        self.len = end;
        Some(())
    }

    /// `fuse_entry_out`. Node 0 with a time to live is a negative entry: the kernel won't ask again.
    pub(crate) fn entry(&mut self, attributes: Option<&Attributes>) -> Option<()> {
        let mut out = Record::<{ abi::ENTRY_OUT_LEN }>::new();
        out.u64(attributes.map_or(0, |attributes| attributes.ino.0));
        out.u64(0); // Generation: numbers are never reused.
        out.u64(FOREVER).u64(FOREVER).u32(0).u32(0);
        if let Some(attributes) = attributes {
            out.attr(attributes);
        }
        self.put(&out.bytes)
    }

    /// `fuse_attr_out`.
    pub(crate) fn attributes(&mut self, attributes: &Attributes) -> Option<()> {
        let mut out = Record::<{ abi::ATTR_OUT_LEN }>::new();
        out.u64(FOREVER).u32(0).u32(0).attr(attributes);
        self.put(&out.bytes)
    }

    /// `fuse_open_out` with `FOPEN_*` flags; handles mean nothing here.
    pub(crate) fn open(&mut self, flags: u32) -> Option<()> {
        let mut out = Record::<{ abi::OPEN_OUT_LEN }>::new();
        out.u64(0).u32(flags);
        self.put(&out.bytes)
    }

    /// `fuse_statfs_out`.
    pub(crate) fn statfs(&mut self, figures: Statfs) -> Option<()> {
        const BLOCK: u32 = 512;
        let mut out = Record::<{ abi::STATFS_OUT_LEN }>::new();
        out.u64(figures.bytes.div_ceil(BLOCK.into())).u64(0).u64(0).u64(figures.inodes).u64(0);
        out.u32(BLOCK).u32(NAME_LEN_MAX as u32).u32(BLOCK);
        self.put(&out.bytes)
    }

    /// `fuse_getxattr_out`.
    pub(crate) fn xattr_len(&mut self, len: u32) -> Option<()> {
        let mut out = Record::<{ abi::GETXATTR_OUT_LEN }>::new();
        out.u32(len);
        self.put(&out.bytes)
    }

    /// `fuse_dirent`, or `fuse_direntplus` with `plus`.
    pub(crate) fn directory_entry(&mut self, entry: &DirectoryEntry<'_>, plus: bool) -> Option<()> {
        let name_len = u32::try_from(entry.name.len()).ok()?;
        let head = if plus { abi::ENTRY_OUT_LEN } else { 0 } + abi::DIRENT_NAME_AT;
        let whole = head.checked_add(entry.name.len())?.checked_next_multiple_of(8)?;
        if self.bytes.len() - self.len < whole {
            return None;
        }
        if plus {
            // The kernel takes no reference of these two, and wants none.
            let is_dot = matches!(&*entry.name, b"." | b"..");
            self.entry((!is_dot).then_some(&entry.attributes))?;
        }
        let mut out = Record::<{ abi::DIRENT_NAME_AT }>::new();
        out.u64(entry.attributes.ino.0).u64(entry.next).u32(name_len);
        out.u32(type_bits(entry.attributes.file_type) >> 12); // `DT_*` of readdir(3).
        self.put(&out.bytes)?;
        self.put(&entry.name)?;
        let padding = whole - head - entry.name.len();
        self.put([0; 7].get(..padding)?)
    }
}

/// A structure of fixed length: fields in order, zeros where nothing was written.
pub(crate) struct Record<const LEN: usize> {
    pub(crate) bytes: [u8; LEN],
    len: usize,
}

impl<const LEN: usize> Record<LEN> {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; LEN], len: 0 }
    }

    fn field<const N: usize>(&mut self, value: [u8; N]) -> &mut Self {
        let end = self.len + N;
        assert!(end <= LEN, "a structure of {LEN} bytes has no place for {N} at {}", self.len);
        self.bytes[self.len..end].copy_from_slice(&value);
        self.len = end;
        self
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.field(value.to_ne_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.field(value.to_ne_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.field(value.to_ne_bytes())
    }

    /// `fuse_attr`.
    fn attr(&mut self, attributes: &Attributes) -> &mut Self {
        let (seconds, nanoseconds) = attributes.mtime;
        let seconds = seconds.cast_unsigned();
        self.u64(attributes.ino.0).u64(attributes.size).u64(attributes.blocks);
        self.u64(seconds).u64(seconds).u64(seconds);
        self.u32(nanoseconds).u32(nanoseconds).u32(nanoseconds);
        self.u32(type_bits(attributes.file_type) | u32::from(attributes.permissions));
        self.u32(attributes.nlink).u32(attributes.uid).u32(attributes.gid);
        self.u32(encode_device(attributes.device)).u32(4096).u32(0)
    }
}

/// `fuse_out_header` of a reply with `body_len` bytes behind it; `error` is an errno, or 0.
pub(crate) fn header(unique: u64, error: i32, body_len: usize) -> [u8; abi::OUT_HEADER_LEN] {
    let mut out = Record::<{ abi::OUT_HEADER_LEN }>::new();
    out.u32((abi::OUT_HEADER_LEN + body_len) as u32).u32((-error).cast_unsigned()).u64(unique);
    out.bytes
}

/// A message that answers no request: `code` is one of `FUSE_NOTIFY_*`.
pub(crate) fn notification(code: i32) -> [u8; abi::OUT_HEADER_LEN] {
    let mut out = Record::<{ abi::OUT_HEADER_LEN }>::new();
    out.u32(abi::OUT_HEADER_LEN as u32).u32(code.cast_unsigned()).u64(0);
    out.bytes
}

/// `S_IFMT` bits of stat(2).
fn type_bits(file_type: FileType) -> u32 {
    match file_type {
        FileType::Fifo => 0o010_000,
        FileType::CharDevice => 0o020_000,
        FileType::Directory => 0o040_000,
        FileType::BlockDevice => 0o060_000,
        FileType::Regular => 0o100_000,
        FileType::Symlink => 0o120_000,
    }
}

/// The kernel's 32-bit form (`new_encode_dev` of `linux/kdev_t.h`): 12 bits major, 20 bits minor.
pub(crate) fn encode_device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

#[cfg(test)]
pub(crate) mod tests;
