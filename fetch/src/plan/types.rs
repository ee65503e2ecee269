//! What goes into the plan and what comes out of it.

use std::ops::Range;
use std::time::Duration;

use crate::blob::Class;
use crate::retry::RetryOptions;

/// A blob as the plan knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BlobId(pub(crate) u64);

/// A want as the plan knows it; rises with arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WantId(pub(crate) u64);

/// One request on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TransferId(pub(crate) u64);

/// Sizes and limits of the plan.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// Limit of the memory behind wants that have been started and not replied.
    pub inflight_bytes_max: u64,
    /// Requests under way at once.
    pub connections_max: usize,
    /// How many of these only on-demand wants may use.
    pub connections_demand: usize,
    /// Background requests at once while anybody waits.
    pub connections_background: usize,
    /// Cap on what background wants take, in bytes per second.
    pub background_rate: Option<u64>,
    /// Smallest part into which an on-demand want is cut.
    pub piece_bytes: u64,
    /// Smaller prefetch and background wants join with their neighbours to about this.
    pub join_bytes: u64,
    /// Longest range of one request.
    pub transfer_bytes_max: u64,
    /// A transfer that got fewer bytes than this has made no progress.
    pub progress_bytes_min: u64,
    /// Wants known at once; further ones are refused.
    pub wants_max: usize,
    /// How long a stream of a whole blob waits for somebody to want the bytes at its front.
    pub stream_idle: Duration,
    /// How long a host is remembered as one without ranges.
    pub no_ranges_memory: Duration,
    /// When to try again and when to give up.
    pub retry: RetryOptions,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            // Eight connections with 4 MiB each, and as much again on its way to the inflaters.
            inflight_bytes_max: 64 << 20,
            // Measured on a link with 10 ms and 500 Mbit/s a connection: 4 cost 30 %, 16 bought nothing.
            connections_max: 8,
            // A miss never waits for the end of a prefetch; two more made no difference.
            connections_demand: 2,
            // Full-speed background tripled the start of a program that needs a tenth of its image.
            connections_background: 1,
            background_rate: None,
            // 256 KiB over 8 connections took 15 to 28 % off the time to ready; 128 KiB added to it.
            piece_bytes: 256 << 10,
            join_bytes: 1 << 20,
            transfer_bytes_max: 8 << 20,
            progress_bytes_min: 4 << 10,
            wants_max: 65_536,
            stream_idle: Duration::from_secs(10),
            no_ranges_memory: Duration::from_secs(600),
            retry: RetryOptions::default(),
        }
    }
}

/// What the plan wishes for; the shell does it.
#[derive(Debug)]
pub(crate) enum Action {
    /// Find a target for the blob and answer with `handle_located`.
    Locate { blob: BlobId, generation: u64, failure: Option<Failure> },
    /// Send a request.
    Start(Start),
    /// Nobody wants these bytes any more: end the transfer, with `handle_ended`.
    Abandon(TransferId),
    /// Answer to `handle_hungry`, perhaps later.
    Feed(TransferId, Feed),
    /// Reply to a want; it is forgotten.
    Reply(WantId, Result<(), GaveUp>),
}

/// A request to send.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) id: TransferId,
    pub(crate) blob: BlobId,
    pub(crate) range: Range<u64>,
    /// The host knows no ranges: ask for everything, and for destinations as the bytes come by.
    pub(crate) whole: bool,
    /// Whose memory takes which part, in order; abutting, together `range` unless `whole`.
    pub(crate) segments: Vec<(WantId, Range<u64>)>,
}

/// What a stream of a whole blob shall do at its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Feed {
    /// Skip to the start of the range and deliver it.
    Segment(WantId, Range<u64>),
    /// End.
    Stop,
}

/// How a transfer failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
    /// `WWW-Authenticate`, verbatim.
    pub(crate) challenge: Option<String>,
    /// `Location`, verbatim.
    pub(crate) location: Option<String>,
    pub(crate) retry_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// No connection, or it broke or stalled.
    Transport,
    /// The peer's certificate is not accepted.
    Untrusted,
    /// An answer other than the bytes.
    Status(u16),
    /// An answer that contradicts the request or HTTP.
    BadReply,
    /// The host answers ranges with everything, or refuses them.
    NoRanges,
    /// Ended as the plan wished.
    Abandoned,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { kind, message, challenge: None, location: None, retry_after: None }
    }

    pub(crate) fn transport(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Transport, message)
    }

    pub(crate) fn bad_reply(message: impl Into<String>) -> Self {
        Self::new(FailureKind::BadReply, message)
    }

    pub(crate) fn status(&self) -> Option<u16> {
        match self.kind {
            FailureKind::Status(status) => Some(status),
            _ => None,
        }
    }

    /// What a want's owner is told when this was the last straw.
    pub(crate) fn class(&self) -> Class {
        match self.kind {
            FailureKind::Status(404 | 410) => Class::Gone,
            FailureKind::Status(408 | 429 | 500..) => Class::Retry,
            FailureKind::Status(_) | FailureKind::Untrusted => Class::Refused,
            FailureKind::BadReply => Class::Corrupt,
            FailureKind::Transport | FailureKind::NoRanges | FailureKind::Abandoned => Class::Retry,
        }
    }
}

/// Why a want is not met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GaveUp {
    pub(crate) class: Class,
    pub(crate) message: String,
}

impl GaveUp {
    pub(crate) fn cancelled() -> Self {
        Self { class: Class::Cancelled, message: String::new() }
    }
}
