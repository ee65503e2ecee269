//! Frames of a zstd blob, found while it is decompressed.

use std::io;
use std::sync::Arc;

use spanfs_layer::ztoc::{Frame, Restarts};
use spanfs_layer::{CompressedOffset, UncompressedOffset};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::feed::Feed;
use super::frames::DecodedRun;
use super::hashing::Cut;
use super::output::Output;
use super::scan::Scanned;
use super::{BuildError, NotLazy, SPANS_MAX};
use crate::inflate::{SPAN_BYTES_MAX, zstd_decoder};

pub(super) struct ZstdScan {
    decoder: Decoder<'static>,
    /// The next byte begins a frame.
    is_between_frames: bool,
    at: u64,
    span_size: u64,
    frames: Vec<Frame>,
    frame_count: u64,
    not_lazy: Option<NotLazy>,
    /// Bytes that helpers decoded.
    len_ahead: u64,
}

impl ZstdScan {
    pub(super) fn new(span_size: u64) -> Result<Self, BuildError> {
        Ok(Self {
            decoder: zstd_decoder().map_err(BuildError::Start)?,
            is_between_frames: true,
            at: 0,
            // A span of no bytes is none.
            span_size: span_size.max(1),
            frames: Vec::new(),
            frame_count: 0,
            not_lazy: None,
            len_ahead: 0,
        })
    }

    pub(super) fn len_ahead(&self) -> u64 {
        self.len_ahead
    }

    /// The next bytes. Gives where to go on: behind them, or further where somebody has decoded what follows.
    pub(super) fn scan(
        &mut self,
        input: &[u8],
        feed: &Arc<Feed>,
        output: &mut Output,
        cuts: &mut Vec<Cut>,
    ) -> Result<u64, BuildError> {
        let mut input = InBuffer::around(input);
        loop {
            let has_input = input.pos() < input.src.len();
            if self.is_between_frames {
                if !has_input {
                    return Ok(self.at);
                }
                if let Some(run) = feed.arrive_at_frame(self.at)? {
                    self.take_over(run, feed, output, cuts)?;
                    return Ok(self.at);
                }
                self.at_frame(output, cuts);
            }
            let before = input.pos();
            let mut room = OutBuffer::around(output.room()?);
            let hint = self.decoder.run(&mut input, &mut room).map_err(|error: io::Error| {
                BuildError::Compressed { at: self.at, reason: error.to_string() }
            })?;
            let (consumed, produced) = (input.pos() - before, room.pos());
            self.at += consumed as u64;
            output.advance(produced)?;
            self.is_between_frames = hint == 0;
            if !self.is_between_frames && consumed == 0 && produced == 0 {
                return Ok(self.at);
            }
        }
    }

    /// Take the frames that a helper decoded from here on.
    fn take_over(
        &mut self,
        run: DecodedRun,
        feed: &Feed,
        output: &mut Output,
        cuts: &mut Vec<Cut>,
    ) -> Result<(), BuildError> {
        let mut from = 0;
        for &(at, to) in &run.ends {
            self.at_frame(output, cuts);
            output.put(run.bytes.get(from..to).unwrap_or_default())?;
            (self.at, from) = (at, to);
        }
        self.len_ahead += from as u64;
        feed.take_back(run);
        Ok(())
    }

    /// A frame begins: perhaps a span, too.
    fn at_frame(&mut self, output: &mut Output, cuts: &mut Vec<Cut>) {
        self.frame_count += 1;
        let position = output.position();
        let since_last = self.frames.last().map(|last| position - last.output.0);
        if since_last.is_some_and(|len| len < self.span_size) || self.not_lazy.is_some() {
            return;
        }
        self.check_span(since_last.unwrap_or(0));
        if self.frames.len() >= SPANS_MAX {
            self.not_lazy = Some(NotLazy::ManySpans { max: SPANS_MAX });
        }
        output.begin_span(position);
        let (input, output) = (CompressedOffset(self.at), UncompressedOffset(position));
        self.frames.push(Frame { input, output });
        cuts.push(Cut { at: self.at, is_shared: false });
    }

    fn check_span(&mut self, len: u64) {
        if len > SPAN_BYTES_MAX {
            let start = self.frames.last().map(|last| last.output).unwrap_or_default();
            self.not_lazy = Some(NotLazy::LongSpan { start, len, max: SPAN_BYTES_MAX });
        }
    }

    pub(super) fn finish(mut self, len: u64) -> Result<Scanned, BuildError> {
        if !self.is_between_frames || self.frames.is_empty() {
            return Err(BuildError::Truncated { at: self.at });
        }
        if let Some(last) = self.frames.last() {
            self.check_span(len - last.output.0);
        }
        if self.frame_count == 1 && len > self.span_size {
            return Ok(Err(NotLazy::OneFrame { len }));
        }
        let Self { not_lazy, frames, .. } = self;
        Ok(not_lazy.map_or(Ok(Restarts::Zstd { frames }), Err))
    }
}
