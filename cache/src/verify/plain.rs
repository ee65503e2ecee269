//! Reading a whole file by pread(2).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::PIECE_LEN;

/// Give the first `len` bytes of `file` to `piece`, in order.
pub(super) fn read(
    file: &File,
    len: u64,
    piece: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE_LEN];
    let mut at = 0;
    while at < len {
        let want = (len - at).min(PIECE_LEN as u64) as usize;
        let bytes = buffer.get_mut(..want).unwrap_or_default();
        file.read_exact_at(bytes, at)?;
        piece(bytes)?;
        at += want as u64;
    }
    Ok(())
}
