//! Joins the plan, the memory of wants, their replies and the locators of blobs; knows no sockets.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use spanfs_layer::Digest;

use crate::blob::{Class, FetchError, FetchErrorDetail, Fetched};
use crate::mailbox::{Command, Mailbox};
use crate::memory::{BufferPool, Destination};
use crate::plan::{
    Action, BlobId, Failure, FailureKind, Feed, GaveUp, Located, Plan, PlanOptions, Start,
    TransferId, WantId,
};
use crate::stats::Counters;
use crate::target::{Locate, LocateError, Target, TargetFailure};
use crate::transfer::{Event, Job, Mover, Segment, Supply};

/// The engine's state, owned by its one thread.
pub(crate) struct Driver {
    plan: Plan,
    blobs: BTreeMap<BlobId, Source>,
    wants: BTreeMap<WantId, Pending>,
    transfers: BTreeMap<TransferId, (BlobId, u64)>,
    pool: Arc<BufferPool>,
    mailbox: Arc<Mailbox>,
    counters: Arc<Counters>,
    /// Where connections are to be opened before there is a request.
    ahead: Vec<Arc<Target>>,
    connections_max: usize,
}

struct Source {
    digest: Digest,
    size: u64,
    locate: Arc<dyn Locate>,
    target: Option<Arc<Target>>,
    /// Set once its host is known to have no ranges.
    whole: Arc<std::sync::atomic::AtomicBool>,
}

struct Pending {
    blob: BlobId,
    digest: Digest,
    range: Range<u64>,
    headroom: usize,
    reply: Box<dyn FnOnce(Result<Fetched, FetchError>) + Send>,
    destination: Option<Destination>,
}

impl Driver {
    pub(crate) fn new(
        options: PlanOptions,
        pool: Arc<BufferPool>,
        mailbox: Arc<Mailbox>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            ahead: Vec::new(),
            connections_max: options.connections_max,
            plan: Plan::new(options),
            blobs: BTreeMap::new(),
            wants: BTreeMap::new(),
            transfers: BTreeMap::new(),
            pool,
            mailbox,
            counters,
        }
    }

    /// Take a command of a caller in.
    pub(crate) fn command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Open { blob, digest, size, locate, whole } => {
                self.plan.handle_open(blob, size);
                self.blobs.insert(blob, Source { digest, size, locate, target: None, whole });
            }
            Command::Want { id, blob, want } => {
                let Some(source) = self.blobs.get(&blob) else {
                    return (want.reply)(Err(FetchError::Cancelled));
                };
                let pending = Pending {
                    blob,
                    digest: source.digest,
                    range: want.range.clone(),
                    headroom: want.headroom,
                    reply: want.reply,
                    destination: None,
                };
                self.wants.insert(id, pending);
                self.plan.handle_want(id, blob, want.range, want.priority, now);
            }
            Command::Promote { id, priority } => self.plan.handle_promote(id, priority),
            Command::Cancel { id } => self.plan.handle_cancel(id),
            Command::Distrust { blob } => self.plan.handle_distrust(blob, now),
            Command::Located { blob, generation, result } => {
                self.located(blob, generation, result, now);
            }
            Command::Prepare { blob } => self.prepare(blob),
            Command::Prepared { target } => self.ahead.push(target),
            Command::Close { blob } => self.plan.handle_close(blob),
        }
    }

    /// Take news of a transfer in.
    pub(crate) fn event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Moved { id, bytes } => {
                self.counters.bytes.add(bytes);
                self.plan.handle_moved(id, bytes);
            }
            Event::Filled { id, segment } => self.filled(id, segment, now),
            Event::Hungry { id, position } => self.plan.handle_hungry(id, position, now),
            Event::Ended { id, segments, result } => {
                for segment in segments {
                    self.return_segment(id, segment, now);
                }
                if let Err(failure) = &result {
                    self.note_failure(id, failure);
                }
                self.plan.handle_ended(id, result, now);
                self.transfers.remove(&id);
            }
        }
    }

    /// Do all that the plan wishes for now.
    pub(crate) fn pump(&mut self, mover: &mut dyn Mover, now: Instant) {
        if self.plan.poll_timeout().is_some_and(|at| at <= now) {
            self.plan.handle_timeout(now);
        }
        for target in self.ahead.drain(..) {
            mover.open_ahead(&target, self.connections_max);
        }
        while let Some(action) = self.plan.poll_action(now) {
            match action {
                Action::Locate { blob, generation, failure } => {
                    self.locate(blob, generation, failure);
                }
                Action::Start(start) => self.start(start, mover),
                Action::Abandon(id) => mover.abandon(id),
                Action::Feed(id, Feed::Stop) => mover.supply(id, Supply::Stop),
                Action::Feed(id, Feed::Segment(want, range)) => {
                    let segment = self.segment(want, range);
                    mover.supply(id, Supply::Segment(segment));
                }
                Action::Reply(id, result) => self.reply(id, result),
            }
        }
        if self.blobs.len() > self.plan.blobs_count() {
            self.blobs.retain(|&id, _| self.plan.knows(id));
        }
        self.counters.inflight_bytes.set(self.plan.inflight_bytes());
        self.counters.transfers.set(self.plan.transfers_count() as u64);
    }

    /// When `pump` has something to do without further news.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.plan.poll_timeout()
    }

    /// Reply to everybody; nothing is sent any more.
    pub(crate) fn stop(&mut self) {
        for (_, pending) in std::mem::take(&mut self.wants) {
            (pending.reply)(Err(FetchError::Cancelled));
        }
    }

    fn start(&mut self, start: Start, mover: &mut dyn Mover) {
        let Some(source) = self.blobs.get(&start.blob) else { return };
        let size = source.size;
        let Some(target) = source.target.clone() else { return };
        self.transfers.insert(start.id, (start.blob, target.id));
        self.counters.requests.add(1);
        let mut segments = VecDeque::with_capacity(start.segments.len());
        for (want, range) in start.segments {
            segments.push_back(self.segment(want, range));
        }
        let (id, range, whole) = (start.id, start.range, start.whole);
        mover.start(Job { id, target, range, size, whole, segments });
    }

    fn segment(&mut self, id: WantId, range: Range<u64>) -> Segment {
        let bytes = self
            .wants
            .get_mut(&id)
            .and_then(|pending| pending.destination(&self.pool).lend(&range));
        let bytes = bytes.unwrap_or_default();
        let len = range.end - range.start;
        assert_eq!(bytes.len() as u64, len, "the memory of {range:?} of {id:?} is not there");
        Segment { want: id, range, bytes, filled: 0 }
    }

    fn filled(&mut self, id: TransferId, segment: Segment, now: Instant) {
        let Segment { want, range, bytes, .. } = segment;
        let copies = self.plan.handle_filled(id, want, range.clone(), now);
        for (sharer, part) in copies {
            let from = usize::try_from(part.start - range.start).unwrap_or(usize::MAX);
            let to = usize::try_from(part.end - range.start).unwrap_or(usize::MAX);
            let source = bytes.get(from..to).unwrap_or_default();
            if let Some(pending) = self.wants.get_mut(&sharer) {
                pending.destination(&self.pool).copy(part.start, source);
            }
        }
        self.restore(want, range.start, bytes);
    }

    /// Memory of an ended transfer: what is filled counts, the rest is wanted again.
    fn return_segment(&mut self, id: TransferId, mut segment: Segment, now: Instant) {
        let rest = segment.bytes.split_off(segment.filled);
        let middle = segment.range.start + segment.filled as u64;
        if !rest.is_empty() {
            self.restore(segment.want, middle, rest);
        }
        if segment.filled > 0 {
            segment.range.end = middle;
            self.filled(id, segment, now);
        }
    }

    fn restore(&mut self, want: WantId, start: u64, bytes: bytes::BytesMut) {
        if let Some(destination) =
            self.wants.get_mut(&want).and_then(|pending| pending.destination.as_mut())
        {
            destination.restore(start, bytes);
        }
    }

    fn reply(&mut self, id: WantId, result: Result<(), GaveUp>) {
        let Some(pending) = self.wants.remove(&id) else { return };
        let Pending { blob, digest, range, headroom, reply, destination } = pending;
        let result = match (result, destination) {
            (Ok(()), Some(destination)) => {
                Ok(Fetched { bytes: destination.into_buffer(), headroom })
            }
            (Ok(()), None) => unreachable!("want {id:?} is complete without memory"),
            (Err(gave_up), _) => {
                let blob = self.blobs.get(&blob).and_then(|source| source.target.as_ref());
                Err(error(digest, range, gave_up, blob.map(|target| target.host.as_str())))
            }
        };
        reply(result);
    }

    fn note_failure(&mut self, id: TransferId, failure: &Failure) {
        let Some(&(blob, _)) = self.transfers.get(&id) else { return };
        let Some(source) = self.blobs.get(&blob) else { return };
        if failure.kind == FailureKind::NoRanges {
            source.whole.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        if failure.kind != FailureKind::Abandoned {
            self.counters.failures.add(1);
            let host = source.target.as_ref().map_or("", |target| target.host.as_str());
            tracing::debug!(digest = %source.digest, host, "request failed: {}", failure.message);
        }
    }

    /// Ask where the blob is. The plan asks for itself when it has a request; the locator answers that
    /// out of its memory.
    fn prepare(&self, id: BlobId) {
        let Some(source) = self.blobs.get(&id) else { return };
        let mailbox = Arc::clone(&self.mailbox);
        let reply = move |result: Result<Target, LocateError>| {
            // Why it is not to be had is told to whoever wants bytes.
            if let Ok(target) = result {
                mailbox.send(Command::Prepared { target: Arc::new(target) });
            }
        };
        source.locate.locate(None, Box::new(reply));
    }

    fn locate(&mut self, id: BlobId, generation: u64, failure: Option<Failure>) {
        let Some(source) = self.blobs.get(&id) else { return };
        let failure = failure.map(|failure| TargetFailure {
            id: source.target.as_ref().map_or(0, |target| target.id),
            status: failure.status(),
            challenge: failure.challenge,
            location: failure.location,
            message: failure.message,
        });
        let mailbox = Arc::clone(&self.mailbox);
        let reply = move |result| {
            mailbox.send(Command::Located { blob: id, generation, result });
        };
        source.locate.locate(failure, Box::new(reply));
    }

    fn located(
        &mut self,
        id: BlobId,
        generation: u64,
        result: Result<Target, LocateError>,
        now: Instant,
    ) {
        let Some(source) = self.blobs.get_mut(&id) else { return };
        let (target, result) = match result {
            Ok(target) if target.addresses.is_empty() => {
                let message = format!("no address is known for {}", target.host);
                (None, Err(GaveUp { class: Class::Retry, message }))
            }
            Ok(target) => {
                // A new URL of a host that asked for patience changes nothing for the host.
                let changed = source.target.as_ref().is_none_or(|old| old.host != target.host);
                let (host, expires) = (target.host.clone(), target.expires);
                (Some(target), Ok(Located { host, expires, changed }))
            }
            Err(LocateError::Retry(message)) => {
                (None, Err(GaveUp { class: Class::Retry, message }))
            }
            Err(LocateError::Refused(message)) => {
                (None, Err(GaveUp { class: Class::Refused, message }))
            }
            Err(LocateError::Gone(message)) => (None, Err(GaveUp { class: Class::Gone, message })),
        };
        if self.plan.handle_located(id, generation, result, now)
            && let Some(target) = target
        {
            source.target = Some(Arc::new(target));
        }
    }
}

impl Pending {
    fn destination(&mut self, pool: &BufferPool) -> &mut Destination {
        let fresh = || Destination::new(self.range.clone(), self.headroom, pool);
        self.destination.get_or_insert_with(fresh)
    }
}

fn error(digest: Digest, range: Range<u64>, gave_up: GaveUp, host: Option<&str>) -> FetchError {
    let message = match host {
        Some(host) => format!("{host}: {}", gave_up.message),
        None => gave_up.message,
    };
    let detail = FetchErrorDetail { digest, range, message };
    match gave_up.class {
        Class::Retry => FetchError::Unreachable(detail),
        Class::Refused => FetchError::Refused(detail),
        Class::Corrupt => FetchError::Corrupt(detail),
        Class::Gone => FetchError::Gone(detail),
        Class::Cancelled => FetchError::Cancelled,
    }
}
