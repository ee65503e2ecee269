//! A blob's bytes in chunks, with several wants under way.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::slots::{Slot, Slots};
use crate::blob::{Blob, FetchError, FetchErrorDetail, Fetched, Priority, Ticket, Want};

/// Shape of a stream.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Length of one want in bytes; the last is shorter.
    pub chunk_bytes: u64,
    /// Chunks that are asked for, or have come and not been taken.
    pub chunks_max: usize,
    /// Limits shared with other streams on chunks that are asked for and have not come.
    pub requests: Vec<Arc<Slots>>,
    /// The same on chunks that are asked for or have not been taken: on their memory.
    pub memory: Option<Arc<Slots>>,
    /// Who waits.
    pub priority: Priority,
    /// How long no chunk at all may come; a backstop behind the engine's own deadlines.
    pub patience: Duration,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            // Long enough that a round trip of 20 ms is a small part of it at 500 Mbit/s.
            chunk_bytes: 4 << 20,
            // One per connection: with 4 MiB it is half of the engine's budget.
            chunks_max: 8,
            requests: Vec::new(),
            memory: None,
            priority: Priority::Prefetch,
            patience: Duration::from_secs(120),
        }
    }
}

/// A run of a blob.
#[derive(Debug)]
pub struct Chunk {
    /// Place of the first byte in the blob.
    pub offset: u64,
    /// The bytes; give their memory back by [`Blob::recycle`].
    pub fetched: Fetched,
}

/// Bytes of a blob, in order or as they come.
pub struct Stream {
    blob: Arc<dyn Blob>,
    options: StreamOptions,
    /// Chunks not asked for yet, in order.
    missing: VecDeque<Missing>,
    /// Chunks asked for and not handed out, by offset.
    asked: BTreeMap<u64, Asked>,
    ready: BTreeMap<u64, Fetched>,
    replies: (Sender<Reply>, Receiver<Reply>),
    /// How long somebody has waited since the last reply.
    silence: Duration,
}

struct Missing {
    range: Range<u64>,
    /// Of one that was asked for in vain: chunks behind it may have all others.
    memory: Option<Slot>,
}

struct Asked {
    range: Range<u64>,
    ticket: Ticket,
    memory: Option<Slot>,
}

type Reply = (Range<u64>, Result<Fetched, FetchError>);

/// Which chunk is wanted next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    AsInBlob,
    AsItComes,
}

impl Stream {
    /// Stream a range of a blob from its start on. Nothing is asked for before the first `next`.
    pub fn new(blob: Arc<dyn Blob>, range: Range<u64>, options: StreamOptions) -> Self {
        let step = options.chunk_bytes.max(1);
        let mut chunks = Vec::new();
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start.saturating_add(step));
            chunks.push(start..end);
            start = end;
        }
        Self::of_chunks(blob, chunks, options)
    }

    /// Stream these runs, which rise and do not overlap.
    pub(super) fn of_chunks(
        blob: Arc<dyn Blob>,
        chunks: Vec<Range<u64>>,
        options: StreamOptions,
    ) -> Self {
        Self {
            blob,
            options,
            missing: chunks.into_iter().map(|range| Missing { range, memory: None }).collect(),
            asked: BTreeMap::new(),
            ready: BTreeMap::new(),
            // Bounded by `chunks_max`: a want sends one reply.
            replies: unbounded(),
            silence: Duration::ZERO,
        }
    }

    /// Wait for the next chunk in order. `None` at the end.
    ///
    /// # Errors
    /// What the chunk's want was replied; a further call asks for the same chunk again.
    pub fn next_in_order(&mut self) -> Option<Result<Chunk, FetchError>> {
        loop {
            if let Poll::Ready(next) = self.poll_in_order(self.options.patience) {
                return next;
            }
        }
    }

    /// As [`Self::next_in_order`], but waits no longer than `wait`: then the chunk is pending, and the
    /// caller may look at something else before it asks again.
    pub fn poll_in_order(&mut self, wait: Duration) -> Poll<Option<Result<Chunk, FetchError>>> {
        self.poll(wait, Order::AsInBlob)
    }

    /// The chunk that comes first, wherever it lies; else as [`Self::poll_in_order`].
    pub fn poll_as_it_comes(&mut self, wait: Duration) -> Poll<Option<Result<Chunk, FetchError>>> {
        self.poll(wait, Order::AsItComes)
    }

    /// The blob, for recycling.
    pub fn blob(&self) -> &Arc<dyn Blob> {
        &self.blob
    }

    fn poll(&mut self, wait: Duration, order: Order) -> Poll<Option<Result<Chunk, FetchError>>> {
        let until = Instant::now() + wait;
        loop {
            self.fill();
            let Some(first) = self.first() else { return Poll::Ready(None) };
            let next = match order {
                Order::AsInBlob => self.ready.contains_key(&first).then_some(first),
                Order::AsItComes => self.ready.keys().next().copied(),
            };
            if let Some(offset) = next {
                return Poll::Ready(self.hand_out(offset).map(Ok));
            }
            let left = until.saturating_duration_since(Instant::now());
            if self.asked.is_empty() {
                if left.is_zero() {
                    return Poll::Pending;
                }
                self.wait_for_slots(left);
                continue;
            }
            match self.receive(left) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// Offset of the first chunk that was not handed out.
    fn first(&self) -> Option<u64> {
        let asked = self.asked.keys().next().copied();
        let missing = self.missing.front().map(|it| it.range.start);
        asked.into_iter().chain(missing).min()
    }

    fn fill(&mut self) {
        while self.asked.len() < self.options.chunks_max.max(1)
            && let Some(next) = self.missing.front_mut()
        {
            let limits = self.options.requests.iter();
            let slots = limits.map(Slots::try_take).collect::<Option<Vec<_>>>();
            if let (None, Some(limit)) = (&next.memory, &self.options.memory) {
                next.memory = limit.try_take();
            }
            let has_memory = next.memory.is_some() || self.options.memory.is_none();
            let Some(slots) = slots.filter(|_| has_memory) else { break };
            if let Some(Missing { range, memory }) = self.missing.pop_front() {
                self.ask(range, slots, memory);
            }
        }
    }

    fn ask(&mut self, range: Range<u64>, slots: Vec<Slot>, memory: Option<Slot>) {
        let (sender, asked) = (self.replies.0.clone(), range.clone());
        let reply = Box::new(move |result| {
            // Whoever takes the chunk may be busy: others may ask meanwhile.
            drop(slots);
            // Fails only when the stream is gone.
            drop(sender.send((asked, result)));
        });
        let priority = self.options.priority;
        let ticket = self.blob.want(Want { range: range.clone(), priority, headroom: 0, reply });
        self.asked.insert(range.start, Asked { range, ticket, memory });
    }

    /// Others have all that we may use: wait until one of them is done.
    fn wait_for_slots(&self, wait: Duration) {
        let limits = self.options.requests.iter().chain(&self.options.memory);
        if let Some(limit) = limits.into_iter().find(|limit| limit.free() == 0) {
            drop(limit.take_within(wait));
        }
    }

    /// Wait for a reply; false if none came yet.
    fn receive(&mut self, wait: Duration) -> Result<bool, FetchError> {
        let patience = self.options.patience;
        let started = Instant::now();
        let wait = wait.min(patience.saturating_sub(self.silence));
        let Ok((range, result)) = self.replies.1.recv_timeout(wait) else {
            self.silence += started.elapsed();
            if self.silence < patience {
                return Ok(false);
            }
            self.silence = Duration::ZERO;
            let range = self.asked.values().next().map_or(0..0, |asked| asked.range.clone());
            let message = format!("no chunk came within {:.0} s", patience.as_secs_f64());
            let digest = *self.blob.digest();
            return Err(FetchError::Unreachable(FetchErrorDetail { digest, range, message }));
        };
        self.silence = Duration::ZERO;
        match result {
            Ok(fetched) => {
                let expected = range.end - range.start;
                assert_eq!(fetched.data().len() as u64, expected, "a reply of the wrong length");
                self.ready.insert(range.start, fetched);
                Ok(true)
            }
            Err(error) => {
                let memory = self.asked.remove(&range.start).and_then(|asked| asked.memory);
                let at = self.missing.partition_point(|other| other.range.start < range.start);
                self.missing.insert(at, Missing { range, memory });
                Err(error)
            }
        }
    }

    fn hand_out(&mut self, offset: u64) -> Option<Chunk> {
        self.asked.remove(&offset);
        let fetched = self.ready.remove(&offset)?;
        self.fill();
        Some(Chunk { offset, fetched })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        for asked in self.asked.values() {
            asked.ticket.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{FaultBlob, FaultOptions};
    use crate::memory_blob::{MemoryBlob, Nothing};

    fn options(chunk_bytes: u64, chunks_max: usize) -> StreamOptions {
        StreamOptions { chunk_bytes, chunks_max, ..StreamOptions::default() }
    }

    fn check(len: usize, range: Range<u64>, chunk_bytes: u64, chunks_max: usize) {
        let content: Vec<u8> = (0..len).map(|at| at as u8).collect();
        let blob = MemoryBlob::new(content.clone());
        let mut stream = Stream::new(blob, range.clone(), options(chunk_bytes, chunks_max));
        let mut found = Vec::new();
        while let Some(chunk) = stream.next_in_order() {
            let chunk = chunk.unwrap();
            assert_eq!(chunk.offset, range.start + found.len() as u64);
            found.extend_from_slice(chunk.fetched.data());
        }
        assert_eq!(found, &content[range.start as usize..range.end as usize]);
    }

    #[test]
    fn in_order() {
        check(0, 0..0, 10, 3);
        check(100, 0..100, 10, 3);
        check(101, 0..101, 10, 3);
        check(100, 7..93, 10, 1);
        check(100, 0..100, 1000, 8);
    }

    #[test]
    fn bounded_and_asked_again_after_faults() {
        let content: Vec<u8> = (0..5000).map(|at| at as u8).collect();
        let inner = MemoryBlob::new(content.clone());
        let faults = FaultOptions {
            seed: 9,
            drop_per_mille: 200,
            delay_per_mille: 500,
            delay_max: Duration::from_millis(2),
            ..FaultOptions::default()
        };
        let wants = Arc::clone(&inner);
        let mut stream = Stream::new(FaultBlob::new(inner, faults), 0..5000, options(100, 4));
        let (mut found, mut failures) = (Vec::new(), 0);
        loop {
            match stream.next_in_order() {
                None => break,
                Some(Ok(chunk)) => found.extend_from_slice(chunk.fetched.data()),
                Some(Err(_)) => failures += 1,
            }
            let wanted = wants.wants_count.load(std::sync::atomic::Ordering::SeqCst);
            assert!(wanted <= found.len() / 100 + 4 + failures + 1, "{wanted} wants");
        }
        assert_eq!(found, content);
        assert!(failures > 0);
    }

    #[test]
    fn streams_share_their_limits() {
        let content: Vec<u8> = (0..2000).map(|at| at as u8).collect();
        let requests = Slots::new(3);
        let options = StreamOptions {
            requests: vec![Arc::clone(&requests)],
            memory: Some(Slots::new(2)),
            ..options(100, 8)
        };
        let one = Arc::new(Silent(MemoryBlob::new(content.clone()), Default::default()));
        let mut waiting = Stream::new(one.clone(), 0..2000, options.clone());
        assert!(waiting.poll_as_it_comes(Duration::from_millis(1)).is_pending());
        assert_eq!(one.1.lock().unwrap().len(), 2, "as much as there is memory");
        // Somebody else gets nothing now, and all of it later.
        let mut other = Stream::new(MemoryBlob::new(content.clone()), 0..2000, options);
        assert!(other.poll_as_it_comes(Duration::from_millis(1)).is_pending());
        drop(waiting);
        one.1.lock().unwrap().clear();
        let mut found = vec![0; 2000];
        while let Some(chunk) = {
            let next = other.poll_as_it_comes(Duration::from_secs(10));
            assert!(next.is_ready() && requests.free() >= 1);
            match next {
                Poll::Ready(next) => next,
                Poll::Pending => None,
            }
        } {
            let chunk = chunk.unwrap();
            let data = chunk.fetched.data();
            found[chunk.offset as usize..][..data.len()].copy_from_slice(data);
        }
        assert_eq!(found, content);
        assert_eq!(requests.free(), 3);
    }

    /// Keeps what is wanted of it until it is told to answer.
    struct Silent(Arc<MemoryBlob>, std::sync::Mutex<Vec<Want>>);

    impl Blob for Silent {
        fn digest(&self) -> &spanfs_layer::Digest {
            self.0.digest()
        }

        fn size(&self) -> u64 {
            self.0.size()
        }

        fn want(&self, want: Want) -> Ticket {
            self.1.lock().unwrap().push(want);
            Ticket::new(Arc::new(Nothing))
        }
    }

    #[test]
    fn a_short_wait_is_pending_until_patience_ends() {
        let blob = Arc::new(Silent(MemoryBlob::new(vec![7; 10]), Default::default()));
        let patience = Duration::from_millis(50);
        let options = StreamOptions { patience, ..options(10, 1) };
        let mut stream = Stream::new(blob.clone(), 0..10, options);
        let wait = Duration::from_millis(1);
        let started = Instant::now();
        let error = loop {
            match stream.poll_in_order(wait) {
                Poll::Pending => {}
                Poll::Ready(Some(Err(error))) => break error,
                Poll::Ready(other) => panic!("{other:?}"),
            }
        };
        assert!(started.elapsed() >= patience && error.class() == crate::blob::Class::Retry);
        assert!(stream.poll_in_order(wait).is_pending(), "a new wait has new patience");
        blob.1.lock().unwrap().drain(..).for_each(|want| drop(blob.0.want(want)));
        assert_eq!(stream.next_in_order().unwrap().unwrap().fetched.data(), [7; 10]);
        assert!(stream.next_in_order().is_none());
    }
}
