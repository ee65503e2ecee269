//! Which bytes to request next, of which blob, on how many connections. Pure: no socket, no clock.
//!
//! The shell tells it (`handle_*`) and asks it (`poll_*`). Invariants, asserted where they are kept:
//! memory behind started wants stays within the budget; no byte is requested by two transfers at
//! once; every want is replied to exactly once.

mod blob;
mod budget;
mod source;
mod speeds;
mod types;
mod whole;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::blob::{Class, Priority};
use crate::ranges::RangeSet;
use crate::retry::Backoff;
use blob::{Blob, Want};
use budget::Budget;
pub(crate) use source::Located;
use speeds::Speeds;
pub use types::PlanOptions;
pub(crate) use types::{
    Action, BlobId, Failure, FailureKind, Feed, GaveUp, Start, TransferId, WantId,
};

/// The fetch plan.
pub(crate) struct Plan {
    options: PlanOptions,
    blobs: BTreeMap<BlobId, Blob>,
    wants: BTreeMap<WantId, Want>,
    /// Wants that may have bytes nobody has requested yet, most urgent and then oldest first.
    queue: BTreeSet<(Reverse<Priority>, WantId)>,
    /// Wants that hold memory, by when they took it.
    started: BTreeSet<(Instant, WantId)>,
    transfers: BTreeMap<TransferId, Transfer>,
    budget: Budget,
    backoff: Backoff,
    /// Hosts without ranges, until when that is remembered.
    whole_hosts: BTreeMap<String, Instant>,
    speeds: Speeds,
    /// When the next background transfer may start, under a cap.
    background_after: Option<Instant>,
    actions: VecDeque<Action>,
    id_next: u64,
}

/// A request under way.
struct Transfer {
    blob: BlobId,
    /// Of the target that it was sent to.
    generation: u64,
    priority: Priority,
    /// Parts requested and neither filled nor given up, in order.
    outstanding: Vec<(WantId, Range<u64>)>,
    began: Instant,
    /// When its speed was looked at, and what it had received.
    looked_at: (Instant, u64),
    received: u64,
    progressed: bool,
    abandoned: bool,
    /// Position and since when it waits there for a destination; only of whole-blob streams.
    stream: Option<Stream>,
}

#[derive(Clone, Copy)]
struct Stream {
    position: u64,
    parked: Option<Instant>,
}

impl Plan {
    pub(crate) fn new(options: PlanOptions) -> Self {
        Self {
            budget: Budget::new(options.inflight_bytes_max),
            backoff: Backoff::new(&options.retry),
            options,
            blobs: BTreeMap::new(),
            wants: BTreeMap::new(),
            queue: BTreeSet::new(),
            started: BTreeSet::new(),
            transfers: BTreeMap::new(),
            whole_hosts: BTreeMap::new(),
            speeds: Speeds::default(),
            background_after: None,
            actions: VecDeque::new(),
            id_next: 0,
        }
    }

    /// Memory behind started wants, in bytes.
    pub(crate) fn inflight_bytes(&self) -> u64 {
        self.budget.used()
    }

    /// Requests under way.
    pub(crate) fn transfers_count(&self) -> usize {
        self.transfers.len()
    }

    /// A blob of `size` bytes will be wanted.
    pub(crate) fn handle_open(&mut self, blob: BlobId, size: u64) {
        self.blobs.insert(blob, Blob::new(size));
    }

    /// No further want of the blob will come.
    pub(crate) fn handle_close(&mut self, blob: BlobId) {
        if let Some(state) = self.blobs.get_mut(&blob) {
            state.closed = true;
        }
        self.forget_if_done(blob);
    }

    /// Take a want in. It is replied to exactly once, whatever happens.
    pub(crate) fn handle_want(
        &mut self,
        id: WantId,
        blob: BlobId,
        range: Range<u64>,
        priority: Priority,
        now: Instant,
    ) {
        let size = self.blobs.get(&blob).map_or(0, |blob| blob.size);
        let len = range.end.saturating_sub(range.start);
        let refusal = if len == 0 || range.end > size {
            Some(format!("the range is empty or ends behind the blob's {size} bytes"))
        } else if len > self.budget.max() {
            Some(format!("{len} bytes at once exceed the budget of {}", self.budget.max()))
        } else if self.wants.len() >= self.options.wants_max {
            Some(format!("{} wants are waiting already", self.wants.len()))
        } else {
            None
        };
        if let Some(message) = refusal {
            let gave_up = GaveUp { class: Class::Refused, message };
            self.actions.push_back(Action::Reply(id, Err(gave_up)));
            return;
        }
        let missing = RangeSet::from(range.clone());
        let want =
            Want { blob, range: range.clone(), priority, missing, arrived: now, started: None };
        let replaced = self.wants.insert(id, want);
        assert!(replaced.is_none(), "want {id:?} came twice");
        self.queue.insert((Reverse(priority), id));
        if let Some(blob) = self.blobs.get_mut(&blob) {
            blob.add_want(id, &range);
        }
    }

    /// Raise a want's priority.
    pub(crate) fn handle_promote(&mut self, id: WantId, priority: Priority) {
        let Some(want) = self.wants.get_mut(&id).filter(|want| want.priority < priority) else {
            return;
        };
        if self.queue.remove(&(Reverse(want.priority), id)) {
            self.queue.insert((Reverse(priority), id));
        }
        want.priority = priority;
    }

    /// Nobody waits for this want any more.
    pub(crate) fn handle_cancel(&mut self, id: WantId) {
        if self.wants.contains_key(&id) {
            self.finish(id, Err(GaveUp::cancelled()));
        }
    }

    /// Bytes arrived, wherever they go.
    pub(crate) fn handle_moved(&mut self, id: TransferId, bytes: u64) {
        let Some(transfer) = self.transfers.get_mut(&id) else { return };
        transfer.received += bytes;
        if transfer.received >= self.options.progress_bytes_min {
            transfer.progressed = true;
            let blob = transfer.blob;
            self.clear_trouble(blob);
        }
    }

    /// A part is in memory. Returns the other wants that need (part of) the same bytes: the shell
    /// copies them before it asks for the next action.
    pub(crate) fn handle_filled(
        &mut self,
        id: TransferId,
        owner: WantId,
        range: Range<u64>,
        now: Instant,
    ) -> Vec<(WantId, Range<u64>)> {
        let Some(transfer) = self.transfers.get_mut(&id) else { return Vec::new() };
        let blob = transfer.blob;
        let filled = transfer.fill(owner, &range);
        assert!(filled, "{id:?} filled {range:?}, which it was not to request");
        if let Some(stream) = &mut transfer.stream {
            stream.position = range.end;
        }
        self.settle(blob, owner, &range);
        let sharers: Vec<WantId> =
            self.blobs.get(&blob).map_or(Vec::new(), |state| state.wants_near(&range).collect());
        let mut copies = Vec::new();
        for sharer in sharers {
            let needs = |want: &Want| want.missing.overlaps(range.clone());
            if !self.wants.get(&sharer).is_some_and(needs) {
                continue;
            }
            if !self.fits(sharer) {
                // No memory for a copy now: it fetches the bytes itself when its turn comes.
                self.enqueue(sharer);
                continue;
            }
            self.start_want(sharer, now);
            let Some(want) = self.wants.get_mut(&sharer) else { continue };
            let mut part = range.clone();
            while let Some(run) = want.missing.first_in(part.clone()) {
                part.start = run.end;
                want.missing.remove(run.clone());
                if sharer != owner {
                    copies.push((sharer, run));
                }
            }
        }
        let done: Vec<WantId> = copies.iter().map(|&(want, _)| want).chain([owner]).collect();
        for id in done {
            if self.wants.get(&id).is_some_and(|want| want.missing.is_empty()) {
                self.finish(id, Ok(()));
            }
        }
        copies
    }

    /// A transfer is over: wholly done, failed, or abandoned. What it did not fill is wanted again.
    pub(crate) fn handle_ended(
        &mut self,
        id: TransferId,
        result: Result<(), Failure>,
        now: Instant,
    ) {
        let Some(transfer) = self.transfers.remove(&id) else { return };
        for (owner, range) in &transfer.outstanding {
            self.settle(transfer.blob, *owner, range);
        }
        if !transfer.outstanding.is_empty() || transfer.stream.is_some() {
            let wants: Vec<WantId> =
                self.blobs.get(&transfer.blob).map_or(Vec::new(), |blob| blob.wants().collect());
            wants.into_iter().for_each(|id| self.enqueue(id));
        }
        match result {
            Ok(()) => self.handle_success(&transfer, now),
            Err(failure) => self.handle_failure(&transfer, failure, now),
        }
        self.forget_if_done(transfer.blob);
    }

    /// The next thing to do at this time, until there is none.
    pub(crate) fn poll_action(&mut self, now: Instant) -> Option<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            if self.poll_streams(now) {
                continue;
            }
            if let Some(start) = self.poll_start(now) {
                return Some(Action::Start(start));
            }
            if self.actions.is_empty() {
                return None;
            }
        }
    }

    /// Fail what has waited too long. Call when `poll_timeout` has passed; harmless earlier.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.expire_locates(now);
        self.abandon_laggards(now);
        let late = self.deadlines().filter(|&(at, _)| at <= now).map(|(_, id)| id);
        let late: Vec<WantId> = late.collect();
        for id in late {
            let Some(want) = self.wants.get(&id) else { continue };
            let waited = now.saturating_duration_since(want.arrived);
            let reason = self.blobs.get(&want.blob).and_then(|blob| blob.gave_up_reason(waited));
            let fallback = || GaveUp {
                class: Class::Retry,
                message: format!("not complete after {:.1} s", waited.as_secs_f64()),
            };
            self.finish(id, Err(reason.unwrap_or_else(fallback)));
        }
        self.whole_hosts.retain(|_, until| *until > now);
        for blob in self.blobs.values_mut() {
            blob.not_before = blob.not_before.filter(|&at| at > now);
        }
        self.background_after = self.background_after.filter(|&at| at > now);
    }

    /// When `handle_timeout` or `poll_action` will have something to do without further news.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let wants = self.deadlines().map(|(at, _)| at);
        let blobs = self.blobs.values().filter(|blob| blob.is_wanted()).filter_map(Blob::wake_at);
        let streams = self.transfers.values().filter_map(|transfer| transfer.stream?.parked);
        let streams = streams.map(|since| since + self.options.stream_idle);
        let background = self.background_after.filter(|_| !self.queue.is_empty());
        wants.chain(blobs).chain(streams).chain(background).chain(self.look_at()).min()
    }

    /// Deadlines of wants whose blob is in trouble, and of the want that was started first.
    fn deadlines(&self) -> impl Iterator<Item = (Instant, WantId)> + '_ {
        let retry = &self.options.retry;
        let stuck = self.blobs.values().flat_map(move |blob| {
            blob.trouble_since.into_iter().flat_map(move |since| {
                blob.wants().filter_map(move |id| {
                    Some((since.max(self.wants.get(&id)?.arrived) + retry.deadline, id))
                })
            })
        });
        let oldest = self.started.first();
        stuck.chain(oldest.map(|&(started, id)| (started + retry.total_max, id)))
    }

    fn enqueue(&mut self, id: WantId) {
        if let Some(want) = self.wants.get(&id) {
            self.queue.insert((Reverse(want.priority), id));
        }
    }

    /// False once nobody can want or hold bytes of the blob any more.
    pub(crate) fn knows(&self, blob: BlobId) -> bool {
        self.blobs.contains_key(&blob)
    }

    /// Blobs known.
    pub(crate) fn blobs_count(&self) -> usize {
        self.blobs.len()
    }

    fn poll_start(&mut self, now: Instant) -> Option<Start> {
        let waiting = self.queue.first().is_some_and(|(first, _)| first.0 == Priority::OnDemand)
            || self.transfers.values().any(|transfer| transfer.priority == Priority::OnDemand);
        let mut next = self.queue.first().copied();
        while let Some(entry @ (Reverse(priority), id)) = next {
            next = self.queue.range((Excluded(entry), Unbounded)).next().copied();
            if !self.may_connect(priority, waiting, now) {
                return None;
            }
            let Some(want) = self.wants.get(&id) else { continue };
            let blob = want.blob;
            if self.blobs.get(&blob).is_some_and(|state| state.first_gap(want).is_none()) {
                self.queue.remove(&entry);
                continue;
            }
            if !self.source_is_ready(blob, now) {
                continue;
            }
            if self.blob_is_whole(blob) {
                match self.start_whole(blob, priority, now) {
                    None => continue,
                    start => return start,
                }
            }
            // Nothing less urgent overtakes a want that waits for memory, or it would starve.
            return if self.fits(id) { self.start_ranged(id, now) } else { None };
        }
        None
    }

    fn start_ranged(&mut self, id: WantId, now: Instant) -> Option<Start> {
        let want = self.wants.get(&id)?;
        let (blob_id, priority) = (want.blob, want.priority);
        let gap = self.blobs.get(&blob_id)?.first_gap(want)?;
        let segments = self.gather(id, gap, now);
        let range = segments.first()?.1.start..segments.last()?.1.end;
        if let (Priority::Background, Some(rate)) = (priority, self.options.background_rate) {
            let seconds = (range.end - range.start) as f64 / rate.max(1) as f64;
            self.background_after = Some(now + Duration::from_secs_f64(seconds));
        }
        let transfer = self.begin(blob_id, priority, segments.clone(), None, now)?;
        Some(Start { id: transfer, blob: blob_id, range, whole: false, segments })
    }

    /// Parts for one request from `gap.start` on: of this want, and of its neighbours if it is short.
    fn gather(&mut self, id: WantId, gap: Range<u64>, now: Instant) -> Vec<(WantId, Range<u64>)> {
        let Some(want) = self.wants.get(&id) else { return Vec::new() };
        let (blob, start) = (want.blob, gap.start);
        let (cut, join) = self.lengths(want);
        let mut end = gap.end.min(start + cut);
        // No request for a remnant.
        if gap.end - end < cut / 4 {
            end = gap.end;
        }
        let mut segments = vec![(id, start..end)];
        self.start_want(id, now);
        while end - start < join && end == segments.last().map_or(end, |(_, last)| last.end) {
            let Some((neighbour, run)) = self.neighbour_at(blob, end) else { break };
            let run = run.start..run.end.min(start + cut);
            if run.is_empty() {
                break;
            }
            self.start_want(neighbour, now);
            end = run.end;
            segments.push((neighbour, run));
        }
        segments
    }

    /// Longest request for a want, and the length up to which neighbours join it.
    fn lengths(&self, want: &Want) -> (u64, u64) {
        let options = &self.options;
        if want.priority == Priority::OnDemand {
            // Many readers fill the connections by themselves: the smaller their pieces, the more
            // of a connection's time goes by between a request and its answer.
            let connections = options.connections_max.max(1);
            let urgent =
                |(priority, _): &&(Reverse<Priority>, WantId)| priority.0 == Priority::OnDemand;
            let waiting = self.queue.iter().take(connections).filter(urgent).count().max(1);
            let share = want.len() / connections as u64 * waiting as u64;
            let longest = options.transfer_bytes_max.max(options.piece_bytes);
            let piece = share.clamp(options.piece_bytes, longest);
            return (piece, piece);
        }
        let capped = match (want.priority, options.background_rate) {
            (Priority::Background, Some(rate)) => rate.max(options.piece_bytes),
            _ => u64::MAX,
        };
        let cut = options.transfer_bytes_max.min(capped);
        (cut, options.join_bytes.min(cut))
    }

    /// A want of the blob whose next unrequested byte is exactly at `position`.
    fn neighbour_at(&self, blob: BlobId, position: u64) -> Option<(WantId, Range<u64>)> {
        let state = self.blobs.get(&blob)?;
        state.wants_near(&(position..position + 1)).find_map(|id| {
            let gap = state.first_gap_from(self.wants.get(&id)?, position)?;
            (gap.start == position && self.fits(id)).then_some((id, gap))
        })
    }

    fn begin(
        &mut self,
        blob: BlobId,
        priority: Priority,
        outstanding: Vec<(WantId, Range<u64>)>,
        stream: Option<Stream>,
        now: Instant,
    ) -> Option<TransferId> {
        let state = self.blobs.get_mut(&blob)?;
        for (_, range) in &outstanding {
            state.request(range);
        }
        let generation = state.generation;
        self.id_next += 1;
        let id = TransferId(self.id_next);
        let transfer = Transfer {
            blob,
            generation,
            priority,
            outstanding,
            began: now,
            looked_at: (now, 0),
            received: 0,
            progressed: false,
            abandoned: false,
            stream,
        };
        self.transfers.insert(id, transfer);
        assert!(self.transfers.len() <= self.options.connections_max, "too many transfers");
        Some(id)
    }

    fn may_connect(&self, priority: Priority, waiting: bool, now: Instant) -> bool {
        let options = &self.options;
        let active = self.transfers.len();
        let shared = options.connections_max.saturating_sub(options.connections_demand).max(1);
        match priority {
            Priority::OnDemand => active < options.connections_max,
            Priority::Prefetch => active < shared,
            Priority::Background => {
                let count = |t: &&Transfer| t.priority == Priority::Background;
                let background = self.transfers.values().filter(count).count();
                active < shared
                    && (!waiting || background < options.connections_background)
                    && self.background_after.is_none_or(|after| after <= now)
            }
        }
    }

    fn fits(&self, id: WantId) -> bool {
        self.wants.get(&id).is_some_and(|want| {
            want.started.is_some() || self.budget.fits(want.priority, want.len())
        })
    }

    fn start_want(&mut self, id: WantId, now: Instant) {
        let Some(want) = self.wants.get_mut(&id) else { return };
        if want.started.is_none() {
            want.started = Some((now, want.priority));
            self.started.insert((now, id));
            self.budget.charge(want.priority, want.len());
        }
    }

    /// Forget a want and reply to it. What is still on its way for it stays charged until it ends.
    fn finish(&mut self, id: WantId, result: Result<(), GaveUp>) {
        let Some(want) = self.wants.remove(&id) else { return };
        self.queue.remove(&(Reverse(want.priority), id));
        if let Some(blob) = self.blobs.get_mut(&want.blob) {
            blob.remove_want(id, &want.range);
        }
        if let Some((started, priority)) = want.started {
            self.started.remove(&(started, id));
            let owed = self.owed(want.blob, id);
            self.budget.release(priority, want.len() - owed);
            if owed > 0
                && let Some(blob) = self.blobs.get_mut(&want.blob)
            {
                blob.ghosts.insert(id, (priority, owed));
            }
        }
        if result.is_err() {
            self.abandon_unwanted(want.blob);
        }
        self.actions.push_back(Action::Reply(id, result));
        self.forget_if_done(want.blob);
    }

    /// Bytes of the want's memory that transfers still write to.
    fn owed(&self, blob: BlobId, id: WantId) -> u64 {
        let of_blob = self.transfers.values().filter(|transfer| transfer.blob == blob);
        let parts = of_blob.flat_map(|transfer| &transfer.outstanding);
        parts.filter(|(owner, _)| *owner == id).map(|(_, range)| range.end - range.start).sum()
    }

    /// A part is no longer on its way, for better or worse.
    fn settle(&mut self, blob: BlobId, owner: WantId, range: &Range<u64>) {
        let Some(state) = self.blobs.get_mut(&blob) else { return };
        state.inflight.remove(range.clone());
        let len = range.end - range.start;
        if let Some((priority, owed)) = state.ghosts.get_mut(&owner) {
            assert!(len <= *owed, "{owner:?} is owed {owed} bytes and got {len}");
            *owed -= len;
            let (priority, rest) = (*priority, *owed);
            if rest == 0 {
                state.ghosts.remove(&owner);
            }
            self.budget.release(priority, len);
        }
    }

    /// End the transfers of a blob whose bytes nobody wants.
    fn abandon_unwanted(&mut self, blob: BlobId) {
        let Some(state) = self.blobs.get(&blob) else { return };
        let wanted = |range: &Range<u64>| {
            let mut wants = state.wants_near(range).filter_map(|id| self.wants.get(&id));
            wants.any(|want| want.missing.overlaps(range.clone()))
        };
        for (&id, transfer) in &mut self.transfers {
            let concerned = transfer.blob == blob && !transfer.abandoned;
            let unwanted = !transfer.outstanding.is_empty()
                && transfer.outstanding.iter().all(|(_, range)| !wanted(range));
            if concerned && unwanted && transfer.stream.is_none() {
                transfer.abandoned = true;
                self.actions.push_back(Action::Abandon(id));
            }
        }
    }

    fn forget_if_done(&mut self, id: BlobId) {
        let done = self.blobs.get(&id).is_some_and(Blob::is_done);
        if done && !self.transfers.values().any(|transfer| transfer.blob == id) {
            self.blobs.remove(&id);
        }
    }
}

impl Transfer {
    /// Strike a part off the list; a part may come in several runs from its start on.
    fn fill(&mut self, owner: WantId, range: &Range<u64>) -> bool {
        let starts = |(want, part): &(WantId, Range<u64>)| {
            *want == owner && part.start == range.start && part.end >= range.end
        };
        let Some(index) = self.outstanding.iter().position(starts) else { return false };
        let (_, part) = self.outstanding.remove(index);
        if part.end > range.end {
            self.outstanding.insert(index, (owner, range.end..part.end));
        } else {
            self.progressed = true;
        }
        true
    }
}
