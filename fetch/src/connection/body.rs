//! The body of a reply: checked against the request, then led into the memory of wants.

use super::{
    ALL_LEN_MIN, BODY_RECEIVE_LEN, Connection, Expectation, Lent, SCRATCH_LEN, State, Step,
};
use crate::http::{Chunked, Framing, Head, Piece};
use crate::memory::copy_prefix;
use crate::plan::{Failure, FailureKind};

pub(super) struct Body {
    /// Place in the blob of the next byte.
    position: u64,
    /// Place in the blob behind the last byte of this reply.
    end: u64,
    chunked: Option<Chunked>,
    /// The framing said that the body is over.
    ended: bool,
    keep_alive: bool,
}

impl Body {
    /// Check a reply's header against the request; `rest` is what came behind it.
    pub(super) fn new(head: Head, job: &Expectation, rest: &[u8]) -> Result<Self, Failure> {
        let everything = job.range == (0..job.size);
        let whole = matches!(head.framing, Framing::Length(len) if len == job.size)
            || !matches!(head.framing, Framing::Length(_));
        let range = match head.status {
            200 if job.whole && !whole => return Err(wrong_size(&head, job)),
            200 if job.whole || (everything && whole) => 0..job.size,
            200 => return Err(no_ranges("the host answers a range with the whole blob")),
            206 if job.whole => {
                return Err(Failure::bad_reply("206 without a range in the request"));
            }
            206 if head.multipart => {
                return Err(no_ranges("the host answers a range with several parts"));
            }
            206 => check_range(&head, job)?,
            416 if !job.whole => return Err(no_ranges("the host refuses the range (416)")),
            status => return Err(refused(status, head, rest)),
        };
        Ok(Self {
            position: range.start,
            end: range.end,
            chunked: (head.framing == Framing::Chunked).then_some(Chunked::Size),
            ended: false,
            keep_alive: head.keep_alive,
        })
    }

    /// Bytes of the body went where they belong.
    pub(super) fn took(&mut self, count: u64) {
        self.position += count;
        assert!(self.position <= self.end, "more bytes were taken than the reply has");
    }

    fn left(&self) -> u64 {
        self.end - self.position
    }
}

impl Connection {
    pub(super) fn advance_body(&mut self) -> Result<Option<Step>, Failure> {
        let State::Body(body) = &mut self.state else { return Ok(None) };
        if body.left() == 0 && (body.chunked.is_none() || body.ended) {
            self.state = State::Done(Ok(body.keep_alive));
            return Ok(None);
        }
        if body.left() > 0 && self.segments.is_empty() {
            // Only whole-blob streams run out of memory before the body's end.
            return Ok(Some(Step::Hungry(body.position)));
        }
        if body.chunked.is_some() {
            return self.advance_chunked();
        }
        if !self.scratch.is_empty() {
            self.deliver_scratch(usize::MAX);
            return Ok(None);
        }
        let skip = self.skip();
        if skip > 0 {
            // Discarded through the scratch buffer, which the next round empties.
            let len = usize::try_from(skip).unwrap_or(usize::MAX).min(SCRATCH_LEN);
            return self.more_scratch(len);
        }
        if self.tls.is_some() { self.receive_tls_body() } else { Ok(self.receive_plain_body()) }
    }

    fn receive_plain_body(&mut self) -> Option<Step> {
        let State::Body(body) = &self.state else { return None };
        let segment = self.segments.front_mut()?;
        let due = usize::try_from(body.left()).unwrap_or(usize::MAX);
        let len = segment.left().min(due).min(BODY_RECEIVE_LEN);
        let (buffer, from) = (std::mem::take(&mut segment.bytes), segment.filled);
        self.lent = Lent::Segment;
        Some(Step::Receive { buffer, from, len, all: len >= ALL_LEN_MIN })
    }

    fn receive_tls_body(&mut self) -> Result<Option<Step>, Failure> {
        let State::Body(body) = &mut self.state else { return Ok(None) };
        let (Some(tls), Some(segment)) = (&mut self.tls, self.segments.front_mut()) else {
            return Ok(None);
        };
        let due = usize::try_from(body.left()).unwrap_or(usize::MAX);
        let from = segment.filled;
        let room = segment.bytes.get_mut(from..).unwrap_or_default();
        let len = room.len().min(due);
        let count = tls.pull(room.get_mut(..len).unwrap_or_default(), &mut self.out)?;
        segment.filled += count;
        body.took(count as u64);
        self.moved += count as u64;
        let (left, closed) = (body.left(), tls.is_closed());
        self.collect_filled();
        if count > 0 || !self.out.is_empty() {
            return Ok(None);
        }
        if closed {
            self.closed();
            return Ok(None);
        }
        Ok(Some(self.receive_raw(left)))
    }

    fn advance_chunked(&mut self) -> Result<Option<Step>, Failure> {
        let State::Body(body) = &mut self.state else { return Ok(None) };
        let Some(chunked) = &mut body.chunked else { return Ok(None) };
        let before = *chunked;
        match chunked.next(self.scratch.filled())? {
            Piece::Framing(count) => self.scratch.take(count),
            Piece::Data(count) => {
                if body.left() == 0 {
                    return Err(Failure::bad_reply("the body goes on behind the range"));
                }
                let taken = self.deliver_scratch(count);
                // The memory may end within the chunk's data: ask again for what is left of it.
                if let (State::Body(body), Chunked::Data(left)) = (&mut self.state, before) {
                    body.chunked = Some(chunk_rest(left - taken as u64));
                }
            }
            Piece::End(count) => {
                self.scratch.take(count);
                body.ended = true;
                if body.left() > 0 {
                    // Shorter than announced: the plan asks for the rest.
                    return Err(self.cut_short());
                }
            }
            Piece::More => return self.more_scratch(SCRATCH_LEN),
        }
        Ok(None)
    }

    /// Bytes before the next memory.
    fn skip(&self) -> u64 {
        let State::Body(body) = &self.state else { return 0 };
        let Some(segment) = self.segments.front() else { return 0 };
        (segment.range.start + segment.filled as u64).saturating_sub(body.position)
    }

    /// Lead up to `count` bytes of the scratch buffer to where they belong: past the gap, or into
    /// the first memory. Returns how many.
    fn deliver_scratch(&mut self, count: usize) -> usize {
        let skip = usize::try_from(self.skip()).unwrap_or(usize::MAX);
        let State::Body(body) = &mut self.state else { return 0 };
        let due = usize::try_from(body.left()).unwrap_or(usize::MAX);
        let bytes = self.scratch.filled();
        let bytes = bytes.get(..bytes.len().min(count).min(due)).unwrap_or_default();
        let taken = if skip > 0 {
            skip.min(bytes.len())
        } else if let Some(segment) = self.segments.front_mut() {
            let room = segment.bytes.get_mut(segment.filled..).unwrap_or_default();
            let copied = copy_prefix(room, bytes);
            segment.filled += copied;
            copied
        } else {
            0
        };
        body.took(taken as u64);
        self.scratch.take(taken);
        self.moved += taken as u64;
        self.collect_filled();
        taken
    }

    /// The peer closed its side.
    pub(super) fn closed(&mut self) {
        match &self.state {
            State::Done(_) => {}
            State::Body(_) => self.state = State::Done(Err(self.cut_short())),
            State::Proxy | State::Handshake | State::Head => {
                let peer = self.peer();
                self.fail_transport(format!("{peer} closed the connection before its reply"));
            }
        }
    }

    fn cut_short(&self) -> Failure {
        let State::Body(body) = &self.state else { return Failure::transport("no body") };
        let (position, end) = (body.position, body.end);
        Failure::transport(format!(
            "{} ended the reply at byte {position} of the blob instead of {end}",
            self.peer()
        ))
    }
}

fn chunk_rest(left: u64) -> Chunked {
    if left == 0 { Chunked::AfterData } else { Chunked::Data(left) }
}

fn check_range(head: &Head, job: &Expectation) -> Result<std::ops::Range<u64>, Failure> {
    let asked = &job.range;
    let bad = |found: String| {
        let (first, last) = (asked.start, asked.end - 1);
        Failure::bad_reply(format!("asked for bytes {first}-{last}, the reply has {found}"))
    };
    let Some((range, total)) = &head.content_range else {
        return Err(bad("no Content-Range".to_owned()));
    };
    let (first, last) = (range.start, range.end - 1);
    if range.start != asked.start || range.end > asked.end {
        return Err(bad(format!("bytes {first}-{last}")));
    }
    if let Some(total) = total
        && *total != job.size
    {
        return Err(bad(format!("a blob of {total} bytes instead of {}", job.size)));
    }
    match head.framing {
        Framing::Length(len) if len != range.end - range.start => {
            Err(bad(format!("bytes {first}-{last} in a body of {len}")))
        }
        _ => Ok(range.clone()),
    }
}

fn wrong_size(head: &Head, job: &Expectation) -> Failure {
    Failure::bad_reply(format!("the blob has {} bytes, the reply {:?}", job.size, head.framing))
}

fn no_ranges(message: &str) -> Failure {
    Failure::new(FailureKind::NoRanges, message)
}

/// A reply that is not the bytes; what came of its body serves the message.
fn refused(status: u16, head: Head, rest: &[u8]) -> Failure {
    const TEXT_LEN_MAX: usize = 256;
    let text =
        String::from_utf8_lossy(rest.get(..rest.len().min(TEXT_LEN_MAX)).unwrap_or_default());
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let message = if text.is_empty() {
        format!("the host answers {status}")
    } else {
        format!("the host answers {status}: {text}")
    };
    let mut failure = Failure::new(FailureKind::Status(status), message);
    failure.location = head.location;
    failure.challenge = head.challenge;
    failure.retry_after = head.retry_after;
    failure
}
