//! Reading a whole file through io_uring, so that reading and hashing overlap on one thread.
//!
//! tokio-uring is used here alone: it is no longer kept up, and it panics where io_uring is refused
//! unless the runtime is made by hand, as [`start`] does.

use std::fs::File;
use std::io;
use std::rc::Rc;

use tokio_uring::buf::BoundedBuf as _;

use super::PIECE_LEN;

pub(crate) use tokio_uring::Runtime;

/// A runtime, or why the kernel refuses one: EPERM by sysctl or seccomp, ENOSYS where it has none.
pub(super) fn start() -> io::Result<Runtime> {
    Runtime::new(tokio_uring::builder().entries(8))
}

/// Give the first `len` bytes of `file` to `piece`, in order.
pub(super) fn read(
    runtime: &Runtime,
    file: &File,
    len: u64,
    piece: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let file = Rc::new(tokio_uring::fs::File::from_std(file.try_clone()?));
    runtime.block_on(async {
        let start = |at: u64, buffer: Vec<u8>| {
            let file = file.clone();
            tokio_uring::spawn(read_piece(file, at, len, buffer))
        };
        let mut next = start(0, vec![0; PIECE_LEN]);
        let mut spare = vec![0; PIECE_LEN];
        let mut at = 0;
        while at < len {
            let (count, buffer) = next.await.map_err(io::Error::other)??;
            at += count as u64;
            next = start(at, spare);
            // Submits what was just started; it proceeds in the kernel while we hash.
            tokio::task::yield_now().await;
            piece(buffer.get(..count).unwrap_or_default())?;
            spare = buffer;
        }
        // Ends at once: nothing lies behind `len`.
        next.await.map_err(io::Error::other)?.map(drop)
    })
}

/// The piece at `at`, as much as lies before `len`, and its buffer.
async fn read_piece(
    file: Rc<tokio_uring::fs::File>,
    at: u64,
    len: u64,
    buffer: Vec<u8>,
) -> io::Result<(usize, Vec<u8>)> {
    let want = usize::try_from(len - at).unwrap_or(PIECE_LEN).min(PIECE_LEN);
    if want == 0 {
        return Ok((0, buffer));
    }
    // A slice, because the library reads as much as the buffer's capacity.
    let (result, slice) = file.read_at(buffer.slice(..want), at).await;
    match result? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => Ok((count, slice.into_inner())),
    }
}
