//! The port between those who want bytes and those who can get them.

use std::ops::Range;
use std::sync::Arc;

use spanfs_layer::Digest;

/// Who waits for a range. Orders from least to most urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Nobody: idle bandwidth.
    Background,
    /// A reader is expected soon.
    Prefetch,
    /// A reader waits.
    OnDemand,
}

/// A range that somebody needs.
///
/// `reply` is called exactly once, from a thread of the fetch engine: with the bytes, with an error,
/// or with [`FetchError::Cancelled`]. It must hand over and return at once: it runs on the thread
/// that moves everybody's bytes.
pub struct Want {
    /// Half-open range of the blob, not empty, within its size.
    pub range: Range<u64>,
    /// Who waits.
    pub priority: Priority,
    /// Bytes to leave free in front of the data, for a consumer that puts something before it.
    pub headroom: usize,
    /// Where the result goes.
    pub reply: Box<dyn FnOnce(Result<Fetched, FetchError>) + Send>,
}

/// Bytes of a want, complete and of exactly the length asked for; unverified.
#[derive(Debug)]
pub struct Fetched {
    /// `headroom` unspecified bytes, then the data.
    pub bytes: Vec<u8>,
    /// Where the data begins in `bytes`.
    pub headroom: usize,
}

impl Fetched {
    /// The data.
    pub fn data(&self) -> &[u8] {
        self.bytes.get(self.headroom..).unwrap_or_default()
    }
}

/// Bytes behind one digest.
pub trait Blob: Send + Sync {
    /// The blob's digest, as its descriptor gives it.
    fn digest(&self) -> &Digest;

    /// Length in bytes, as its descriptor gives it.
    fn size(&self) -> u64;

    /// Start getting a range. Never blocks; bounded by the engine's budget, not by the caller.
    fn want(&self, want: Want) -> Ticket;

    /// Say that much of it will be wanted soon: connections to where it is may be opened meanwhile.
    /// Never waits.
    fn prepare(&self) {}

    /// Give back the memory of a [`Fetched`] that is done with, so that later wants need no fresh
    /// pages: they cost more than all the rest of a transfer. Optional.
    fn recycle(&self, _bytes: Vec<u8>) {}

    /// What it brought was not the blob's: have the next wants met by another mirror, if there is one.
    /// Optional.
    fn distrust(&self) {}

    /// False once the source is known to answer ranges with the whole blob: then each step backwards
    /// costs a pass over it, and whoever can had better read everything once, in order.
    fn has_ranges(&self) -> bool {
        true
    }
}

/// Hold on a want that is under way. Dropping it changes nothing.
#[derive(Clone)]
pub struct Ticket(pub(crate) Arc<dyn TicketControl>);

/// What an implementation of [`Blob`] puts behind a [`Ticket`].
pub trait TicketControl: Send + Sync {
    /// See [`Ticket::promote`].
    fn promote(&self, priority: Priority);
    /// See [`Ticket::cancel`].
    fn cancel(&self);
}

impl Ticket {
    /// Wrap an implementation's own handle.
    pub fn new(control: Arc<dyn TicketControl>) -> Self {
        Self(control)
    }

    /// Raise the want's priority; lowering is ignored.
    pub fn promote(&self, priority: Priority) {
        self.0.promote(priority);
    }

    /// Nobody waits any more. The reply still comes, perhaps as [`FetchError::Cancelled`].
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A later try may succeed: network, overload, a server's 5xx.
    Retry,
    /// Refused: credentials, permission, a request that the server won't take.
    Refused,
    /// The bytes are not what was promised.
    Corrupt,
    /// It is not there.
    Gone,
    /// Nobody wanted it any more.
    Cancelled,
}

/// A range that could not be had, after all retries.
#[derive(Clone, Debug, thiserror::Error)]
#[error("fetching bytes {}..{} of {digest}: {message}", range.start, range.end)]
pub struct FetchErrorDetail {
    /// Blob.
    pub digest: Digest,
    /// Range asked for.
    pub range: Range<u64>,
    /// What was found, and after how many tries.
    pub message: String,
}

/// Why a want was not met.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// See [`Class::Retry`]; the retries and the deadline are used up.
    #[error("{0}")]
    Unreachable(FetchErrorDetail),
    /// See [`Class::Refused`].
    #[error("{0}")]
    Refused(FetchErrorDetail),
    /// See [`Class::Corrupt`].
    #[error("{0}")]
    Corrupt(FetchErrorDetail),
    /// See [`Class::Gone`].
    #[error("{0}")]
    Gone(FetchErrorDetail),
    /// See [`Class::Cancelled`].
    #[error("nobody wanted the range any more")]
    Cancelled,
}

impl FetchError {
    /// What a caller can do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Unreachable(_) => Class::Retry,
            Self::Refused(_) => Class::Refused,
            Self::Corrupt(_) => Class::Corrupt,
            Self::Gone(_) => Class::Gone,
            Self::Cancelled => Class::Cancelled,
        }
    }
}
