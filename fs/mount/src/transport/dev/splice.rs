//! Long replies whose bytes go from a file's pages to the reader's with one copy instead of two.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::filesystem::Located;
use crate::transport::protocol::reply;

/// What a pipe may hold without privileges (`fs.pipe-max-size`): a page a place.
const PIPE_LEN: usize = 1 << 20;
/// The header takes a place, and what begins within a page ends within one more.
const LEN_MAX: usize = PIPE_LEN - 2 * 4096;
/// Measured at 128 KiB; one of a few pages is copied as fast as it is moved.
const LEN_MIN: usize = 32 << 10;

/// True if a reply of so many bytes is worth it, and fits.
pub(super) fn is_worth(len: usize) -> bool {
    (LEN_MIN..=LEN_MAX).contains(&len)
}

/// The way of one reply at a time. After an error something may be left in it: it is of no use then.
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    pub(super) fn new() -> rustix::io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        fcntl_setpipe_size(&writer, PIPE_LEN)?;
        Ok(Self { reader, writer })
    }

    /// Put what is located in, as the reply to request `unique`; so long is the whole.
    pub(super) fn fill(&self, unique: u64, located: Located<'_>) -> rustix::io::Result<usize> {
        let header = reply::header(unique, 0, located.len);
        rustix::io::write(&self.writer, &header)?;
        let (mut at, end) = (located.at, located.at + located.len as u64);
        while at < end {
            let left = (end - at) as usize;
            let flags = SpliceFlags::empty();
            if splice(located.file, Some(&mut at), &self.writer, None, left, flags)? == 0 {
                return Err(Errno::IO); // Somebody cut the file.
            }
        }
        Ok(header.len() + located.len)
    }

    /// Send the `len` bytes that are in.
    ///
    /// The kernel could take the pages instead of copying them (`SPLICE_F_MOVE`); they would be gone
    /// from the cache of the layer file, and were read again.
    pub(super) fn send(&self, device: impl AsFd, len: usize) -> rustix::io::Result<()> {
        match splice(&self.reader, None, device, None, len, SpliceFlags::empty())? {
            sent if sent == len => Ok(()),
            _ => Err(Errno::IO),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_put_in_is_sent_later_and_whole() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..100_000_u32).map(|number| (number % 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        let (device, mut kernel) = UnixStream::pair().unwrap();
        let pipe = Pipe::new().unwrap();
        for at in [0, 4096, 5001] {
            let len = 70_000;
            let located = Located { file: file.as_fd(), at, len };
            assert_eq!(pipe.fill(9, located), Ok(16 + len));
            kernel.set_nonblocking(true).unwrap();
            assert!(kernel.read(&mut [0]).is_err(), "nothing is sent before its time was taken");
            kernel.set_nonblocking(false).unwrap();
            pipe.send(&device, 16 + len).unwrap();
            let mut sent = vec![0; 16 + len];
            kernel.read_exact(&mut sent).unwrap();
            assert_eq!(sent[..16], reply::header(9, 0, len));
            assert!(sent[16..] == bytes[at as usize..][..len], "at {at}");
        }
        let behind = Located { file: file.as_fd(), at: 90_000, len: 70_000 };
        assert_eq!(pipe.fill(9, behind), Err(Errno::IO), "a file that was cut");
    }
}
