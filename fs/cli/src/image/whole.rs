//! A whole blob, front to back, with several pieces under way.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use spanfs_fetch::{Blob, FetchError, Fetched, Priority, Ticket, Want};
use spanfs_layer::{Digest, Hasher};

/// Bytes of one want: a few pieces of the engine's.
const PIECE_LEN: u64 = 1 << 20;
/// Wants under way at once: what eight connections carry, and one for each to go on with.
const PIECES_MAX: usize = 16;
/// Pieces of a blob that somebody waits for as a whole: one for each connection that prefetching may
/// use, none so small that its round trip is most of it, none so large that a failure costs much.
const WHOLE_CONNECTIONS: u64 = 6;
const WHOLE_PIECE_LEN_MIN: u64 = 256 << 10;
const WHOLE_PIECE_LEN_MAX: u64 = 4 << 20;
/// How often a wait looks whether it is still wanted. The engine's own deadlines end it otherwise.
const STOP_POLL: Duration = Duration::from_millis(100);

/// Why a blob was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E> {
    /// It could not be had.
    #[error(transparent)]
    Fetch(FetchError),
    /// The consumer refused a piece.
    #[error(transparent)]
    Consume(E),
    /// Nobody wants it any more.
    #[error("stopped")]
    Stopped,
}

/// Read a blob in order, each piece unverified, to `consume`, on the calling thread.
pub fn read_whole<E>(
    blob: &dyn Blob,
    priority: Priority,
    stop: &AtomicBool,
    consume: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), ReadError<E>> {
    Pieces::new(PIECE_LEN, priority).read(blob, stop, consume)
}

/// A blob on its way as a whole. Dropping it cancels what is left.
pub(crate) struct WholeRead {
    blob: Arc<dyn Blob>,
    pieces: Pieces,
}

/// What came of a blob.
pub(crate) struct WholeBlob {
    pub(crate) bytes: Arc<[u8]>,
    /// Digest that they have, by the algorithm of the one that they should have.
    pub(crate) digest: Digest,
}

impl WholeRead {
    /// Ask for the first pieces. Never waits.
    pub(crate) fn start(blob: Arc<dyn Blob>) -> Self {
        // As many pieces as there are connections for what nobody waits for span by span: a second
        // round of requests would cost another round trip.
        let len = blob.size().div_ceil(WHOLE_CONNECTIONS);
        let len = len.clamp(WHOLE_PIECE_LEN_MIN, WHOLE_PIECE_LEN_MAX);
        let mut pieces = Pieces::new(len, Priority::Prefetch);
        pieces.ask(&*blob);
        Self { blob, pieces }
    }

    /// Wait for all bytes.
    pub(crate) fn finish(self) -> Result<WholeBlob, ReadError<Infallible>> {
        let Self { blob, mut pieces } = self;
        let mut hasher = Hasher::new(blob.digest().algorithm());
        let mut bytes: Arc<[u8]> = Arc::default();
        let mut at = 0;
        let never = AtomicBool::new(false);
        pieces.read(&*blob, &never, |piece| {
            if at == 0 {
                // The first piece has come: only now is the promised length worth its memory.
                let len = usize::try_from(blob.size()).unwrap_or(0);
                bytes = std::iter::repeat_n(0, len).collect();
            }
            // Hashed while the next ones are on their way.
            hasher.update(piece);
            let to = Arc::get_mut(&mut bytes).and_then(|all| all.get_mut(at..at + piece.len()));
            to.unwrap_or_default().copy_from_slice(piece);
            at += piece.len();
            Ok(())
        })?;
        Ok(WholeBlob { bytes, digest: hasher.finish() })
    }
}

/// Pieces of a blob that are under way, in order.
struct Pieces {
    len: u64,
    priority: Priority,
    next: u64,
    pending: VecDeque<Piece>,
}

impl Pieces {
    fn new(len: u64, priority: Priority) -> Self {
        Self { len, priority, next: 0, pending: VecDeque::new() }
    }

    fn ask(&mut self, blob: &dyn Blob) {
        while self.pending.len() < PIECES_MAX && self.next < blob.size() {
            let end = blob.size().min(self.next + self.len);
            self.pending.push_back(Piece::want(blob, self.next..end, self.priority));
            self.next = end;
        }
    }

    fn read<E>(
        &mut self,
        blob: &dyn Blob,
        stop: &AtomicBool,
        mut consume: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), ReadError<E>> {
        loop {
            self.ask(blob);
            let Some(piece) = self.pending.pop_front() else { return Ok(()) };
            let fetched = piece.wait(stop)?;
            consume(fetched.data()).map_err(ReadError::Consume)?;
            blob.recycle(fetched.bytes);
        }
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.pending.iter().for_each(|piece| piece.ticket.cancel());
    }
}

struct Piece {
    ticket: Ticket,
    reply: Receiver<Result<Fetched, FetchError>>,
}

impl Piece {
    fn want(blob: &dyn Blob, range: std::ops::Range<u64>, priority: Priority) -> Self {
        let (sender, reply) = sync_channel(1);
        let ticket = blob.want(Want {
            range,
            priority,
            headroom: 0,
            // The reader may have given up.
            reply: Box::new(move |result| drop(sender.send(result))),
        });
        Self { ticket, reply }
    }

    fn wait<E>(&self, stop: &AtomicBool) -> Result<Fetched, ReadError<E>> {
        loop {
            match self.reply.recv_timeout(STOP_POLL) {
                Ok(result) => return result.map_err(ReadError::Fetch),
                Err(RecvTimeoutError::Timeout) if !stop.load(Ordering::Relaxed) => {}
                Err(_) => {
                    self.ticket.cancel();
                    return Err(ReadError::Stopped);
                }
            }
        }
    }
}
