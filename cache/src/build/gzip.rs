//! Checkpoints of a gzip blob, found while it is inflated.
//!
//! The conditions are those of the field's tools, which are those of zlib's `zran` example: stop
//! behind every header and every block that is not a member's last; there, a checkpoint is due where
//! there is none yet, or where more than the span size has come since the last. Unlike them, a blob
//! that begins with empty blocks gets one checkpoint at output 0: their own reader refuses two.

use spanfs_layer::ztoc::{Checkpoint, Restarts};
use spanfs_layer::{CompressedOffset, UncompressedOffset};

use super::hashing::Cut;
use super::output::Output;
use super::{BuildError, NotLazy, SPANS_MAX, Scanned, Sink};
use crate::deflate::{Event, Inflate};
use crate::inflate::SPAN_BYTES_MAX;

pub(super) struct GzipScan {
    decoder: Inflate,
    state: State,
    /// Bytes of the blob given.
    len: u64,
    /// Where the last member ended.
    member_end: u64,
    span_size: u64,
    checkpoints: Vec<Checkpoint>,
    not_lazy: Option<NotLazy>,
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
            len: 0,
            member_end: 0,
            span_size,
            checkpoints: Vec::new(),
            not_lazy: None,
        }
    }

    pub(super) fn feed<S: Sink>(
        &mut self,
        mut input: &[u8],
        output: &mut Output<S>,
        cuts: &mut Vec<Cut>,
    ) -> Result<(), BuildError> {
        self.len += input.len() as u64;
        while self.state != State::Junk {
            let (buffer, filled) = output.space()?;
            let mut end = filled;
            let event = self.decoder.step(&mut input, buffer, &mut end);
            output.advance(end - filled)?;
            match event {
                Ok(Event::Block { at, bits }) => {
                    self.state = State::Blocks;
                    self.at_block(at, bits, output, cuts);
                }
                Ok(Event::End { at }) => {
                    self.member_end = at;
                    self.state = State::Header;
                }
                Ok(Event::NeedsInput) => return Ok(()),
                Ok(Event::NeedsRoom) => {}
                Err(_) if self.state == State::Header => self.state = State::Junk,
                Err(bad) => {
                    let at = self.len - input.len() as u64;
                    return Err(BuildError::Compressed { at, reason: bad.to_string() });
                }
            }
        }
        Ok(())
    }

    /// A block begins: perhaps a span, too.
    fn at_block<S: Sink>(
        &mut self,
        at: u64,
        bits: u8,
        output: &mut Output<S>,
        cuts: &mut Vec<Cut>,
    ) {
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

    pub(super) fn finish(mut self, len: u64) -> Result<Scanned, BuildError> {
        if matches!(self.state, State::FirstHeader | State::Blocks) {
            return Err(BuildError::Truncated { at: self.len });
        }
        if let Some(last) = self.checkpoints.last() {
            self.check_span(len - last.output.0);
        }
        let (at, trailing_len) = (self.member_end, self.len - self.member_end);
        if trailing_len > 0 {
            return Ok(Err(NotLazy::TrailingBytes { at, len: trailing_len }));
        }
        let Self { not_lazy, span_size, checkpoints, .. } = self;
        Ok(not_lazy.map_or(Ok(Restarts::Gzip { span_size, checkpoints }), Err))
    }
}
