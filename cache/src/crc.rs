//! CRC-32 (ISO-HDLC) of what is kept on disk: several gigabytes a second on one core.

use crate::sys::crc32_append;

/// Sum of bytes that pass by in pieces.
pub(crate) struct Crc32(u32);

impl Crc32 {
    /// Nothing summed yet.
    pub(crate) fn new() -> Self {
        Self(0)
    }

    /// The next piece.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0 = crc32_append(self.0, bytes);
    }

    /// Sum of all pieces.
    pub(crate) fn sum(&self) -> u32 {
        self.0
    }
}

/// Sum of one piece.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    crc32_append(0, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_whole() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let mut crc = Crc32::new();
        crc.update(b"1234");
        crc.update(b"");
        crc.update(b"56789");
        assert_eq!(crc.sum(), 0xcbf4_3926);
    }
}
