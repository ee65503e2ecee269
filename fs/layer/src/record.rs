//! One entry of a layer's tar, as its headers say it: nothing is normalised here.

use alloc::vec::Vec;

use crate::UncompressedOffset;

/// What kind of file an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Ordinary file; also GNU sparse and contiguous ones (told apart by [`Record::typeflag`]).
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link to [`Record::link`].
    Symlink,
    /// Further name of the entry called [`Record::link`].
    Hardlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
}

/// Point in time, to the nanosecond; `nanoseconds` counts up from `seconds` also before 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// Run of stored bytes of a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseSegment {
    /// Where the run stands in the file.
    pub file: crate::FileOffset,
    /// Where its bytes stand in the tar.
    pub data: UncompressedOffset,
    /// Length in bytes.
    pub len: u64,
}

/// One entry of a layer's tar with all its extension headers applied.
///
/// Names, link targets and PAX values are bytes, not text: real layers carry Latin-1 names and
/// binary capabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Name as stored: a leading `./` or `/` and a directory's trailing `/` are kept.
    pub name: Vec<u8>,
    /// Kind of file.
    pub kind: Kind,
    /// Type flag of the main header as stored.
    pub typeflag: u8,
    /// Target of a symlink or hard link, verbatim; else empty.
    pub link: Vec<u8>,
    /// Mode bits as stored (permission, setuid, setgid, sticky, and whatever else is there).
    pub mode: i64,
    /// Owner.
    pub uid: i64,
    /// Group.
    pub gid: i64,
    /// Owner's name; only carried along.
    pub uname: Vec<u8>,
    /// Group's name; only carried along.
    pub gname: Vec<u8>,
    /// Modification time.
    pub mtime: Time,
    /// Device major number.
    pub devmajor: i64,
    /// Device minor number.
    pub devminor: i64,
    /// All PAX records of the entry, rising by key, values as bytes.
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
    /// First byte of the entry's first header block (extension headers included).
    pub header: UncompressedOffset,
    /// First byte behind the entry's headers, where its data begins.
    pub data: UncompressedOffset,
    /// Size field after PAX (bytes of data stored in the tar for a regular file).
    pub size: u64,
    /// Logical size and stored runs of a sparse file, rising and without overlap.
    pub sparse: Option<(u64, Vec<SparseSegment>)>,
}

impl Record {
    /// Extended attributes: the PAX records under `SCHILY.xattr.`, without that prefix.
    pub fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.pax.iter().filter_map(|(key, value)| {
            Some((key.strip_prefix(b"SCHILY.xattr.".as_slice())?, value.as_slice()))
        })
    }
}
