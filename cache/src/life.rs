//! Where each span of a layer stands: one table of moves, readable without a lock.
//!
//! ```text
//!              ask             match              inflate           keep
//!   absent ─────────▶ asked ──────────▶ verified ──────────▶ fresh ─────────▶ in file / in memory
//!     ▲                ▲ │                  │                  │                   │
//!     │     check      │ │ believe          │ fail             │ fail              │ evict (memory)
//!     │   claimed ─────┘ └─▶ in file        ▼                  ▼                   ▼
//!     └──────────────────────────────── (absent) ◀───────────────────────────── (absent)
//! ```
//!
//! *Claimed* spans stand in the journal of an earlier run; they are believed only after the
//! checksum of what the layer file holds matched.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// State of one span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Life {
    /// Nobody has it and nobody asked.
    Absent,
    /// The journal of an earlier run names it; unchecked.
    Claimed,
    /// Somebody asked: it is being checked or fetched.
    Asked,
    /// Its compressed bytes match the zTOC's digest; it is being inflated.
    Verified,
    /// Readable from the layer file.
    InFile,
    /// Readable from the memory tier, because the disk refused it.
    InMemory,
    /// Readable from where it was inflated to, while it is being written to the layer file.
    Fresh,
}

/// What happens to a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The journal of an earlier run names it.
    Claim,
    /// Somebody wants it.
    Ask,
    /// What the layer file holds has the recorded checksum.
    Believe,
    /// The compressed bytes have the promised digest.
    Match,
    /// Inflated.
    Inflate,
    /// Written and recorded.
    KeepInFile,
    /// Put into the memory tier.
    KeepInMemory,
    /// It could not be had.
    Fail,
    /// The memory tier dropped it.
    Evict,
    /// What the layer file holds is not what was written.
    Lose,
}

impl Life {
    /// The table of moves; `None` is a move that must not happen.
    pub(crate) fn next(self, event: Event) -> Option<Life> {
        match (self, event) {
            (Self::Absent, Event::Claim) => Some(Self::Claimed),
            (Self::Absent | Self::Claimed, Event::Ask) => Some(Self::Asked),
            (Self::Asked, Event::Believe) => Some(Self::InFile),
            (Self::Asked, Event::Match) => Some(Self::Verified),
            (Self::Verified, Event::Inflate) => Some(Self::Fresh),
            (Self::Fresh, Event::KeepInFile) => Some(Self::InFile),
            (Self::Fresh, Event::KeepInMemory) => Some(Self::InMemory),
            (Self::Asked | Self::Verified | Self::Fresh, Event::Fail) => Some(Self::Absent),
            (Self::InMemory, Event::Evict) => Some(Self::Absent),
            (Self::InFile | Self::Claimed, Event::Lose) => Some(Self::Absent),
            _ => None,
        }
    }

    fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Claimed,
            2 => Self::Asked,
            3 => Self::Verified,
            4 => Self::InFile,
            5 => Self::InMemory,
            6 => Self::Fresh,
            _ => Self::Absent,
        }
    }

    /// Whether its bytes can be read.
    pub(crate) fn is_readable(self) -> bool {
        matches!(self, Self::Fresh | Self::InFile | Self::InMemory)
    }
}

/// The lives of all spans of a layer.
///
/// Moves of one span are made by one thread at a time (whoever holds its shard, or the worker that
/// holds its bytes); reads need no lock.
#[derive(Debug)]
pub(crate) struct Lives {
    spans: Box<[AtomicU8]>,
    in_file: AtomicUsize,
}

impl Lives {
    /// All absent.
    pub(crate) fn new(count: usize) -> Self {
        Self {
            spans: (0..count).map(|_| AtomicU8::new(Life::Absent as u8)).collect(),
            in_file: AtomicUsize::new(0),
        }
    }

    /// Spans of the layer.
    pub(crate) fn count(&self) -> usize {
        self.spans.len()
    }

    /// Spans readable from the layer file.
    pub(crate) fn in_file(&self) -> usize {
        self.in_file.load(Ordering::Acquire)
    }

    /// State of a span; beyond the last it is absent.
    pub(crate) fn of(&self, span: usize) -> Life {
        // Acquire: whoever sees a span in the file also sees the bytes written before that.
        self.spans.get(span).map_or(Life::Absent, |it| Life::from_byte(it.load(Ordering::Acquire)))
    }

    /// Move a span; returns its new state.
    ///
    /// # Panics
    /// If the table has no such move: then our own bookkeeping is wrong.
    pub(crate) fn advance(&self, span: usize, event: Event) -> Life {
        let from = self.of(span);
        let Some((cell, to)) = self.spans.get(span).zip(from.next(event)) else {
            panic!("span {span} of {}: no move from {from:?} by {event:?}", self.count());
        };
        cell.store(to as u8, Ordering::Release);
        if to == Life::InFile {
            self.in_file.fetch_add(1, Ordering::AcqRel);
        } else if from == Life::InFile {
            self.in_file.fetch_sub(1, Ordering::AcqRel);
        }
        to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves() {
        use Event::*;
        use Life::*;
        let check = |events: &[Event], end: Option<Life>| {
            let reached = events.iter().try_fold(Absent, |life, event| life.next(*event));
            assert_eq!(reached, end, "{events:?}");
        };
        check(&[Ask, Match, Inflate, KeepInFile], Some(InFile));
        check(&[Ask, Match, Inflate, KeepInMemory, Evict, Ask], Some(Asked));
        check(&[Claim, Ask, Believe], Some(InFile));
        check(&[Claim, Ask, Match, Inflate, KeepInFile], Some(InFile));
        check(&[Ask, Fail, Ask, Match, Fail], Some(Absent));
        check(&[Ask, Match, Inflate, Fail], Some(Absent));
        check(&[Ask, Ask], None);
        check(&[Match], None);
        check(&[Ask, KeepInFile], None);
        check(&[Ask, Match, KeepInFile], None);
        check(&[Claim, Believe], None);
        check(&[Ask, Match, Inflate, KeepInFile, Evict], None);
        check(&[Ask, Match, Inflate, KeepInFile, Fail], None);
        check(&[Ask, Match, Inflate, KeepInFile, Lose, Ask], Some(Asked));
    }

    #[test]
    fn every_state_survives_its_byte() {
        use Life::*;
        for life in [Absent, Claimed, Asked, Verified, Fresh, InFile, InMemory] {
            assert_eq!(Life::from_byte(life as u8), life);
        }
    }

    #[test]
    #[should_panic(expected = "no move from Absent by Match")]
    fn an_illegal_move_is_our_own_mistake() {
        Lives::new(3).advance(2, Event::Match);
    }

    #[test]
    fn counts_what_is_in_the_file() {
        let lives = Lives::new(3);
        for event in [Event::Ask, Event::Match, Event::Inflate, Event::KeepInFile] {
            lives.advance(1, event);
        }
        assert_eq!(lives.in_file(), 1);
    }
}
