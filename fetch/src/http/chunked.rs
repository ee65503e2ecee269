//! Chunked transfer encoding (RFC 9112, 7.1), decoded without buffering.

use crate::plan::Failure;

/// What stands at the front of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// That many bytes of framing: drop them and ask again.
    Framing(usize),
    /// That many bytes of the body.
    Data(usize),
    /// The body ended before the input; that much framing was left.
    End(usize),
    /// More input is needed.
    More,
}

/// Place in a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunked {
    Size,
    Data(u64),
    AfterData,
    Trailer { len: usize },
}

/// A line with a chunk's size and extensions, or a trailer line, longer than this is an attack.
const LINE_LEN_MAX: usize = 1024;

const TRAILER_LEN_MAX: usize = 16 << 10;

impl Chunked {
    /// Look at the front of the input; the caller removes what is reported.
    pub(crate) fn next(&mut self, input: &[u8]) -> Result<Piece, Failure> {
        match *self {
            Self::Size => self.size(input),
            Self::Data(left) => {
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                if count == 0 {
                    return Ok(Piece::More);
                }
                let left = left - count as u64;
                *self = if left == 0 { Self::AfterData } else { Self::Data(left) };
                Ok(Piece::Data(count))
            }
            Self::AfterData if input.starts_with(b"\r\n") => {
                *self = Self::Size;
                Ok(Piece::Framing(2))
            }
            Self::AfterData if b"\r\n".starts_with(input) => Ok(Piece::More),
            Self::AfterData => Err(Failure::bad_reply("a chunk is not followed by a line end")),
            Self::Trailer { len } => self.trailer(input, len),
        }
    }

    fn size(&mut self, input: &[u8]) -> Result<Piece, Failure> {
        match httparse::parse_chunk_size(input) {
            Ok(httparse::Status::Complete((count, 0))) => {
                *self = Self::Trailer { len: 0 };
                Ok(Piece::Framing(count))
            }
            Ok(httparse::Status::Complete((count, size))) => {
                *self = Self::Data(size);
                Ok(Piece::Framing(count))
            }
            Ok(httparse::Status::Partial) if input.len() < LINE_LEN_MAX => Ok(Piece::More),
            _ => Err(Failure::bad_reply("bad size line of a chunk")),
        }
    }

    fn trailer(&mut self, input: &[u8], len: usize) -> Result<Piece, Failure> {
        if input.starts_with(b"\r\n") {
            return Ok(Piece::End(2));
        }
        match input.windows(2).position(|pair| pair == b"\r\n") {
            Some(at) if len + at < TRAILER_LEN_MAX => {
                *self = Self::Trailer { len: len + at + 2 };
                Ok(Piece::Framing(at + 2))
            }
            None if input.len() < LINE_LEN_MAX => Ok(Piece::More),
            _ => Err(Failure::bad_reply("the trailer of a chunked body is too long")),
        }
    }
}
