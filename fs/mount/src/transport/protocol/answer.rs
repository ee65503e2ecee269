//! What a filesystem answers to a request: no descriptor, no thread, no waiting.

use super::abi;
use super::init::{Negotiated, TooOld, negotiate};
use super::reply::Body;
use super::request::{Operation, Request};
use crate::Errno;
use crate::filesystem::{Filesystem, Ino, Open};
use crate::transport::READ_LEN_MAX;

/// What is to be done about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// So many bytes of the body are its reply.
    Body(usize),
    /// An errno is its reply; 0 says that it is done.
    Code(i32),
    /// It wants no reply.
    Silence,
    /// The bytes of a read are not there.
    Missing { ino: Ino, offset: u64, len: usize },
    /// INIT: the reply, and what it means.
    Greeting(usize, Negotiated),
    /// INIT of a kernel that we can't talk to.
    Refusal(TooOld),
}

/// Answer into `bytes`, [`READ_LEN_MAX`] of them; of what the kernel offers, take what is `wanted`.
pub(crate) fn answer(
    filesystem: &dyn Filesystem,
    wanted: u64,
    request: &Request<'_>,
    bytes: &mut [u8],
) -> Answer {
    let ino = Ino(request.node);
    let outcome = match request.operation {
        Operation::Init(offer) => {
            let mut body = Body::new(bytes);
            return match negotiate(offer, wanted, &mut body) {
                Ok(agreed) => Answer::Greeting(body.len(), agreed),
                Err(too_old) => Answer::Refusal(too_old),
            };
        }
        Operation::Read { offset, len } => read(filesystem, ino, offset, len as usize, bytes),
        Operation::ReadDir { offset, len_max } => {
            list(filesystem, ino, offset, len_max, false, bytes)
        }
        Operation::ReadDirPlus { offset, len_max } => {
            list(filesystem, ino, offset, len_max, true, bytes)
        }
        Operation::Acknowledge => Ok(Answer::Code(0)),
        Operation::Silent => Ok(Answer::Silence),
        Operation::Unsupported => Ok(Answer::Code(NOSYS)),
        _ => small(filesystem, ino, &request.operation, bytes),
    };
    outcome.unwrap_or_else(|errno| Answer::Code(errno.code()))
}

const NOSYS: i32 = rustix::io::Errno::NOSYS.raw_os_error();

/// Read what is there.
pub(crate) fn read(
    filesystem: &dyn Filesystem,
    ino: Ino,
    offset: u64,
    len: usize,
    bytes: &mut [u8],
) -> Result<Answer, Errno> {
    // A short answer would be padded with zeros.
    let buffer = bytes.get_mut(..len).ok_or(Errno::Invalid)?;
    Ok(match filesystem.read_present(ino, offset, buffer)? {
        Some(count) => Answer::Body(count.min(len)),
        None => Answer::Missing { ino, offset, len },
    })
}

fn list(
    filesystem: &dyn Filesystem,
    directory: Ino,
    offset: u64,
    len_max: u32,
    plus: bool,
    bytes: &mut [u8],
) -> Result<Answer, Errno> {
    let len_max = (len_max as usize).min(bytes.len());
    let mut body = Body::new(&mut bytes[..len_max]);
    let mut at = offset;
    while let Some(entry) = filesystem.entry(directory, at)? {
        if body.directory_entry(&entry, plus).is_none() {
            break;
        }
        at = entry.next;
    }
    Ok(Answer::Body(body.len()))
}

/// Requests whose replies fit into a page or two.
fn small(
    filesystem: &dyn Filesystem,
    ino: Ino,
    operation: &Operation<'_>,
    bytes: &mut [u8],
) -> Result<Answer, Errno> {
    debug_assert!(bytes.len() >= READ_LEN_MAX, "a buffer of {} bytes", bytes.len());
    let mut body = Body::new(bytes);
    let written = match *operation {
        Operation::Lookup { name } => body.entry(filesystem.lookup(ino, name)?.as_ref()),
        Operation::GetAttr => body.attributes(&filesystem.attributes(ino)?),
        Operation::ReadLink => body.put(&filesystem.readlink(ino)?),
        Operation::StatFs => body.statfs(filesystem.statfs()),
        Operation::Open => match filesystem.open(ino)? {
            // The kernel opens by itself from now on, and keeps its page cache.
            Open::Stateless => return Ok(Answer::Code(NOSYS)),
            Open::Cached => body.open(abi::FOPEN_KEEP_CACHE),
            Open::Direct => body.open(abi::FOPEN_DIRECT_IO),
        },
        Operation::GetXattr { name, len_max } => {
            return Ok(sized(&filesystem.xattr(ino, name)?, len_max, body));
        }
        Operation::ListXattr { len_max } => {
            return Ok(sized(&filesystem.xattr_names(ino)?, len_max, body));
        }
        _ => return Ok(Answer::Code(NOSYS)),
    };
    // A link target of a megabyte, for want of anything else so long.
    written.map(|()| Answer::Body(body.len())).ok_or(Errno::InputOutput)
}

/// An extended attribute, or its length if the caller has no room yet.
fn sized(value: &[u8], len_max: u32, mut body: Body<'_>) -> Answer {
    let written = match u32::try_from(value.len()) {
        Ok(len) if len_max == 0 => body.xattr_len(len),
        Ok(len) if len > len_max => {
            return Answer::Code(rustix::io::Errno::RANGE.raw_os_error());
        }
        Ok(_) => body.put(value),
        Err(_) => None,
    };
    written.map_or(Answer::Code(Errno::InputOutput.code()), |()| Answer::Body(body.len()))
}

#[cfg(test)]
pub(crate) mod tests;
