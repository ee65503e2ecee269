//! Numbers of `linux/fuse.h`, protocol 7.42; tests compare them with the header itself.
//!
//! All fields are in the machine's byte order. `_AT` is an offset in bytes, `_LEN` a length.

/// `FUSE_KERNEL_VERSION`.
pub(crate) const MAJOR: u32 = 7;
/// `FUSE_KERNEL_MINOR_VERSION` that this code was written for.
pub(crate) const MINOR: u32 = 42;
/// Older kernels have shorter structures (`FUSE_COMPAT_*`); this one is Linux 4.20's, the first
/// with `max_pages`.
pub(crate) const MINOR_MIN: u32 = 28;

pub(crate) const IN_HEADER_LEN: usize = 40;
pub(crate) const IN_LEN_AT: usize = 0;
pub(crate) const IN_OPCODE_AT: usize = 4;
pub(crate) const IN_UNIQUE_AT: usize = 8;
pub(crate) const IN_NODE_AT: usize = 16;

pub(crate) const INIT_MAJOR_AT: usize = 0;
pub(crate) const INIT_MINOR_AT: usize = 4;
pub(crate) const INIT_READ_AHEAD_AT: usize = 8;
pub(crate) const INIT_FLAGS_AT: usize = 12;
pub(crate) const INIT_FLAGS2_AT: usize = 16;

pub(crate) const READ_IN_LEN: usize = 40;
pub(crate) const READ_OFFSET_AT: usize = 8;
pub(crate) const READ_SIZE_AT: usize = 16;

pub(crate) const GETXATTR_IN_LEN: usize = 8;
pub(crate) const GETXATTR_SIZE_AT: usize = 0;

pub(crate) const OUT_HEADER_LEN: usize = 16;
pub(crate) const ENTRY_OUT_LEN: usize = 128;
pub(crate) const ATTR_OUT_LEN: usize = 104;
pub(crate) const OPEN_OUT_LEN: usize = 16;
pub(crate) const STATFS_OUT_LEN: usize = 80;
pub(crate) const GETXATTR_OUT_LEN: usize = 8;
pub(crate) const INIT_OUT_LEN: usize = 64;
/// `FUSE_COMPAT_INIT_OUT_SIZE`: what a kernel of another major version reads.
pub(crate) const INIT_OUT_COMPAT_LEN: usize = 8;
/// `FUSE_NAME_OFFSET`.
pub(crate) const DIRENT_NAME_AT: usize = 24;

/// `FUSE_MIN_READ_BUFFER`.
pub(crate) const READ_BUFFER_LEN_MIN: usize = 8192;

/// `enum fuse_opcode`, as far as we do not leave it to ENOSYS.
pub(crate) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const NOTIFY_REPLY: u32 = 41;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const READDIRPLUS: u32 = 44;
}

/// Flags of INIT; those from bit 32 on travel in `flags2`.
pub(crate) mod init_flag {
    pub(crate) const ASYNC_READ: u64 = 1 << 0;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(crate) const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    /// There are more than 32 flags.
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    /// Protocol 7.40: newer than the headers of many distributions.
    pub(crate) const HAS_RESEND: u64 = 1 << 39;
    pub(crate) const OVER_IO_URING: u64 = 1 << 41;
}

/// `FUSE_NOTIFY_RESEND`, protocol 7.40: what was taken and not answered is to be taken again.
pub(crate) const NOTIFY_RESEND: i32 = 7;

/// `FOPEN_DIRECT_IO`, a flag of an open's reply.
pub(crate) const FOPEN_DIRECT_IO: u32 = 1;
/// `FOPEN_KEEP_CACHE`, the same.
pub(crate) const FOPEN_KEEP_CACHE: u32 = 2;

#[cfg(test)]
pub(crate) mod header;
