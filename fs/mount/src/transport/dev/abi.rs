//! Numbers of `linux/fuse.h`, protocol 7.38; tests compare them with the header itself.
//!
//! All fields are in the machine's byte order. `_AT` is an offset in bytes, `_LEN` a length.

/// `FUSE_KERNEL_VERSION`.
pub(super) const MAJOR: u32 = 7;
/// `FUSE_KERNEL_MINOR_VERSION` that this code was written for.
pub(super) const MINOR: u32 = 38;
/// Older kernels have shorter structures (`FUSE_COMPAT_*`); this one is Linux 4.20's, the first
/// with `max_pages`.
pub(super) const MINOR_MIN: u32 = 28;

pub(super) const IN_HEADER_LEN: usize = 40;
pub(super) const IN_LEN_AT: usize = 0;
pub(super) const IN_OPCODE_AT: usize = 4;
pub(super) const IN_UNIQUE_AT: usize = 8;
pub(super) const IN_NODE_AT: usize = 16;

pub(super) const INIT_MAJOR_AT: usize = 0;
pub(super) const INIT_MINOR_AT: usize = 4;
pub(super) const INIT_READ_AHEAD_AT: usize = 8;
pub(super) const INIT_FLAGS_AT: usize = 12;

pub(super) const READ_IN_LEN: usize = 40;
pub(super) const READ_OFFSET_AT: usize = 8;
pub(super) const READ_SIZE_AT: usize = 16;

pub(super) const GETXATTR_IN_LEN: usize = 8;
pub(super) const GETXATTR_SIZE_AT: usize = 0;

pub(super) const OUT_HEADER_LEN: usize = 16;
pub(super) const ENTRY_OUT_LEN: usize = 128;
pub(super) const ATTR_OUT_LEN: usize = 104;
pub(super) const OPEN_OUT_LEN: usize = 16;
pub(super) const STATFS_OUT_LEN: usize = 80;
pub(super) const GETXATTR_OUT_LEN: usize = 8;
pub(super) const INIT_OUT_LEN: usize = 64;
/// `FUSE_COMPAT_INIT_OUT_SIZE`: what a kernel of another major version reads.
pub(super) const INIT_OUT_COMPAT_LEN: usize = 8;
/// `FUSE_NAME_OFFSET`.
pub(super) const DIRENT_NAME_AT: usize = 24;

/// `FUSE_MIN_READ_BUFFER`.
pub(super) const READ_BUFFER_LEN_MIN: usize = 8192;

/// `enum fuse_opcode`, as far as we do not leave it to ENOSYS.
pub(super) mod opcode {
    pub(in super::super) const LOOKUP: u32 = 1;
    pub(in super::super) const FORGET: u32 = 2;
    pub(in super::super) const GETATTR: u32 = 3;
    pub(in super::super) const READLINK: u32 = 5;
    pub(in super::super) const OPEN: u32 = 14;
    pub(in super::super) const READ: u32 = 15;
    pub(in super::super) const STATFS: u32 = 17;
    pub(in super::super) const RELEASE: u32 = 18;
    pub(in super::super) const GETXATTR: u32 = 22;
    pub(in super::super) const LISTXATTR: u32 = 23;
    pub(in super::super) const INIT: u32 = 26;
    pub(in super::super) const READDIR: u32 = 28;
    pub(in super::super) const RELEASEDIR: u32 = 29;
    pub(in super::super) const DESTROY: u32 = 38;
    pub(in super::super) const NOTIFY_REPLY: u32 = 41;
    pub(in super::super) const BATCH_FORGET: u32 = 42;
    pub(in super::super) const READDIRPLUS: u32 = 44;
}

/// Flags of INIT.
pub(super) mod init_flag {
    pub(in super::super) const ASYNC_READ: u32 = 1 << 0;
    pub(in super::super) const DO_READDIRPLUS: u32 = 1 << 13;
    pub(in super::super) const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub(in super::super) const ASYNC_DIO: u32 = 1 << 15;
    pub(in super::super) const NO_OPEN_SUPPORT: u32 = 1 << 17;
    pub(in super::super) const PARALLEL_DIROPS: u32 = 1 << 18;
    pub(in super::super) const MAX_PAGES: u32 = 1 << 22;
    pub(in super::super) const CACHE_SYMLINKS: u32 = 1 << 23;
    pub(in super::super) const NO_OPENDIR_SUPPORT: u32 = 1 << 24;
}

/// `FOPEN_DIRECT_IO`, a flag of an open's reply.
pub(super) const FOPEN_DIRECT_IO: u32 = 1;

#[cfg(test)]
pub(super) mod header;
