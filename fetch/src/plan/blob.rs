//! What the plan keeps of a blob, and of a want.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::source::Source;
use super::{BlobId, Failure, GaveUp, WantId};
use crate::blob::{Class, Priority};
use crate::ranges::RangeSet;

pub(super) struct Want {
    pub(super) blob: BlobId,
    pub(super) range: Range<u64>,
    pub(super) priority: Priority,
    /// Bytes not in its memory yet.
    pub(super) missing: RangeSet,
    pub(super) arrived: Instant,
    /// When its memory was taken, and at which priority it is charged.
    pub(super) started: Option<(Instant, Priority)>,
}

impl Want {
    pub(super) fn len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

pub(super) struct Blob {
    pub(super) size: u64,
    pub(super) source: Source,
    /// Rises with each target.
    pub(super) generation: u64,
    /// Host of the target.
    pub(super) host: String,
    pub(super) expires: Option<Instant>,
    /// Failures in a row without progress between.
    pub(super) strikes: u32,
    /// Transfers in a row that broke soon after they had begun to bring bytes.
    pub(super) drips: u32,
    pub(super) failure: Option<Failure>,
    /// No request before this.
    pub(super) not_before: Option<Instant>,
    /// Since when somebody waits for this blob without progress.
    pub(super) trouble_since: Option<Instant>,
    /// When its target was last said to bring wrong bytes.
    pub(super) distrusted_at: Option<Instant>,
    /// Bytes that transfers are to bring.
    pub(super) inflight: RangeSet,
    /// By start.
    wants: BTreeSet<(u64, WantId)>,
    /// Length of the longest want so far: bounds the search for those that overlap a range.
    want_len_max: u64,
    /// Wants that are over, with the bytes of their memory that transfers still hold.
    pub(super) ghosts: BTreeMap<WantId, (Priority, u64)>,
    pub(super) closed: bool,
}

impl Blob {
    pub(super) fn new(size: u64) -> Self {
        Self {
            size,
            source: Source::Unknown,
            generation: 0,
            host: String::new(),
            expires: None,
            strikes: 0,
            drips: 0,
            failure: None,
            not_before: None,
            trouble_since: None,
            distrusted_at: None,
            inflight: RangeSet::default(),
            wants: BTreeSet::new(),
            want_len_max: 0,
            ghosts: BTreeMap::new(),
            closed: false,
        }
    }

    pub(super) fn add_want(&mut self, id: WantId, range: &Range<u64>) {
        self.want_len_max = self.want_len_max.max(range.end - range.start);
        self.wants.insert((range.start, id));
    }

    pub(super) fn remove_want(&mut self, id: WantId, range: &Range<u64>) {
        self.wants.remove(&(range.start, id));
    }

    pub(super) fn wants(&self) -> impl Iterator<Item = WantId> + '_ {
        self.wants.iter().map(|&(_, id)| id)
    }

    pub(super) fn is_wanted(&self) -> bool {
        !self.wants.is_empty()
    }

    /// Wants that may overlap the range: all that do, and perhaps some before it.
    pub(super) fn wants_near(&self, range: &Range<u64>) -> impl Iterator<Item = WantId> + '_ {
        let first = (range.start.saturating_sub(self.want_len_max), WantId(0));
        self.wants.range(first..(range.end, WantId(0))).map(|&(_, id)| id)
    }

    /// First bytes of the want that no transfer is to bring.
    pub(super) fn first_gap(&self, want: &Want) -> Option<Range<u64>> {
        self.first_gap_from(want, want.range.start)
    }

    pub(super) fn first_gap_from(&self, want: &Want, from: u64) -> Option<Range<u64>> {
        let mut rest = from.max(want.range.start)..want.range.end;
        while let Some(run) = want.missing.first_in(rest.clone()) {
            if let Some(gap) = self.inflight.first_gap_in(run.clone()) {
                return Some(gap);
            }
            rest.start = run.end;
        }
        None
    }

    /// A transfer is to bring these bytes.
    pub(super) fn request(&mut self, range: &Range<u64>) {
        assert!(!self.inflight.overlaps(range.clone()), "{range:?} is requested twice");
        self.inflight.insert(range.clone());
    }

    /// When something can be done for its wants without further news.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        match self.source {
            Source::Locating { until } => Some(until),
            Source::Unknown | Source::Ready => self.not_before,
        }
    }

    /// What to tell a want that waited for nothing.
    pub(super) fn gave_up_reason(&self, waited: Duration) -> Option<GaveUp> {
        let failure = self.failure.as_ref()?;
        let waited = waited.as_secs_f64();
        let message =
            format!("{} (failures: {}, waited {waited:.1} s)", failure.message, self.strikes);
        let class = match failure.class() {
            Class::Cancelled => Class::Retry,
            class => class,
        };
        Some(GaveUp { class, message })
    }

    pub(super) fn is_done(&self) -> bool {
        self.closed && self.wants.is_empty() && self.ghosts.is_empty()
    }
}
