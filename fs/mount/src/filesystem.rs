//! What a transport asks of a front: an immutable filesystem with reads in two steps.

use std::borrow::Cow;
use std::os::fd::BorrowedFd;

use crate::Errno;

/// Where the answer to a fill goes: called exactly once, perhaps on another thread.
pub type FillReply = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// Longest name in bytes, Linux' own `NAME_MAX`.
pub const NAME_LEN_MAX: usize = 255;

/// Number of an inode: stable, unique, never 0. The root is [`Ino::ROOT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

impl Ino {
    /// `FUSE_ROOT_ID` of `linux/fuse.h`.
    pub const ROOT: Self = Self(1);
}

/// Type of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum FileType {
    Regular,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// Attributes of an inode, as stat(2) shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Inode number.
    pub ino: Ino,
    /// Type.
    pub file_type: FileType,
    /// Permission bits with setuid, setgid and sticky: 12 bits.
    pub permissions: u16,
    /// Links; for a directory 2 + subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Length in bytes.
    pub size: u64,
    /// 512-byte blocks.
    pub blocks: u64,
    /// Modification time, which stands for the other two as well: seconds and nanoseconds.
    pub mtime: (i64, u32),
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry<'a> {
    /// The name, no slash in it.
    pub name: Cow<'a, [u8]>,
    /// Attributes of what it names.
    pub attributes: Attributes,
    /// Where the next entry is asked for.
    pub next: u64,
}

/// Figures of statfs(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statfs {
    /// Bytes of all content.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// Nothing to know about opens: the kernel may stop asking, and keeps its page cache.
    Stateless,
    /// The kernel keeps its page cache of this file; of others of the filesystem it still asks.
    Cached,
    /// Reads bypass the page cache of the file (another filesystem above keeps its own).
    Direct,
}

/// Bytes of a read that are one range of a file.
#[derive(Clone, Copy, Debug)]
pub struct Located<'a> {
    /// That file.
    pub file: BorrowedFd<'a>,
    /// Where they begin in it.
    pub at: u64,
    /// How many there are.
    pub len: usize,
}

/// An immutable filesystem.
///
/// Every answer but the bytes of a read comes from memory, so a transport may call it inline on the
/// thread that took the request. A read goes in two steps for the same reason: a hit is answered by
/// [`Self::read_present`] where it was asked, a miss by [`Self::fill`] later and elsewhere. Nothing
/// ever changes, so the kernel may keep all it is told, and forgets mean nothing.
pub trait Filesystem: Send + Sync {
    /// What `name` means in `parent`; `None` if nothing, which may be remembered as well.
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Attributes>, Errno>;

    /// Attributes of an inode.
    fn attributes(&self, ino: Ino) -> Result<Attributes, Errno>;

    /// The directory entry at `offset` (0, or a [`DirectoryEntry::next`] of an earlier answer),
    /// `None` behind the last. The first two are `.` and `..`.
    fn entry(&self, directory: Ino, offset: u64) -> Result<Option<DirectoryEntry<'_>>, Errno>;

    /// Target of a symbolic link.
    fn readlink(&self, ino: Ino) -> Result<Cow<'_, [u8]>, Errno>;

    /// Value of an extended attribute.
    fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Cow<'_, [u8]>, Errno>;

    /// Names of all extended attributes, each followed by a zero byte.
    fn xattr_names(&self, ino: Ino) -> Result<Vec<u8>, Errno>;

    /// Figures for the whole.
    fn statfs(&self) -> Statfs;

    /// How this file is to be opened.
    fn open(&self, ino: Ino) -> Result<Open, Errno>;

    /// Read without waiting for the network: fills `buffer` wholly, or as far as the file reaches,
    /// and returns the count; `None` if any byte of it is missing.
    fn read_present(
        &self,
        ino: Ino,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, Errno>;

    /// The same without a copy, for a transport that can use it: where the bytes stand, if all of them
    /// are present in one range of a file. They stay there.
    fn located(&self, _ino: Ino, _offset: u64, _len: usize) -> Option<Located<'_>> {
        None
    }

    /// For the log: which layer's bytes a range of a file is, and how far they are.
    fn describe(&self, ino: Ino, offset: u64, len: u64) -> String;

    /// Make a range present, then reply.
    fn fill(&self, ino: Ino, offset: u64, len: u64, reply: FillReply);
}
