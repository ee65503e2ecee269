//! A decoder of layer indexes that shares no layout code with the writer, so that tests compare two
//! readings of the format. It takes any bytes: each answer is a value or an error.

use alloc::vec::Vec;
use core::ops::Range;

use super::superblock::{AT, DEVICE_SLOT, INCOMPAT, LEN, MAGIC, TAG_LEN, checksum};
use super::xattr::PREFIXES;
use super::{BLOCK, NO_BLOCK, SLOT};
use crate::tree::{Device, NodeKind};
use crate::{FileOffset, SparseSegment, Time, UncompressedOffset};

/// Bytes that are no layer index of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Something lies outside of the image.
    #[error("{len} bytes at {at} of an index of {image_len} bytes")]
    Outside {
        /// Where.
        at: u64,
        /// How long.
        len: u64,
        /// Length of the image.
        image_len: u64,
    },
    /// A field has a value that we never write.
    #[error("{what} is {found:#x}")]
    Field {
        /// Which field.
        what: &'static str,
        /// Its value.
        found: u64,
    },
    /// The superblock's block is not what was written.
    #[error("checksum {found:#x} instead of {expected:#x}")]
    Checksum {
        /// As stored.
        expected: u32,
        /// As computed.
        found: u32,
    },
}

/// A layer index.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    image: &'a [u8],
    root: u64,
    inode_count: u64,
    epoch: Time,
    devices: Vec<DeviceSlot<'a>>,
}

/// What an index says of a layer file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSlot<'a> {
    /// Free text, without the zeros that fill its field.
    pub tag: &'a [u8],
    /// Length in blocks of 512 bytes.
    pub blocks: u32,
}

/// An inode of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its number: its offset / 32.
    pub nid: u64,
    /// Kind of file.
    pub kind: NodeKind,
    /// Permission, setuid, setgid and sticky bits.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// Bytes of content, directory or symlink target.
    pub size: u64,
    /// Modification time.
    pub mtime: Time,
    layout: u16,
    union: u32,
    xattrs_at: u64,
    xattrs_len: u64,
}

/// One name of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirent {
    /// The name.
    pub name: Vec<u8>,
    /// What it names.
    pub nid: u64,
    /// Kind of file as the directory says it.
    pub kind: NodeKind,
}

/// Name and value of an extended attribute.
pub type Xattr<'a> = (Vec<u8>, &'a [u8]);

impl<'a> Reader<'a> {
    /// Checks the superblock and its checksum.
    pub fn new(image: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader =
            Self { image, root: 0, inode_count: 0, epoch: Time::default(), devices: Vec::new() };
        let base = AT as u64;
        reader.get(base, LEN as u64)?;
        reader.expect("magic", base, MAGIC.into())?;
        reader.expect("incompatible features", base + 80, INCOMPAT.into())?;
        let (bits, extensions) = (reader.u8(base + 12)?, reader.u8(base + 13)?);
        if (bits, extensions) != (9, 0) {
            let found = u64::from(bits) << 8 | u64::from(extensions);
            return Err(ReadError::Field { what: "block size and extensions", found });
        }
        reader.expect("first metadata block", base + 40, 0)?;
        reader.expect("first xattr block", base + 44, 0)?;
        reader.check_sum()?;
        reader.root = reader.u16(base + 14)?.into();
        reader.inode_count = reader.u64(base + 16)?;
        let seconds = reader.u64(base + 24)? as i64;
        reader.epoch = Time { seconds, nanoseconds: reader.u32(base + 32)? };
        let count = reader.u16(base + 86)?;
        let slots = u64::from(reader.u16(base + 88)?) * DEVICE_SLOT as u64;
        for number in 0..u64::from(count) {
            let at = slots + number * DEVICE_SLOT as u64;
            let tag = reader.get(at, TAG_LEN as u64)?;
            let end = tag.iter().position(|&byte| byte == 0).unwrap_or(tag.len());
            let blocks = reader.u32(at + 64)?;
            reader.devices.push(DeviceSlot { tag: tag.get(..end).unwrap_or_default(), blocks });
        }
        if reader.inode(reader.root)?.kind != NodeKind::Directory {
            return Err(ReadError::Field { what: "root that is no directory", found: reader.root });
        }
        Ok(reader)
    }

    /// Number of the root directory.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Inodes, as the superblock counts them.
    pub fn inode_count(&self) -> u64 {
        self.inode_count
    }

    /// The layer files that the index refers to.
    pub fn devices(&self) -> &[DeviceSlot<'a>] {
        &self.devices
    }

    /// Decodes the inode of this number.
    pub fn inode(&self, nid: u64) -> Result<Inode, ReadError> {
        let at = nid.checked_mul(SLOT).ok_or(self.outside(nid, SLOT))?;
        let format = self.u16(at)?;
        let is_extended = format & 1 != 0;
        let layout = format >> 1;
        if !matches!(layout, 0 | 2 | 4) {
            return Err(ReadError::Field { what: "inode format", found: format.into() });
        }
        let mode = self.u16(at + 4)?;
        let (uid, gid, nlink, size, mtime, len) = if is_extended {
            let mtime =
                Time { seconds: self.u64(at + 32)? as i64, nanoseconds: self.u32(at + 40)? };
            let (uid, gid, nlink) = (self.u32(at + 24)?, self.u32(at + 28)?, self.u32(at + 44)?);
            (uid, gid, nlink, self.u64(at + 8)?, mtime, 64)
        } else {
            let (uid, gid, nlink) = (self.u16(at + 24)?, self.u16(at + 26)?, self.u16(at + 6)?);
            let size = self.u32(at + 8)?.into();
            (uid.into(), gid.into(), nlink.into(), size, self.epoch, 32)
        };
        let count = u64::from(self.u16(at + 2)?);
        if count == 1 || size > i64::MAX as u64 {
            return Err(ReadError::Field { what: "xattr count and size", found: size });
        }
        let xattrs_len = if count == 0 { 0 } else { 12 + (count - 1) * 4 };
        let kind = kind_of_mode(mode)?;
        Ok(Inode {
            nid,
            kind,
            permissions: mode & 0o7777,
            uid,
            gid,
            nlink,
            size,
            mtime,
            layout,
            union: self.u32(at + 16)?,
            xattrs_at: at + len,
            xattrs_len,
        })
    }

    /// Names of a directory in their order, `.` and `..` among them.
    pub fn entries(&self, directory: &Inode) -> Result<Vec<Dirent>, ReadError> {
        let data = self.payload(directory)?;
        let mut entries = Vec::new();
        for block in data.chunks(BLOCK as usize) {
            decode_block(block, &mut entries)?;
        }
        Ok(entries)
    }

    /// What a directory calls `name`.
    pub fn lookup(&self, directory: &Inode, name: &[u8]) -> Result<Option<u64>, ReadError> {
        let entries = self.entries(directory)?;
        let found = entries.binary_search_by(|entry| entry.name.as_slice().cmp(name));
        Ok(found.ok().and_then(|at| entries.get(at)).map(|entry| entry.nid))
    }

    /// Target of a symlink.
    pub fn link(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        self.payload(inode)
    }

    /// Device number of a device.
    pub fn device(&self, inode: &Inode) -> Device {
        let number = inode.union;
        let minor = number & 0xff | number >> 12 & 0xf_ff00;
        Device { major: number >> 8 & 0xfff, minor }
    }

    /// Extended attributes in stored order, shared ones first.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr<'a>>, ReadError> {
        let mut xattrs = Vec::new();
        if inode.xattrs_len == 0 {
            return Ok(xattrs);
        }
        let end = inode.xattrs_at + inode.xattrs_len;
        let shared = u64::from(self.u8(inode.xattrs_at + 4)?);
        let own = inode.xattrs_at + 12 + 4 * shared;
        for number in 0..shared {
            let at = self.u32(inode.xattrs_at + 12 + 4 * number)?;
            xattrs.push(self.xattr(u64::from(at) * 4)?.0);
        }
        let mut at = own;
        while at < end {
            let (xattr, len) = self.xattr(at)?;
            xattrs.push(xattr);
            at += len;
        }
        if at != end {
            return Err(ReadError::Field { what: "end of xattrs", found: at });
        }
        Ok(xattrs)
    }

    /// Stored runs of a file with the number of their device, from 0; neighbours are joined.
    pub fn extents(&self, inode: &Inode) -> Result<Vec<(u16, SparseSegment)>, ReadError> {
        let mut extents: Vec<(u16, SparseSegment)> = Vec::new();
        if inode.kind != NodeKind::Regular || inode.size == 0 {
            return Ok(extents);
        }
        if inode.layout != 4 || inode.union & !0x3f != 0 || inode.union & 0x20 == 0 {
            return Err(ReadError::Field { what: "chunk format", found: inode.union.into() });
        }
        let bits = 9 + (inode.union & 0x1f);
        let count = inode.size.div_ceil(1 << bits);
        let at = (inode.xattrs_at + inode.xattrs_len).next_multiple_of(8);
        let len = count.checked_mul(8).ok_or(self.outside(at, count))?;
        let indexes = self.get(at, len)?;
        for (chunk, index) in (0u64..).zip(indexes.chunks_exact(8)) {
            let &[0, 0, low, high, b0, b1, b2, b3] = index else {
                return Err(ReadError::Field { what: "chunk of 48 bits", found: chunk });
            };
            let block = u32::from_le_bytes([b0, b1, b2, b3]);
            if block != NO_BLOCK {
                let file = chunk << bits;
                let len = (inode.size - file).min(1 << bits);
                let device = u16::from_le_bytes([low, high]);
                self.add_extent(&mut extents, device, file, u64::from(block) * BLOCK, len)?;
            }
        }
        Ok(extents)
    }

    fn add_extent(
        &self,
        extents: &mut Vec<(u16, SparseSegment)>,
        device: u16,
        file: u64,
        data: u64,
        len: u64,
    ) -> Result<(), ReadError> {
        let device = device.wrapping_sub(1);
        let slot = self.devices.get(usize::from(device));
        if slot.is_none_or(|slot| data + len > u64::from(slot.blocks) * BLOCK) {
            return Err(ReadError::Field { what: "end of a chunk", found: data + len });
        }
        if let Some((before, last)) = extents.last_mut()
            && *before == device
            && last.file.0 + last.len == file
            && last.data.0 + last.len == data
        {
            last.len += len;
            return Ok(());
        }
        let (file, data) = (FileOffset(file), UncompressedOffset(data));
        extents.push((device, SparseSegment { file, data, len }));
        Ok(())
    }

    /// Bytes of a directory or symlink.
    fn payload(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        let behind = inode.xattrs_at + inode.xattrs_len;
        let tail = if inode.layout == 2 { inode.size % BLOCK } else { 0 };
        if !matches!(inode.kind, NodeKind::Directory | NodeKind::Symlink) || inode.layout == 4 {
            return Err(ReadError::Field { what: "inode without payload", found: inode.nid });
        }
        if tail > 0 && behind % BLOCK + tail > BLOCK {
            return Err(ReadError::Field { what: "tail across a block", found: behind });
        }
        let mut payload = Vec::new();
        if inode.size > tail {
            let blocks = self.get(u64::from(inode.union) * BLOCK, inode.size - tail)?;
            payload.extend_from_slice(blocks);
        }
        payload.extend_from_slice(self.get(behind, tail)?);
        Ok(payload)
    }

    /// One attribute and its length.
    fn xattr(&self, at: u64) -> Result<(Xattr<'a>, u64), ReadError> {
        let (suffix_len, prefix) = (u64::from(self.u8(at)?), self.u8(at + 1)?);
        let value_len = u64::from(self.u16(at + 2)?);
        let known = PREFIXES.iter().find(|&&(_, number)| number == prefix);
        let unknown = ReadError::Field { what: "xattr prefix", found: prefix.into() };
        let mut name = known.ok_or(unknown)?.0.to_vec();
        name.extend_from_slice(self.get(at + 4, suffix_len)?);
        let value = self.get(at + 4 + suffix_len, value_len)?;
        Ok(((name, value), (4 + suffix_len + value_len).next_multiple_of(4)))
    }

    fn check_sum(&self) -> Result<(), ReadError> {
        let block = self.get(AT as u64, BLOCK)?;
        let expected = self.u32(AT as u64 + 4)?;
        let mut block = block.to_vec();
        if let Some(field) = block.get_mut(4..8) {
            field.fill(0);
        }
        let found = checksum(&block);
        if found == expected { Ok(()) } else { Err(ReadError::Checksum { expected, found }) }
    }

    fn expect(&self, what: &'static str, at: u64, expected: u64) -> Result<(), ReadError> {
        let found = u64::from(self.u32(at)?);
        if found == expected { Ok(()) } else { Err(ReadError::Field { what, found }) }
    }

    fn outside(&self, at: u64, len: u64) -> ReadError {
        ReadError::Outside { at, len, image_len: self.image.len() as u64 }
    }

    fn get(&self, at: u64, len: u64) -> Result<&'a [u8], ReadError> {
        let range = || -> Option<Range<usize>> {
            Some(usize::try_from(at).ok()?..usize::try_from(at.checked_add(len)?).ok()?)
        };
        range().and_then(|range| self.image.get(range)).ok_or(self.outside(at, len))
    }

    fn array<const N: usize>(&self, at: u64) -> Result<[u8; N], ReadError> {
        let bytes = self.get(at, N as u64)?;
        bytes.try_into().map_err(|_| self.outside(at, N as u64))
    }

    fn u8(&self, at: u64) -> Result<u8, ReadError> {
        self.array(at).map(u8::from_le_bytes)
    }

    fn u16(&self, at: u64) -> Result<u16, ReadError> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: u64) -> Result<u32, ReadError> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: u64) -> Result<u64, ReadError> {
        self.array(at).map(u64::from_le_bytes)
    }
}

fn kind_of_mode(mode: u16) -> Result<NodeKind, ReadError> {
    let found = u64::from(mode >> 12);
    Ok(match found {
        0o01 => NodeKind::Fifo,
        0o02 => NodeKind::CharDevice,
        0o04 => NodeKind::Directory,
        0o06 => NodeKind::BlockDevice,
        0o10 => NodeKind::Regular,
        0o12 => NodeKind::Symlink,
        _ => return Err(ReadError::Field { what: "file type in the mode", found }),
    })
}

fn kind_of_dirent(found: u8) -> Result<NodeKind, ReadError> {
    Ok(match found {
        1 => NodeKind::Regular,
        2 => NodeKind::Directory,
        3 => NodeKind::CharDevice,
        4 => NodeKind::BlockDevice,
        5 => NodeKind::Fifo,
        7 => NodeKind::Symlink,
        _ => return Err(ReadError::Field { what: "file type of a name", found: found.into() }),
    })
}

fn decode_block(block: &[u8], entries: &mut Vec<Dirent>) -> Result<(), ReadError> {
    let bad = |found: usize| ReadError::Field { what: "directory block", found: found as u64 };
    let head = |number: usize| {
        let entry: [u8; 12] = block.get(number * 12..)?.first_chunk().copied()?;
        let [n0, n1, n2, n3, n4, n5, n6, n7, low, high, kind, _] = entry;
        let nid = u64::from_le_bytes([n0, n1, n2, n3, n4, n5, n6, n7]);
        Some((nid, usize::from(u16::from_le_bytes([low, high])), kind))
    };
    let (_, names_at, _) = head(0).ok_or(bad(block.len()))?;
    if names_at == 0 || names_at % 12 != 0 || names_at > block.len() {
        return Err(bad(names_at));
    }
    let count = names_at / 12;
    for number in 0..count {
        let (nid, at, kind) = head(number).ok_or(bad(number))?;
        let is_last = number + 1 == count;
        let next = if is_last { block.len() } else { head(number + 1).ok_or(bad(number))?.1 };
        let name = block.get(at..next).ok_or(bad(at))?;
        let zero = name.iter().position(|&byte| byte == 0).filter(|_| is_last);
        let name = name.get(..zero.unwrap_or(name.len())).unwrap_or_default();
        let rises = entries.last().is_none_or(|last| last.name.as_slice() < name);
        if name.is_empty() || name.len() > 255 || name.contains(&0) || !rises {
            return Err(bad(at));
        }
        entries.push(Dirent { name: name.to_vec(), nid, kind: kind_of_dirent(kind)? });
    }
    Ok(())
}
