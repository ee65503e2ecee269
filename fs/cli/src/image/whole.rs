//! A whole blob, front to back, with several pieces under way.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use spanfs_fetch::{Blob, FetchError, Fetched, Priority, Ticket, Want};

/// Bytes of one want: a few pieces of the engine's.
const PIECE_LEN: u64 = 1 << 20;
/// Wants under way at once: what eight connections carry, and one for each to go on with.
const PIECES_MAX: usize = 16;
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
    mut consume: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), ReadError<E>> {
    let mut next = 0;
    let mut pending = VecDeque::new();
    let result = loop {
        while pending.len() < PIECES_MAX && next < blob.size() {
            let end = blob.size().min(next + PIECE_LEN);
            pending.push_back(Piece::want(blob, next..end, priority));
            next = end;
        }
        let Some(piece) = pending.pop_front() else { break Ok(()) };
        let fetched = match piece.wait(stop) {
            Ok(fetched) => fetched,
            Err(error) => break Err(error),
        };
        if let Err(error) = consume(fetched.data()) {
            break Err(ReadError::Consume(error));
        }
    };
    pending.iter().for_each(|piece| piece.ticket.cancel());
    result
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
