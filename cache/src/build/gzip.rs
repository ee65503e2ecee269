//! Checkpoints of a gzip blob, found while it is inflated.
//!
//! The conditions are those of the field's tools, which are those of zlib's `zran` example: stop
//! behind every header and every block that is not a member's last; there, a checkpoint is due where
//! there is none yet, or where more than the span size has come since the last. Unlike them, a blob
//! that begins with empty blocks gets one checkpoint at output 0: their own reader refuses two.

use std::sync::Arc;

use spanfs_layer::ztoc::{Checkpoint, Restarts};
use spanfs_layer::{CompressedOffset, UncompressedOffset};

use super::ahead::Decoded;
use super::feed::Feed;
use super::hashing::Cut;
use super::join::Join;
use super::output::Output;
use super::scan::Scanned;
use super::{BuildError, NotLazy, SPANS_MAX};
use crate::deflate::{Event, Inflate, Meaning, Place};
use crate::inflate::SPAN_BYTES_MAX;

pub(super) struct GzipScan {
    decoder: Inflate,
    state: State,
    /// Where the last block began, or a header.
    at: u64,
    /// Where the last member ended.
    member_end: u64,
    span_size: u64,
    checkpoints: Vec<Checkpoint>,
    not_lazy: Option<NotLazy>,
    /// Bytes that helpers decoded.
    len_ahead: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the header of the first member.
    FirstHeader,
    /// In the header of a later member, of which there may be none.
    Header,
    /// In a member's blocks or its trailer.
    Blocks,
    /// In something that is no member.
    Junk,
}

impl GzipScan {
    pub(super) fn new(span_size: u64) -> Self {
        Self {
            decoder: Inflate::new(),
            state: State::FirstHeader,
            at: 0,
            member_end: 0,
            span_size,
            checkpoints: Vec::new(),
            not_lazy: None,
            len_ahead: 0,
        }
    }

    pub(super) fn len_ahead(&self) -> u64 {
        self.len_ahead
    }

    /// Scan `input`, which stands at `at` in the blob. Gives where to go on: behind it, or further where
    /// somebody has decoded what follows.
    pub(super) fn scan(
        &mut self,
        at: u64,
        mut input: &[u8],
        feed: &Arc<Feed>,
        output: &mut Output,
        cuts: &mut Vec<Cut>,
    ) -> Result<u64, BuildError> {
        let end = at + input.len() as u64;
        while self.state != State::Junk {
            let (buffer, filled) = output.space()?;
            let mut to = filled;
            let event = self.decoder.step(&mut input, buffer, &mut to);
            output.advance(to - filled)?;
            match event {
                Ok(Event::Block(place)) => {
                    self.state = State::Blocks;
                    self.at_block(place, output, cuts);
                    if let Some(at) = self.take_over(place, feed, output, cuts)? {
                        return Ok(at);
                    }
                }
                Ok(Event::End { at }) => {
                    (self.at, self.member_end) = (at, at);
                    self.state = State::Header;
                }
                Ok(Event::NeedsInput) => return Ok(end),
                Ok(Event::NeedsRoom) => {}
                Err(_) if self.state == State::Header => self.state = State::Junk,
                Err(bad) => {
                    return Err(BuildError::Compressed { at: self.at, reason: bad.to_string() });
                }
            }
        }
        Ok(end)
    }

    /// Take what helpers decoded from `place` on; where to go on, if there was anything.
    fn take_over(
        &mut self,
        place: Place,
        feed: &Arc<Feed>,
        output: &mut Output,
        cuts: &mut Vec<Cut>,
    ) -> Result<Option<u64>, BuildError> {
        let (mut place, mut at) = (place, None);
        while let Some(decoded) = feed.arrive(place, self.decoder.has_window())? {
            let (end, _) = decoded.end();
            let before = decoded.before;
            self.join(*decoded, feed, output, cuts)?;
            self.decoder.go_on(end, before);
            (place, at) = (end, Some(end.at));
        }
        Ok(at)
    }

    fn join(
        &mut self,
        decoded: Decoded,
        feed: &Feed,
        output: &mut Output,
        cuts: &mut Vec<Cut>,
    ) -> Result<(), BuildError> {
        let meaning = Meaning::behind(output.window());
        let (mut join, blocks) = Join::new(decoded, meaning, feed.rooms.unknown.clone());
        let mut len = 0;
        for (place, at) in blocks {
            join.pour(at - len, &mut self.decoder, output)?;
            len = at;
            self.at_block(place, output, cuts);
        }
        self.len_ahead += len;
        Ok(())
    }

    /// A block begins: perhaps a span, too.
    fn at_block(&mut self, place: Place, output: &mut Output, cuts: &mut Vec<Cut>) {
        let Place { at, bits } = place;
        self.at = at;
        let position = output.position();
        let since_last = self.checkpoints.last().map(|last| position - last.output.0);
        if since_last.is_some_and(|len| len <= self.span_size) || self.not_lazy.is_some() {
            return;
        }
        self.check_span(since_last.unwrap_or(0));
        if self.checkpoints.len() >= SPANS_MAX {
            self.give_up(NotLazy::ManySpans { max: SPANS_MAX });
        }
        if self.not_lazy.is_some() {
            return;
        }
        let window = if position == 0 { Vec::new() } else { output.window().to_vec() };
        self.checkpoints.push(Checkpoint {
            input: CompressedOffset(at),
            output: UncompressedOffset(position),
            bits,
            window,
        });
        cuts.push(Cut { at, is_shared: bits > 0 });
        output.begin_span(position);
    }

    fn check_span(&mut self, len: u64) {
        if len > SPAN_BYTES_MAX {
            let start = self.checkpoints.last().map(|last| last.output).unwrap_or_default();
            self.give_up(NotLazy::LongSpan { start, len, max: SPAN_BYTES_MAX });
        }
    }

    fn give_up(&mut self, reason: NotLazy) {
        self.not_lazy = Some(reason);
        self.checkpoints = Vec::new();
    }

    /// The blob of so many bytes has ended, from which `len` came.
    pub(super) fn finish(mut self, len: u64, blob_size: u64) -> Result<Scanned, BuildError> {
        if matches!(self.state, State::FirstHeader | State::Blocks) {
            return Err(BuildError::Truncated { at: blob_size });
        }
        if let Some(last) = self.checkpoints.last() {
            self.check_span(len - last.output.0);
        }
        let (at, trailing_len) = (self.member_end, blob_size - self.member_end);
        if trailing_len > 0 {
            return Ok(Err(NotLazy::TrailingBytes { at, len: trailing_len }));
        }
        let Self { not_lazy, span_size, checkpoints, .. } = self;
        Ok(not_lazy.map_or(Ok(Restarts::Gzip { span_size, checkpoints }), Err))
    }
}
