//! Spans of whole zstd frames.

use std::io;

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::{Buffers, InflateFault, Output, TAIL_BYTES_EXPECTED, Wanted};

/// Largest window that a frame may ask for: 128 MiB, what the field accepts.
pub(crate) const WINDOW_LOG_MAX: u32 = 27;

/// Decoder that refuses larger windows and dictionaries.
pub(crate) fn decoder() -> io::Result<Decoder<'static>> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
    Ok(decoder)
}

/// The decoder of one thread, made when first needed.
#[derive(Default)]
pub(super) struct Zstd(Option<Decoder<'static>>);

/// Room that a buffer for frames has at first.
const ROOM_LEN: usize = 1 << 20;

impl Zstd {
    /// The decoder, at the start of a frame.
    fn fresh(&mut self) -> io::Result<&mut Decoder<'static>> {
        let decoder = match &mut self.0 {
            Some(decoder) => decoder,
            none => none.insert(decoder()?),
        };
        decoder.reinit()?;
        Ok(decoder)
    }

    /// Decode `data`, one whole frame, to place `len` of `buffer`, which grows where it must. Gives where it ends
    /// there; `None` if it is no frame, or ends behind `len_max`.
    pub(super) fn inflate_frame(
        &mut self,
        data: &[u8],
        buffer: &mut Vec<u8>,
        mut len: usize,
        len_max: usize,
    ) -> Option<usize> {
        let decoder = self.fresh().ok()?;
        let mut input = InBuffer::around(data);
        loop {
            if len == buffer.len() {
                // One byte more than may come, so that too much is noticed.
                buffer.resize((2 * len).clamp(ROOM_LEN, ROOM_LEN.max(len_max + 1)), 0);
            }
            let mut output = OutBuffer::around(buffer.get_mut(len..).unwrap_or_default());
            let consumed_before = input.pos();
            let hint = decoder.run(&mut input, &mut output).ok()?;
            let produced = output.pos();
            len += produced;
            if len > len_max || (hint > 0 && produced == 0 && input.pos() == consumed_before) {
                return None;
            }
            if hint == 0 {
                return (input.pos() == data.len()).then_some(len);
            }
        }
    }

    /// Decode all frames of `data`.
    pub(super) fn inflate(
        &mut self,
        data: &[u8],
        wanted: Wanted,
        buffers: &Buffers,
    ) -> Result<Output, InflateFault> {
        let decoder = self.fresh().map_err(|_| InflateFault::NoMemory)?;
        // One byte more than may come, so that too much is noticed.
        let tail_len = wanted.tail_max.min(TAIL_BYTES_EXPECTED);
        let mut buffer = buffers.take(wanted.span_len + tail_len + 1);
        match frames(decoder, data, wanted, &mut buffer) {
            Ok(len) => Ok(Output { buffer, skip: 0, len }),
            Err(fault) => {
                buffers.put(buffer);
                Err(fault)
            }
        }
    }
}

fn frames(
    decoder: &mut Decoder<'_>,
    data: &[u8],
    wanted: Wanted,
    buffer: &mut Vec<u8>,
) -> Result<usize, InflateFault> {
    let fail = |error: io::Error| InflateFault::Stream(error.to_string());
    let mut input = InBuffer::around(data);
    let mut len = 0;
    loop {
        if len >= buffer.len() || len > wanted.max() {
            wanted.check(len)?;
            let doubled = buffer.len().saturating_mul(2);
            buffer.resize(doubled.min(wanted.max() + 1), 0);
        }
        let mut output = OutBuffer::around(buffer.get_mut(len..).unwrap_or_default());
        let consumed_before = input.pos();
        let hint = decoder.run(&mut input, &mut output).map_err(fail)?;
        let produced = output.pos();
        len += produced;
        if hint == 0 && input.pos() == data.len() {
            return Ok(len);
        }
        if produced == 0 && input.pos() == consumed_before {
            return Err(InflateFault::Stream("the compressed bytes end inside a frame".into()));
        }
    }
}
