//! One connection without its socket: says what to send and where to receive, is told what came of
//! it. Both engines drive it, so all that is HTTP or TLS is here or below.
//!
//! Buffers are moved out with each step and moved back with its result, so that a kernel operation
//! can own them meanwhile.

mod body;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::http;
use crate::plan::{Failure, FailureKind, TransferId};
use crate::target::Target;
use crate::tls::Tls;
use crate::transfer::{Job, Segment};
use body::Body;

/// What the shell shall do next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Send `buffer` from `from` on, then call `sent`.
    Send { buffer: Vec<u8>, from: usize },
    /// Receive into `buffer` at `from`, at most `len` bytes, then call `received`. With `all` it may
    /// wait until all have come: they are due.
    Receive { buffer: BytesMut, from: usize, len: usize, all: bool },
    /// A whole-blob stream has no memory for what comes at this position: call `supply` or `stop`.
    Hungry(u64),
    /// The exchange is over.
    Finished(Finished),
}

/// How an exchange ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) result: Result<(), Failure>,
    /// The connection can take another request.
    pub(crate) reusable: bool,
    /// Bytes of a reply had come. If not, a connection that was kept alive may just have been closed.
    pub(crate) answered: bool,
}

pub(crate) struct Connection {
    target: Arc<Target>,
    tls: Option<Box<Tls>>,
    state: State,
    /// Bytes to send, from `out_from` on.
    out: Vec<u8>,
    out_from: usize,
    /// Plaintext that is not (or not yet) a want's: headers, chunk framing, skipped bytes.
    scratch: Scratch,
    lent: Lent,
    segments: VecDeque<Segment>,
    filled: Vec<Segment>,
    request: Vec<u8>,
    job: Expectation,
    /// Proxy and TLS have been agreed on, or are being.
    greeted: bool,
    answered: bool,
    moved: u64,
    pace: Pace,
}

/// What the reply shall be.
#[derive(Clone, Debug, Default)]
struct Expectation {
    range: std::ops::Range<u64>,
    size: u64,
    whole: bool,
}

enum State {
    /// The proxy's answer to CONNECT is due.
    Proxy,
    /// TLS is being agreed on.
    Handshake,
    /// The reply's header is due.
    Head,
    Body(Body),
    /// Over, well or badly; with whether the connection is as good as new.
    Done(Result<bool, Failure>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lent {
    Nothing,
    Scratch,
    Raw,
    Segment,
}

/// Small first receive: the header, and little of the body that must be copied.
const HEAD_RECEIVE_LEN: usize = 1 << 10;

/// Measured: one completion per MiB; smaller costs calls, larger brings nothing.
const BODY_RECEIVE_LEN: usize = 1 << 20;

/// Less than this is not worth waiting for in one piece.
const ALL_LEN_MIN: usize = 16 << 10;

const SCRATCH_LEN: usize = 64 << 10;

struct Scratch {
    buffer: BytesMut,
    start: usize,
    end: usize,
}

impl Connection {
    /// A connection to the target whose socket is about to be opened, with its first request.
    pub(crate) fn open(target: Arc<Target>, limits: PaceLimits, now: Instant) -> Self {
        Self {
            target,
            tls: None,
            state: State::Done(Ok(true)),
            out: Vec::new(),
            out_from: 0,
            scratch: Scratch { buffer: BytesMut::zeroed(SCRATCH_LEN), start: 0, end: 0 },
            lent: Lent::Nothing,
            segments: VecDeque::new(),
            filled: Vec::new(),
            request: Vec::new(),
            job: Expectation::default(),
            greeted: false,
            answered: false,
            moved: 0,
            pace: Pace::new(limits, now),
        }
    }

    /// Make a request. The connection is new, or its last exchange left it reusable.
    pub(crate) fn begin(&mut self, job: Job, now: Instant) {
        let ranged = (!job.whole).then_some(&job.range);
        let request = http::request(&job.target, ranged);
        self.target = job.target;
        self.job = Expectation { range: job.range, size: job.size, whole: job.whole };
        self.segments = job.segments;
        self.answered = false;
        self.scratch.start = 0;
        self.scratch.end = 0;
        self.pace.restart(now);
        let begun = request.and_then(|request| {
            self.request = request;
            if self.greeted { self.send_request() } else { self.greet() }
        });
        if let Err(failure) = begun {
            self.state = State::Done(Err(failure));
        }
    }

    /// What to do next. Call again only after the step's result was told.
    pub(crate) fn next(&mut self) -> Step {
        assert_eq!(self.lent, Lent::Nothing, "a buffer is still lent");
        loop {
            if self.out_from < self.out.len() {
                let from = std::mem::take(&mut self.out_from);
                return Step::Send { buffer: std::mem::take(&mut self.out), from };
            }
            match self.advance() {
                Ok(Some(step)) => return step,
                Ok(None) => {}
                Err(failure) => self.state = State::Done(Err(failure)),
            }
            if let State::Done(result) = &self.state {
                let result = result.clone();
                let drained = self.tls.as_ref().is_none_or(|tls| tls.is_drained());
                let clean = drained && self.scratch.is_empty();
                let reusable = matches!(result, Ok(true)) && clean;
                let answered = self.answered;
                return Step::Finished(Finished { result: result.map(|_| ()), reusable, answered });
            }
        }
    }

    /// So many bytes of the buffer were sent, counted from where the step said.
    pub(crate) fn sent(&mut self, buffer: Vec<u8>, from: usize, result: std::io::Result<usize>) {
        match result {
            Ok(count) if count > 0 => {
                self.out = buffer;
                self.out_from = from + count;
                if self.out_from >= self.out.len() {
                    self.out.clear();
                    self.out_from = 0;
                }
            }
            Ok(_) => self.fail_transport("the connection takes no more bytes"),
            Err(error) if is_interruption(&error) => {
                self.out = buffer;
                self.out_from = from;
            }
            Err(error) => self.fail_transport(format!("sending to {}: {error}", self.peer())),
        }
    }

    /// So many bytes came into the buffer; none means that the peer closed.
    pub(crate) fn received(
        &mut self,
        buffer: BytesMut,
        result: std::io::Result<usize>,
        now: Instant,
    ) {
        let lent = std::mem::replace(&mut self.lent, Lent::Nothing);
        let count = *result.as_ref().unwrap_or(&0);
        match lent {
            Lent::Scratch => {
                self.scratch.buffer = buffer;
                self.scratch.end += count;
            }
            Lent::Raw => {
                if let Some(tls) = &mut self.tls {
                    tls.restore(buffer, count);
                }
            }
            Lent::Segment => {
                if let Some(segment) = self.segments.front_mut() {
                    segment.bytes = buffer;
                    segment.filled += count;
                }
                if let State::Body(body) = &mut self.state {
                    body.took(count as u64);
                }
                self.moved += count as u64;
            }
            Lent::Nothing => assert!(count == 0, "bytes came that nobody asked for"),
        }
        match result {
            Ok(0) => self.closed(),
            Ok(count) => {
                self.answered = true;
                self.pace.moved(count as u64, now);
            }
            // Nothing is wrong yet.
            Err(error) if is_interruption(&error) => {}
            Err(error) => self.fail_transport(format!("receiving from {}: {error}", self.peer())),
        }
        self.collect_filled();
    }

    /// Memory for a hungry stream.
    pub(crate) fn supply(&mut self, segment: Segment, now: Instant) {
        self.pace.restart(now);
        self.segments.push_back(segment);
    }

    /// No more memory for a hungry stream.
    pub(crate) fn stop(&mut self) {
        self.state = State::Done(Ok(false));
    }

    /// End now, as the shell or the plan wishes.
    pub(crate) fn fail(&mut self, failure: Failure) {
        self.state = State::Done(Err(failure));
        // What was not sent must not be sent after all.
        self.out.clear();
        self.out_from = 0;
    }

    /// Segments filled since the last call.
    pub(crate) fn take_filled(&mut self) -> Vec<Segment> {
        std::mem::take(&mut self.filled)
    }

    /// Bytes of bodies received since the last call.
    pub(crate) fn take_moved(&mut self) -> u64 {
        std::mem::take(&mut self.moved)
    }

    /// Memory that was not filled.
    pub(crate) fn take_segments(&mut self) -> VecDeque<Segment> {
        assert_eq!(self.lent, Lent::Nothing, "a buffer is still lent");
        std::mem::take(&mut self.segments)
    }

    /// The job as it was, if no byte of a reply came, to be begun on another connection.
    pub(crate) fn take_job(&mut self, id: TransferId) -> Job {
        let Expectation { range, size, whole } = self.job.clone();
        let segments = self.take_segments();
        Job { id, target: Arc::clone(&self.target), range, size, whole, segments }
    }

    pub(crate) fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// The peer has been idle, or slower than anything useful, for too long.
    pub(crate) fn check_pace(&mut self, now: Instant) {
        if let Some(stall) = self.pace.check(now, matches!(self.state, State::Body(_))) {
            let peer = self.peer();
            self.fail_transport(format!("{peer} stalled: {stall}"));
        }
    }

    /// When to call `check_pace` next.
    pub(crate) fn pace_at(&self) -> Instant {
        self.pace.check_at(matches!(self.state, State::Body(_)))
    }

    fn peer(&self) -> String {
        self.target.host.clone()
    }

    fn fail_transport(&mut self, message: impl Into<String>) {
        if !matches!(self.state, State::Done(_)) {
            self.fail(Failure::transport(message));
        }
    }

    /// First words on a new socket.
    fn greet(&mut self) -> Result<(), Failure> {
        self.greeted = true;
        if let Some((authority, authorization)) = &self.target.connect {
            self.out = http::connect_request(authority, authorization.as_deref());
            self.state = State::Proxy;
            return Ok(());
        }
        self.secure()
    }

    /// Begin TLS, where it is spoken.
    fn secure(&mut self) -> Result<(), Failure> {
        let Some(config) = &self.target.tls else { return self.send_request() };
        self.tls = Some(Box::new(Tls::new(config, &self.target.server_name)?));
        self.state = State::Handshake;
        Ok(())
    }

    fn send_request(&mut self) -> Result<(), Failure> {
        let request = std::mem::take(&mut self.request);
        match &mut self.tls {
            Some(tls) => tls.encrypt(&request, &mut self.out)?,
            None => self.out = request,
        }
        self.state = State::Head;
        Ok(())
    }

    /// Go on with what is there; a step if the shell must act first.
    fn advance(&mut self) -> Result<Option<Step>, Failure> {
        match &self.state {
            State::Done(_) => Ok(None),
            State::Proxy => self.advance_proxy(),
            State::Handshake => self.advance_handshake(),
            State::Head => self.advance_head(),
            State::Body(_) => self.advance_body(),
        }
    }

    fn advance_proxy(&mut self) -> Result<Option<Step>, Failure> {
        let Some(head) = http::parse_head(self.scratch.filled())? else {
            return self.receive_scratch(HEAD_RECEIVE_LEN).map(Some);
        };
        if !(200..300).contains(&head.status) {
            let message = format!("the proxy answers {} to CONNECT", head.status);
            // Not the registry's word: no challenge or redirect of it may reach the locator.
            return Err(Failure::new(FailureKind::Transport, message));
        }
        self.scratch.take(head.len);
        if !self.scratch.is_empty() {
            return Err(Failure::bad_reply("the proxy sends bytes before TLS begins"));
        }
        self.secure()?;
        Ok(None)
    }

    fn advance_handshake(&mut self) -> Result<Option<Step>, Failure> {
        let Some(tls) = &mut self.tls else { return Err(Failure::transport("TLS is gone")) };
        tls.pull(&mut [], &mut self.out)?;
        if tls.is_established() {
            // The last flight of the handshake leaves together with the request.
            self.send_request()?;
            return Ok(None);
        }
        if !self.out.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.receive_raw(0)))
    }

    fn advance_head(&mut self) -> Result<Option<Step>, Failure> {
        let Some(head) = http::parse_head(self.scratch.filled())? else {
            return self.more_scratch(HEAD_RECEIVE_LEN);
        };
        self.scratch.take(head.len);
        if (100..200).contains(&head.status) && head.status != 101 {
            return Ok(None);
        }
        let body = Body::new(head, &self.job, self.scratch.filled())?;
        self.state = State::Body(body);
        Ok(None)
    }

    /// Get more plaintext into the scratch buffer: decrypt what is there, or receive.
    fn more_scratch(&mut self, len: usize) -> Result<Option<Step>, Failure> {
        let Some(tls) = &mut self.tls else {
            return self.receive_scratch(len).map(Some);
        };
        let room = self.scratch.room()?;
        let count = tls.pull(room, &mut self.out)?;
        self.scratch.end += count;
        if count > 0 || !self.out.is_empty() {
            return Ok(None);
        }
        if tls.is_closed() {
            self.closed();
            return Ok(None);
        }
        Ok(Some(self.receive_raw(0)))
    }

    fn receive_scratch(&mut self, len: usize) -> Result<Step, Failure> {
        let room = self.scratch.room()?.len();
        self.lent = Lent::Scratch;
        let buffer = std::mem::take(&mut self.scratch.buffer);
        Ok(Step::Receive { buffer, from: self.scratch.end, len: len.min(room), all: false })
    }

    /// Receive ciphertext, of which at least `due` bytes are sure to come.
    fn receive_raw(&mut self, due: u64) -> Step {
        let Some(tls) = &mut self.tls else { unreachable!("ciphertext without TLS") };
        let buffered = tls.buffered() as u64;
        let (buffer, from) = tls.lend();
        let room = buffer.len().saturating_sub(from);
        // Ciphertext is longer than the plaintext still due, so waiting for that much is safe.
        let due = usize::try_from(due.saturating_sub(buffered)).unwrap_or(usize::MAX);
        let all = due > ALL_LEN_MIN;
        self.lent = Lent::Raw;
        Step::Receive { buffer, from, len: if all { room.min(due) } else { room }, all }
    }

    fn collect_filled(&mut self) {
        while self.segments.front().is_some_and(|segment| segment.left() == 0) {
            self.filled.extend(self.segments.pop_front());
        }
    }
}

/// A wait that was cut off from our side.
fn is_interruption(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

impl Scratch {
    fn filled(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn take(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }

    /// Free room behind what is there.
    fn room(&mut self) -> Result<&mut [u8], Failure> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        match self.buffer.get_mut(self.end..) {
            Some(room) if !room.is_empty() => Ok(room),
            _ => Err(Failure::bad_reply(format!("{SCRATCH_LEN} bytes of a reply make no sense"))),
        }
    }
}

/// How slow a peer may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PaceLimits {
    /// From the request (or connect) to the end of the reply's header.
    pub(crate) head: Duration,
    /// Window in which a body must advance …
    pub(crate) window: Duration,
    /// … by at least so many bytes.
    pub(crate) bytes_min: u64,
}

/// Watches that bytes keep coming.
struct Pace {
    limits: PaceLimits,
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn new(limits: PaceLimits, now: Instant) -> Self {
        Self { limits, since: now, bytes: 0 }
    }

    fn restart(&mut self, now: Instant) {
        self.since = now;
        self.bytes = 0;
    }

    fn moved(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        let passed = now.saturating_duration_since(self.since);
        if self.bytes >= self.limits.bytes_min && passed >= self.limits.window / 2 {
            self.restart(now);
        }
    }

    fn check_at(&self, body: bool) -> Instant {
        self.since + if body { self.limits.window } else { self.limits.head }
    }

    fn check(&mut self, now: Instant, body: bool) -> Option<String> {
        if now < self.check_at(body) {
            return None;
        }
        if body && self.bytes >= self.limits.bytes_min {
            self.restart(now);
            return None;
        }
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        Some(format!("{} bytes in {passed:.1} s", self.bytes))
    }
}

#[cfg(test)]
mod tests;
