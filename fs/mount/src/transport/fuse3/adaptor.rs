//! Our [`Filesystem`] as the `fuse3` crate wants it.

use std::ffi::{OsStr, OsString};
use std::num::NonZeroU32;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;
use std::time::Duration;

use ::fuse3::raw::reply::{
    DirectoryEntry, DirectoryEntryPlus, FileAttr, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEntry, ReplyInit, ReplyOpen, ReplyStatFs, ReplyXAttr,
};
use ::fuse3::raw::{self, Request};
use ::fuse3::{Inode, Result, Timestamp};
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio::sync::oneshot;

use super::buffers::Buffers;
use crate::Errno;
use crate::filesystem::{Attributes, FileType, Filesystem, Ino, NAME_LEN_MAX, Open};
use crate::transport::READ_LEN_MAX;
use crate::transport::protocol::reply::encode_device;

/// Nothing ever changes: 136 years, far from any overflow in the kernel.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
/// Requests of read-ahead that the kernel may have under way (`fuse_init_out.max_background`).
const BACKGROUND_MAX: u16 = 64;
/// Data of a write request: nobody writes here, so the smallest that the kernel takes.
const WRITE_LEN_MAX: NonZeroU32 = NonZeroU32::new(4096).unwrap();
/// A filled range can be gone again when we look (its layer was dropped and is being fetched anew).
const FILL_COUNT_MAX: u32 = 4;
/// Reply flag of an open: `FOPEN_DIRECT_IO` of `linux/fuse.h`.
const FOPEN_DIRECT_IO: u32 = 1;
/// The same: `FOPEN_KEEP_CACHE`.
const FOPEN_KEEP_CACHE: u32 = 2;
/// Of access(2)'s mask.
const X_OK: u32 = 1;

pub(super) struct Adaptor {
    pub(super) filesystem: Arc<dyn Filesystem>,
    pub(super) buffers: Arc<Buffers>,
    pub(super) read_deadline: Duration,
    /// Dropped when the kernel has been answered its INIT: the mount is usable.
    pub(super) ready: parking_lot::Mutex<Option<std::sync::mpsc::SyncSender<()>>>,
}

impl Adaptor {
    /// A hit is answered here, on the thread that polls the request; a miss parks and holds nothing.
    async fn read_all(&self, ino: Ino, offset: u64, len: usize) -> Result<Bytes> {
        if len > READ_LEN_MAX {
            return Err(errno(Errno::Invalid)); // A short answer would be padded with zeros.
        }
        for _ in 0..FILL_COUNT_MAX {
            let mut buffer = self.buffers.take().await;
            let present =
                self.filesystem.read_present(ino, offset, buffer.space(len)).map_err(errno)?;
            if let Some(count) = present {
                return Ok(buffer.into_bytes(count));
            }
            drop(buffer);
            self.fill(ino, offset, len as u64).await?;
        }
        tracing::warn!(
            ino = ino.0,
            offset,
            len,
            "range filled {FILL_COUNT_MAX} times, still absent"
        );
        Err(errno(Errno::InputOutput))
    }

    async fn fill(&self, ino: Ino, offset: u64, len: u64) -> Result<()> {
        let (sender, receiver) = oneshot::channel();
        let reply = move |result| {
            let _gone = sender.send(result); // The receiver went away with its deadline.
        };
        self.filesystem.fill(ino, offset, len, Box::new(reply));
        match tokio::time::timeout(self.read_deadline, receiver).await {
            Ok(Ok(result)) => result.map_err(errno),
            Ok(Err(_dropped)) => {
                tracing::error!(ino = ino.0, offset, len, "fill was given up without a reply");
                Err(errno(Errno::InputOutput))
            }
            Err(_elapsed) => {
                let deadline = self.read_deadline;
                tracing::warn!(ino = ino.0, offset, len, "no bytes after {deadline:?}");
                Err(errno(Errno::InputOutput))
            }
        }
    }

    fn entries(
        &self,
        directory: u64,
        offset: u64,
    ) -> impl Iterator<Item = Result<crate::filesystem::DirectoryEntry<'_>>> {
        let mut at = Some(offset);
        std::iter::from_fn(move || {
            let offset = at.take()?;
            match self.filesystem.entry(Ino(directory), offset) {
                Ok(None) => None,
                Ok(Some(entry)) => {
                    at = Some(entry.next);
                    Some(Ok(entry))
                }
                Err(refusal) => Some(Err(errno(refusal))),
            }
        })
    }
}

impl raw::Filesystem for Adaptor {
    async fn init(&self, _request: Request) -> Result<ReplyInit> {
        let mut reply = ReplyInit::new(WRITE_LEN_MAX);
        reply.max_background = Some(BACKGROUND_MAX);
        Ok(reply)
    }

    async fn ready(&self, _notify: ::fuse3::notify::Notify) {
        *self.ready.lock() = None;
    }

    async fn destroy(&self, _request: Request) {}

    async fn lookup(&self, _request: Request, parent: Inode, name: &OsStr) -> Result<ReplyEntry> {
        let found = self.filesystem.lookup(Ino(parent), name.as_bytes()).map_err(errno)?;
        // Node 0 with a time to live is a negative entry: the kernel won't ask again.
        let attr = found.map_or(NOTHING, file_attr);
        Ok(ReplyEntry { ttl: FOREVER, attr, generation: 0 })
    }

    async fn getattr(
        &self,
        _request: Request,
        ino: Inode,
        _handle: Option<u64>,
        _flags: u32,
    ) -> Result<ReplyAttr> {
        let attributes = self.filesystem.attributes(Ino(ino)).map_err(errno)?;
        Ok(ReplyAttr { ttl: FOREVER, attr: file_attr(attributes) })
    }

    async fn readlink(&self, _request: Request, ino: Inode) -> Result<ReplyData> {
        let target = self.filesystem.readlink(Ino(ino)).map_err(errno)?;
        Ok(Bytes::from(target.into_owned()).into())
    }

    async fn open(&self, _request: Request, ino: Inode, _flags: u32) -> Result<ReplyOpen> {
        match self.filesystem.open(Ino(ino)).map_err(errno)? {
            // ENOSYS: the kernel opens by itself from now on, and keeps its page cache.
            Open::Stateless => Err(rustix::io::Errno::NOSYS.raw_os_error().into()),
            Open::Cached => Ok(ReplyOpen { fh: 0, flags: FOPEN_KEEP_CACHE }),
            Open::Direct => Ok(ReplyOpen { fh: 0, flags: FOPEN_DIRECT_IO }),
        }
    }

    async fn read(
        &self,
        _request: Request,
        ino: Inode,
        _handle: u64,
        offset: u64,
        size: u32,
    ) -> Result<ReplyData> {
        Ok(self.read_all(Ino(ino), offset, size as usize).await?.into())
    }

    /// Asked where the kernel checks no permissions (`fusermount3` mounts, that only their user sees):
    /// what nobody may run is no program to `test -x` and in a search of PATH.
    async fn access(&self, _request: Request, ino: Inode, mask: u32) -> Result<()> {
        let it = self.filesystem.attributes(Ino(ino)).map_err(errno)?;
        let is_program = it.file_type != FileType::Regular || it.permissions & 0o111 != 0;
        if mask & X_OK == 0 || is_program {
            Ok(())
        } else {
            Err(rustix::io::Errno::ACCESS.raw_os_error().into())
        }
    }

    async fn statfs(&self, _request: Request, _ino: Inode) -> Result<ReplyStatFs> {
        let figures = self.filesystem.statfs();
        Ok(ReplyStatFs {
            blocks: figures.bytes.div_ceil(512),
            bfree: 0,
            bavail: 0,
            files: figures.inodes,
            ffree: 0,
            bsize: 512,
            namelen: NAME_LEN_MAX as u32,
            frsize: 512,
        })
    }

    async fn getxattr(
        &self,
        _request: Request,
        ino: Inode,
        name: &OsStr,
        size: u32,
    ) -> Result<ReplyXAttr> {
        let value = self.filesystem.xattr(Ino(ino), name.as_bytes()).map_err(errno)?;
        sized(value.into_owned(), size)
    }

    async fn listxattr(&self, _request: Request, ino: Inode, size: u32) -> Result<ReplyXAttr> {
        sized(self.filesystem.xattr_names(Ino(ino)).map_err(errno)?, size)
    }

    async fn readdir<'a>(
        &'a self,
        _request: Request,
        directory: Inode,
        _handle: u64,
        offset: i64,
    ) -> Result<ReplyDirectory<impl Stream<Item = Result<DirectoryEntry>> + Send + 'a>> {
        let entries = self.entries(directory, offset.cast_unsigned()).map(|entry| {
            let entry = entry?;
            Ok(DirectoryEntry {
                inode: entry.attributes.ino.0,
                kind: kind(entry.attributes.file_type),
                name: OsString::from_vec(entry.name.into_owned()),
                offset: entry.next.cast_signed(),
            })
        });
        Ok(ReplyDirectory { entries: stream::iter(entries) })
    }

    async fn readdirplus<'a>(
        &'a self,
        _request: Request,
        directory: Inode,
        _handle: u64,
        offset: u64,
        _lock_owner: u64,
    ) -> Result<ReplyDirectoryPlus<impl Stream<Item = Result<DirectoryEntryPlus>> + Send + 'a>>
    {
        let entries = self.entries(directory, offset).map(|entry| {
            let entry = entry?;
            Ok(DirectoryEntryPlus {
                inode: entry.attributes.ino.0,
                generation: 0,
                kind: kind(entry.attributes.file_type),
                name: OsString::from_vec(entry.name.into_owned()),
                offset: entry.next.cast_signed(),
                attr: file_attr(entry.attributes),
                entry_ttl: FOREVER,
                attr_ttl: FOREVER,
            })
        });
        Ok(ReplyDirectoryPlus { entries: stream::iter(entries) })
    }

    // Interrupts stay unanswered (the default is ENOSYS): ending a read with EINTR would turn any
    // signal into SIGBUS for a program that waits in a page fault. Its deadline ends the read.
}

fn errno(refusal: Errno) -> ::fuse3::Errno {
    refusal.code().into()
}

fn sized(value: Vec<u8>, size: u32) -> Result<ReplyXAttr> {
    let len = u32::try_from(value.len()).map_err(|_| errno(Errno::InputOutput))?;
    if size == 0 {
        Ok(ReplyXAttr::Size(len))
    } else if len > size {
        Err(rustix::io::Errno::RANGE.raw_os_error().into())
    } else {
        Ok(ReplyXAttr::Data(value.into()))
    }
}

const NOTHING: FileAttr = FileAttr {
    ino: 0,
    size: 0,
    blocks: 0,
    atime: Timestamp { sec: 0, nsec: 0 },
    mtime: Timestamp { sec: 0, nsec: 0 },
    ctime: Timestamp { sec: 0, nsec: 0 },
    kind: ::fuse3::FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
};

fn file_attr(attributes: Attributes) -> FileAttr {
    let (sec, nsec) = attributes.mtime;
    let time = Timestamp { sec, nsec };
    FileAttr {
        ino: attributes.ino.0,
        size: attributes.size,
        blocks: attributes.blocks,
        atime: time,
        mtime: time,
        ctime: time,
        kind: kind(attributes.file_type),
        perm: attributes.permissions,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: encode_device(attributes.device),
        blksize: 4096,
    }
}

fn kind(file_type: FileType) -> ::fuse3::FileType {
    match file_type {
        FileType::Regular => ::fuse3::FileType::RegularFile,
        FileType::Directory => ::fuse3::FileType::Directory,
        FileType::Symlink => ::fuse3::FileType::Symlink,
        FileType::CharDevice => ::fuse3::FileType::CharDevice,
        FileType::BlockDevice => ::fuse3::FileType::BlockDevice,
        FileType::Fifo => ::fuse3::FileType::NamedPipe,
    }
}
