//! Spans asked for: one fetch and one inflate each, however many wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use spanfs_fetch::{FetchError, Fetched, Priority, Ticket, Want};

use crate::ReadError;
use crate::gather::Gather;
use crate::inflate::{HEADROOM, InflatedSpan};
use crate::life::{Event, Life};
use crate::works::Asked;

use super::{Layer, add};

/// Spans under way, in shards so that readers of different spans seldom meet.
#[derive(Default)]
pub(super) struct Shards([Mutex<Shard>; SHARD_COUNT]);

#[derive(Default)]
struct Shard {
    /// Spans under way.
    pending: HashMap<u32, Pending>,
    /// Spans that are inflated and being written: at most one a decoding thread.
    fresh: HashMap<u32, Arc<InflatedSpan>>,
    /// Spans that failed late, with the error, until when it is given at once.
    late: HashMap<u32, (Instant, ReadError)>,
}

/// More than the threads that read at once on machines of some dozen cores.
const SHARD_COUNT: usize = 16;

/// A span under way.
struct Pending {
    priority: Priority,
    /// Absent while it waits for its turn, or is checked.
    ticket: Option<Ticket>,
    waiters: Vec<Arc<Gather>>,
    since: Instant,
    /// Fetches whose bytes were not what they should be.
    corrupt_count: u32,
}

/// Times that a span is fetched before its bytes are called corrupt: another mirror may have better
/// ones.
const CORRUPT_COUNT_MAX: u32 = 2;

/// A span that failed so late fails at once when it is asked for again directly: after an error the
/// kernel asks anew, in smaller and smaller pieces, and a reader's deadline must not be paid for each.
const LATE: Duration = Duration::from_secs(2);
/// The kernel asks again within microseconds; a program that starts anew takes longer (0.1 s for a
/// container), and must not meet an old error.
const LATE_MEMORY: Duration = Duration::from_millis(50);

/// What became of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The span can be read.
    There,
    /// It comes, or fails: observers are told.
    UnderWay,
}

impl Shards {
    fn of(&self, span: usize) -> &Mutex<Shard> {
        let [first, ..] = &self.0;
        self.0.get(span % SHARD_COUNT).unwrap_or(first)
    }

    /// Keep others from moving a span.
    pub(super) fn lock(&self, span: usize) -> impl Drop + '_ {
        self.of(span).lock()
    }

    /// Nobody waits any more.
    pub(super) fn cancel_all(&self) {
        for shard in &self.0 {
            let shard = shard.lock();
            shard.pending.values().filter_map(|it| it.ticket.as_ref()).for_each(Ticket::cancel);
        }
    }
}

impl Shard {
    fn note_late(&mut self, span: usize, since: Instant, error: &ReadError) {
        let now = Instant::now();
        self.late.retain(|_, (until, _)| *until > now);
        if now.duration_since(since) >= LATE {
            self.late.insert(span as u32, (now + LATE_MEMORY, error.clone()));
        }
    }

    fn late_error(&mut self, span: usize) -> Option<ReadError> {
        let (until, error) = self.late.get(&(span as u32))?;
        if *until > Instant::now() {
            return Some(error.clone());
        }
        self.late.remove(&(span as u32));
        None
    }
}

impl Layer {
    /// Somebody wants a span; `waiter` is told when it is there.
    pub(crate) fn want(
        &self,
        span: usize,
        priority: Priority,
        waiter: Option<&Arc<Gather>>,
    ) -> Wanted {
        let mut shard = self.shards.of(span).lock();
        match self.lives.of(span) {
            Life::Fresh | Life::InFile | Life::InMemory => {
                drop(shard);
                if let Some(waiter) = waiter {
                    waiter.done(&Ok(()));
                }
                return Wanted::There;
            }
            Life::Asked | Life::Verified => {
                let Some(pending) = shard.pending.get_mut(&(span as u32)) else {
                    unreachable!("span {span} is under way without an entry");
                };
                pending.waiters.extend(waiter.cloned());
                if pending.priority < priority {
                    pending.priority = priority;
                    let ticket = pending.ticket.clone();
                    drop(shard);
                    self.promote(span, priority, ticket);
                }
            }
            Life::Absent | Life::Claimed => {
                if let (Some(waiter), Some(error)) = (waiter, shard.late_error(span)) {
                    drop(shard);
                    waiter.done(&Err(error));
                    return Wanted::UnderWay;
                }
                self.lives.advance(span, Event::Ask);
                let waiters = waiter.cloned().into_iter().collect();
                let since = Instant::now();
                let pending = Pending { priority, ticket: None, waiters, since, corrupt_count: 0 };
                shard.pending.insert(span as u32, pending);
                drop(shard);
                self.works.ask((self.id, span as u32), self.compressed_len(span), priority);
            }
        }
        Wanted::UnderWay
    }

    fn promote(&self, span: usize, priority: Priority, ticket: Option<Ticket>) {
        if let Some(ticket) = ticket {
            ticket.promote(priority);
        } else {
            // Either it waits for its turn, or `fetch` will see the new priority.
            self.works.promote((self.id, span as u32), priority);
        }
    }

    pub(super) fn compressed_len(&self, span: usize) -> u64 {
        let span = self.table.spans().get(span);
        span.map_or(0, |span| span.compressed.end.0 - span.compressed.start.0)
    }

    fn priority(&self, span: usize) -> Priority {
        let shard = self.shards.of(span).lock();
        shard.pending.get(&(span as u32)).map_or(Priority::Background, |pending| pending.priority)
    }

    /// A span's turn came: check what the file claims to hold, or fetch it.
    pub(crate) fn launch(&self, asked: Asked) {
        let span = asked.span();
        if self.claims.get(span).copied().flatten().is_none() {
            return self.fetch(asked);
        }
        let works = asked.works().clone();
        let job = move |_: &mut _| {
            let Some(layer) = asked.layer() else { return };
            if layer.believe(span) {
                layer.settle(span, Ok(Event::Believe));
                asked.close();
            } else {
                layer.fetch(asked);
            }
        };
        // Never refused: the budget bounds what is queued.
        drop(works.pool.submit(self.priority(span), 0, Box::new(job)));
    }

    /// Start the fetch of a span; its reply goes to the decoding threads.
    pub(super) fn fetch(&self, asked: Asked) {
        let number = asked.span();
        let Some(span) = self.table.spans().get(number) else { return };
        let range = span.compressed.start.0..span.compressed.end.0;
        let priority = self.priority(number);
        let works = asked.works().clone();
        let reply = move |result: Result<Fetched, FetchError>| {
            let bytes = result.as_ref().map_or(0, |fetched| fetched.bytes.len());
            let priority = asked.layer().map_or(priority, |layer| layer.priority(number));
            let job = move |decoder: &mut _| {
                if let Some(layer) = asked.layer() {
                    layer.fetched(asked, result, decoder);
                }
            };
            // Refused only if our budget does not hold; then the span's readers get an error.
            drop(works.pool.submit(priority, bytes, Box::new(job)));
        };
        let want = Want { range, priority, headroom: HEADROOM, reply: Box::new(reply) };
        add(&self.counters.fetches, 1);
        let ticket = self.blob.want(want);
        self.note_ticket(number, priority, ticket);
    }

    /// The span may have ended already, or become more urgent meanwhile.
    fn note_ticket(&self, span: usize, priority: Priority, ticket: Ticket) {
        let mut shard = self.shards.of(span).lock();
        let Some(pending) = shard.pending.get_mut(&(span as u32)) else { return };
        pending.ticket = Some(ticket.clone());
        let now = pending.priority;
        drop(shard);
        if now > priority {
            ticket.promote(now);
        }
    }

    /// A span's bytes were not what they should be: true if it is to be fetched again.
    pub(super) fn retry_corrupt(&self, span: usize) -> bool {
        let mut shard = self.shards.of(span).lock();
        let Some(pending) = shard.pending.get_mut(&(span as u32)) else { return false };
        pending.corrupt_count += 1;
        pending.corrupt_count < CORRUPT_COUNT_MAX
    }

    /// A span can be read: told to everybody who waits. What becomes of it is settled afterwards.
    pub(super) fn show(&self, span: usize, inflated: &Arc<InflatedSpan>) {
        let mut shard = self.shards.of(span).lock();
        shard.fresh.insert(span as u32, Arc::clone(inflated));
        self.lives.advance(span, Event::Inflate);
        let pending = shard.pending.get_mut(&(span as u32));
        let waiters = pending.map(|pending| std::mem::take(&mut pending.waiters));
        drop(shard);
        waiters.into_iter().flatten().for_each(|waiter| waiter.done(&Ok(())));
    }

    /// A span that is being written; `None` once that is over.
    pub(super) fn fresh(&self, span: usize) -> Option<Arc<InflatedSpan>> {
        self.shards.of(span).lock().fresh.get(&(span as u32)).cloned()
    }

    /// A span came to its end, by its last event or an error: told to everybody who waits.
    pub(crate) fn settle(&self, span: usize, result: Result<Event, ReadError>) {
        let mut shard = self.shards.of(span).lock();
        let pending = shard.pending.remove(&(span as u32));
        shard.fresh.remove(&(span as u32));
        if let (Some(pending), Err(error)) = (&pending, &result) {
            shard.note_late(span, pending.since, error);
        }
        let waiters = pending.map(|pending| pending.waiters);
        self.lives.advance(span, *result.as_ref().unwrap_or(&Event::Fail));
        drop(shard);
        let result = result.map(drop);
        waiters.into_iter().flatten().for_each(|waiter| waiter.done(&result));
        self.tell(|image, number| image.handle_settled((number, span), result.is_ok()));
        if result.is_ok() {
            self.tell_stands(span);
            self.check_complete();
        }
    }

    /// A readable span is gone.
    pub(super) fn forget(&self, span: usize, event: Event) {
        let _shard = self.shards.of(span).lock();
        if self.lives.of(span).next(event).is_some() {
            self.lives.advance(span, event);
        }
    }
}
