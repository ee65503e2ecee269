//! What the driver hands to a shell that moves bytes, and what it hears from it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::BytesMut;

use crate::plan::{Failure, TransferId, WantId};
use crate::target::Target;

/// Memory for a part of a blob.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) want: WantId,
    pub(crate) range: Range<u64>,
    /// As long as `range`; `filled` bytes from its start are valid.
    pub(crate) bytes: BytesMut,
    pub(crate) filled: usize,
}

impl Segment {
    pub(crate) fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.filled)
    }
}

/// A request to make, with its memory.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: TransferId,
    pub(crate) target: Arc<Target>,
    /// Bytes to ask for; all of the blob if `whole`.
    pub(crate) range: Range<u64>,
    /// Length of the blob.
    pub(crate) size: u64,
    /// Ask without a range, and for memory as the bytes come by.
    pub(crate) whole: bool,
    pub(crate) segments: VecDeque<Segment>,
}

/// The answer to `Event::Hungry`.
#[derive(Debug)]
pub(crate) enum Supply {
    Segment(Segment),
    Stop,
}

/// News of a transfer, in the order in which they happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// Bytes of the body came in.
    Moved { id: TransferId, bytes: u64 },
    /// A segment is full.
    Filled { id: TransferId, segment: Segment },
    /// A whole-blob stream stands here and has no memory.
    Hungry { id: TransferId, position: u64 },
    /// It is over; all memory is back.
    Ended { id: TransferId, segments: VecDeque<Segment>, result: Result<(), Failure> },
}

/// A shell that moves bytes.
pub(crate) trait Mover {
    /// Make a request. Every job ends with exactly one `Event::Ended`.
    fn start(&mut self, job: Job);
    /// Hand memory to a hungry stream.
    fn supply(&mut self, id: TransferId, supply: Supply);
    /// End a transfer soon.
    fn abandon(&mut self, id: TransferId);
    /// Open connections to where requests will go soon, until so many are idle. A shell that has a
    /// thread for each request may leave it.
    fn open_ahead(&mut self, _target: &Arc<Target>, _count: usize) {}
}
