//! The layer file: one sparse file with the layer's uncompressed tar at its own offsets.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use spanfs_layer::UncompressedOffset;

use crate::crc::Crc32;

/// Sector of the block device that EROFS sees in the layer file: its length is a multiple.
const SECTOR_LEN: u64 = 512;

/// Length of the layer file of `uncompressed_len` bytes of tar.
pub(crate) fn file_len(uncompressed_len: u64) -> u64 {
    uncompressed_len.next_multiple_of(SECTOR_LEN)
}

/// One sparse file; what it holds is known by the span journal alone.
#[derive(Debug)]
pub(crate) struct LayerFile {
    file: File,
    len: u64,
}

impl LayerFile {
    /// Open for filling, made with its full length where it is missing.
    ///
    /// An existing file keeps its bytes if its length is right, and another takes its place
    /// otherwise; the second value tells which.
    pub(crate) fn open(path: &Path, len: u64) -> io::Result<(Self, Kept)> {
        match File::options().read(true).write(true).open(path) {
            Ok(file) if file.metadata()?.len() == len => Ok((Self { file, len }, Kept::Yes)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok((Self::create(path, len)?, Kept::No)),
        }
    }

    /// Make an empty file of that length. One that stands there is not cut but left to those who
    /// have it open: they may be showing it, by another zTOC.
    pub(crate) fn create(path: &Path, len: u64) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
        file.set_len(len)?;
        Ok(Self { file, len })
    }

    /// Open a file that another process may have filled: never written through this handle.
    pub(crate) fn open_complete(path: &Path, len: u64) -> io::Result<Self> {
        let file = File::open(path)?;
        let found = file.metadata()?.len();
        if found != len {
            let message = format!("layer file has {found} bytes, expected {len}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(Self { file, len })
    }

    /// Length in bytes, a multiple of 512.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Write a span at its place.
    pub(crate) fn write(&self, at: UncompressedOffset, bytes: &[u8]) -> io::Result<()> {
        let end = at.0.checked_add(bytes.len() as u64);
        assert!(end.is_some_and(|end| end <= self.len), "span at {at} lies beyond the layer file");
        reserve(&self.file, at.0, bytes.len() as u64)?;
        self.file.write_all_at(bytes, at.0)
    }

    /// Read exactly `buffer` bytes at `at`, which the caller knows to be there.
    pub(crate) fn read(&self, at: UncompressedOffset, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, at.0)
    }

    /// Add a range, as it stands in the file, to `crc`.
    pub(crate) fn checksum(
        &self,
        range: Range<UncompressedOffset>,
        crc: &mut Crc32,
    ) -> io::Result<()> {
        let mut buffer = vec![0; CHECK_PIECE_LEN];
        let mut at = range.start.0;
        while at < range.end.0 {
            let len = (range.end.0 - at).min(CHECK_PIECE_LEN as u64) as usize;
            let piece = buffer.get_mut(..len).unwrap_or_default();
            self.file.read_exact_at(piece, at)?;
            crc.update(piece);
            at += len as u64;
        }
        Ok(())
    }

    /// Bring data and length to the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// What the file looks like from outside, see [`Stamp`].
    pub(crate) fn stamp(&self) -> io::Result<Stamp> {
        Ok(Stamp::of(&self.file.metadata()?))
    }

    /// The descriptor, for those who show or hash the whole file.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The file itself, for reads at offsets.
    pub(crate) fn as_file(&self) -> &File {
        &self.file
    }
}

/// Whether an existing file's bytes were kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Its length was right.
    Yes,
    /// It was made, or emptied.
    No,
}

/// Bytes read at once while a checksum is computed.
const CHECK_PIECE_LEN: usize = 256 * 1024;

/// Fingerprint of a file's inode, length and times: while it stays, nobody wrote to the file.
///
/// It lets a large file that was checked once be believed later at the price of one stat(2). It
/// notices every write through the file system, not a disk that rots beneath it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(pub(crate) [u8; STAMP_LEN]);

/// Bytes of a stamp.
pub(crate) const STAMP_LEN: usize = 16;

impl Stamp {
    /// Stamp of the file behind `metadata`.
    pub(crate) fn of(metadata: &std::fs::Metadata) -> Self {
        let fields = [
            metadata.ino(),
            metadata.size(),
            metadata.mtime() as u64,
            metadata.mtime_nsec() as u64,
            metadata.ctime() as u64,
            metadata.ctime_nsec() as u64,
        ];
        let mut bytes = [0; 48];
        for (to, field) in bytes.chunks_exact_mut(8).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        let mut stamp = [0; STAMP_LEN];
        let digest = spanfs_layer::Digest::of(&bytes);
        for (to, from) in stamp.iter_mut().zip(digest.as_bytes()) {
            *to = *from;
        }
        Self(stamp)
    }

    /// Stamp of the file at `path`.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::of(&std::fs::metadata(path)?))
    }
}

/// Have the filesystem find room for all of a range at once: block by block, as it is written, that
/// costs ext4 more than copying the bytes. A filesystem that can't do without.
pub(crate) fn reserve(file: &File, at: u64, len: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, at, len) {
        Err(error @ (Errno::NOSPC | Errno::DQUOT)) => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_bytes_only_at_the_right_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        let (file, kept) = LayerFile::open(&path, 1024).unwrap();
        assert_eq!(kept, Kept::No);
        file.write(UncompressedOffset(512), &[7; 512]).unwrap();
        let all = UncompressedOffset(512)..UncompressedOffset(1024);
        let mut crc = Crc32::new();
        file.checksum(all, &mut crc).unwrap();
        assert_eq!(crc.sum(), crate::crc::crc32(&[7; 512]));

        assert_eq!(LayerFile::open(&path, 1024).unwrap().1, Kept::Yes);
        let (file, kept) = LayerFile::open(&path, 2048).unwrap();
        let mut buffer = [1; 512];
        file.read(UncompressedOffset(512), &mut buffer).unwrap();
        assert_eq!((kept, buffer), (Kept::No, [0; 512]));
        assert!(LayerFile::open_complete(&path, 512).is_err());
    }

    #[test]
    fn a_stamp_notices_a_write() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = LayerFile::open(&dir.path().join("layer"), 512).unwrap();
        let stamp = file.stamp().unwrap();
        assert_eq!(stamp, file.stamp().unwrap());
        // Times of a file advance by the kernel's tick, so a write right behind may look the same.
        std::thread::sleep(std::time::Duration::from_millis(30));
        file.write(UncompressedOffset(0), b"x").unwrap();
        assert_ne!(stamp, file.stamp().unwrap());
    }
}
