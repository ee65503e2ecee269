//! Bytes that we send: from memory, or from a range of a file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::task::JoinHandle;

/// One read of a file that is being sent.
const PIECE_LEN: u64 = 256 << 10;

/// Bytes to send, as often as a retry needs them.
#[derive(Clone, Debug)]
pub enum Content {
    /// From memory.
    Bytes(Bytes),
    /// From a file, which must not change meanwhile.
    File {
        /// Open for reading.
        file: Arc<File>,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl Content {
    /// Nothing.
    pub fn empty() -> Self {
        Self::Bytes(Bytes::new())
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    /// True if there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Part of it, clipped to what is there.
    #[must_use]
    pub fn slice(&self, start: u64, end: u64) -> Self {
        let end = end.min(self.len());
        let start = start.min(end);
        match self {
            // Both fit: they are at most the length of a buffer in memory.
            Self::Bytes(bytes) => Self::Bytes(bytes.slice(start as usize..end as usize)),
            Self::File { file, offset, .. } => {
                Self::File { file: file.clone(), offset: offset + start, len: end - start }
            }
        }
    }

    /// All of it, from the start, for those who read in the usual way.
    pub(crate) fn reader(self) -> ContentReader {
        ContentReader { rest: self }
    }

    pub(crate) fn body(&self) -> ContentBody {
        ContentBody { rest: self.clone(), reading: None }
    }
}

/// [`Content`] being read.
pub(crate) struct ContentReader {
    rest: Content,
}

impl io::Read for ContentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &self.rest {
            Content::Bytes(bytes) => (&bytes[..]).read(buffer)?,
            Content::File { file, offset, len } => {
                let room = buffer.len().min(usize::try_from(*len).unwrap_or(usize::MAX));
                file.read_at(buffer.get_mut(..room).unwrap_or_default(), *offset)?
            }
        };
        if count == 0 && !self.rest.is_empty() && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.rest = self.rest.slice(count as u64, u64::MAX);
        Ok(count)
    }
}

/// [`Content`] on its way out.
pub(crate) struct ContentBody {
    rest: Content,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Body for ContentBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let Content::File { file, offset, len } = &self.rest else {
            let rest = std::mem::replace(&mut self.rest, Content::empty());
            let Content::Bytes(bytes) = rest else { return Poll::Ready(None) };
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        };
        let (file, offset, piece) = (file.clone(), *offset, (*len).min(PIECE_LEN));
        let reading = self.reading.get_or_insert_with(|| {
            tokio::task::spawn_blocking(move || {
                let mut buffer = vec![0; piece as usize];
                file.read_exact_at(&mut buffer, offset)?;
                Ok(Bytes::from(buffer))
            })
        });
        let Poll::Ready(result) = Pin::new(reading).poll(cx) else { return Poll::Pending };
        self.reading = None;
        let bytes = result.map_err(io::Error::other)??;
        self.rest = self.rest.slice(piece, u64::MAX);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len())
    }
}
