//! Requests of the kernel: bytes in, meaning out. Pure.

use super::abi::{self, init_flag, opcode};

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    /// Names it in the reply.
    pub(crate) unique: u64,
    /// The inode that it is about.
    pub(crate) node: u64,
    pub(crate) operation: Operation<'a>,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation<'a> {
    Init(InitIn),
    Lookup {
        name: &'a [u8],
    },
    GetAttr,
    ReadLink,
    Open,
    Read {
        offset: u64,
        len: u32,
    },
    StatFs,
    GetXattr {
        name: &'a [u8],
        /// 0 asks for the length alone.
        len_max: u32,
    },
    ListXattr {
        len_max: u32,
    },
    ReadDir {
        offset: u64,
        len_max: u32,
    },
    ReadDirPlus {
        offset: u64,
        len_max: u32,
    },
    /// RELEASE, RELEASEDIR and DESTROY: there is nothing to let go.
    Acknowledge,
    /// FORGET, BATCH_FORGET and NOTIFY_REPLY: no reply is wanted.
    Silent,
    /// Everything else, which ENOSYS answers; the kernel remembers that for most of them.
    ///
    /// INTERRUPT among it: ending a read with EINTR would turn any signal into SIGBUS for a program
    /// that waits in a page fault. The read's deadline ends it.
    Unsupported,
}

/// What the kernel offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InitIn {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// In bytes.
    pub(crate) read_ahead_max: u32,
    pub(crate) flags: u64,
}

/// Bytes that are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// Nothing that could be answered.
    #[error("header of {expected} bytes expected, {found} found", expected = abi::IN_HEADER_LEN)]
    Header { found: usize },
    /// Its reply is EINVAL.
    #[error("request {unique} of opcode {opcode} is malformed: {len} bytes, {claimed} claimed")]
    Body { unique: u64, opcode: u32, len: usize, claimed: u32 },
}

impl<'a> Request<'a> {
    /// Take one message apart, as read(2) of the device gives it.
    pub(crate) fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let header = Fields(message);
        let fields = || {
            let body = message.get(abi::IN_HEADER_LEN..)?;
            let opcode = header.u32(abi::IN_OPCODE_AT)?;
            let (unique, node) = (header.u64(abi::IN_UNIQUE_AT)?, header.u64(abi::IN_NODE_AT)?);
            Some((header.u32(abi::IN_LEN_AT)?, opcode, unique, node, body))
        };
        let (claimed, opcode, unique, node, body) =
            fields().ok_or(Malformed::Header { found: message.len() })?;
        let operation = (claimed as usize == message.len())
            .then(|| Operation::parse(opcode, body))
            .flatten()
            .ok_or(Malformed::Body { unique, opcode, len: message.len(), claimed })?;
        Ok(Self { unique, node, operation })
    }
}

impl<'a> Operation<'a> {
    fn parse(opcode: u32, body: &'a [u8]) -> Option<Self> {
        Some(match opcode {
            opcode::INIT => Self::Init(InitIn::parse(body)?),
            opcode::LOOKUP => Self::Lookup { name: name(body)? },
            opcode::GETATTR => Self::GetAttr,
            opcode::READLINK => Self::ReadLink,
            opcode::OPEN => Self::Open,
            opcode::READ => {
                let (offset, len) = window(body)?;
                Self::Read { offset, len }
            }
            opcode::STATFS => Self::StatFs,
            opcode::GETXATTR => {
                let (fixed, rest) = body.split_at_checked(abi::GETXATTR_IN_LEN)?;
                let len_max = Fields(fixed).u32(abi::GETXATTR_SIZE_AT)?;
                Self::GetXattr { name: name(rest)?, len_max }
            }
            opcode::LISTXATTR => {
                let fixed = body.get(..abi::GETXATTR_IN_LEN)?;
                Self::ListXattr { len_max: Fields(fixed).u32(abi::GETXATTR_SIZE_AT)? }
            }
            opcode::READDIR => {
                let (offset, len_max) = window(body)?;
                Self::ReadDir { offset, len_max }
            }
            opcode::READDIRPLUS => {
                let (offset, len_max) = window(body)?;
                Self::ReadDirPlus { offset, len_max }
            }
            opcode::RELEASE | opcode::RELEASEDIR | opcode::DESTROY => Self::Acknowledge,
            opcode::FORGET | opcode::BATCH_FORGET | opcode::NOTIFY_REPLY => Self::Silent,
            _ => Self::Unsupported,
        })
    }
}

impl InitIn {
    fn parse(body: &[u8]) -> Option<Self> {
        let body = Fields(body);
        let mut flags = u64::from(body.u32(abi::INIT_FLAGS_AT)?);
        if flags & init_flag::INIT_EXT != 0 {
            flags |= u64::from(body.u32(abi::INIT_FLAGS2_AT)?) << 32;
        }
        Some(Self {
            major: body.u32(abi::INIT_MAJOR_AT)?,
            minor: body.u32(abi::INIT_MINOR_AT)?,
            read_ahead_max: body.u32(abi::INIT_READ_AHEAD_AT)?,
            flags,
        })
    }
}

/// Offset and size of a `fuse_read_in`.
fn window(body: &[u8]) -> Option<(u64, u32)> {
    let fields = Fields(body.get(..abi::READ_IN_LEN)?);
    Some((fields.u64(abi::READ_OFFSET_AT)?, fields.u32(abi::READ_SIZE_AT)?))
}

/// A name ends with the first zero byte.
fn name(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    bytes.get(..end)
}

#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(self, at: usize) -> Option<u32> {
        self.0.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
    }

    fn u64(self, at: usize) -> Option<u64> {
        self.0.get(at..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
    }
}

#[cfg(test)]
pub(crate) mod tests;
