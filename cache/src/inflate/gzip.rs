//! DEFLATE spans: spliced and decoded whole where possible, else streamed; the result is the same.

use super::splice::{Edges, End, Splice};
use super::{Buffers, InflateFault, Output, TAIL_BYTES_EXPECTED, Wanted};
use crate::sys::{Format, Inflater, Stop, WholeError, WholeStream, crc32};

/// CRC-32 and length behind each member.
const TRAILER_LEN: usize = 8;

/// The two decoders of one thread, made when first needed.
#[derive(Default)]
pub(super) struct Gzip {
    whole: Option<WholeStream>,
    stream: Option<Inflater>,
}

impl Gzip {
    /// Decode the span at `bytes[headroom..]`. What the fast decoder refuses, for whatever reason,
    /// the streaming one judges. The second value is the memory of `bytes`.
    pub(super) fn inflate(
        &mut self,
        bytes: Vec<u8>,
        headroom: usize,
        edges: Edges<'_>,
        wanted: Wanted,
        buffers: &Buffers,
    ) -> (Result<Output, InflateFault>, Vec<u8>) {
        let (bytes, headroom) = match Splice::new(bytes, headroom, edges) {
            Err(bytes) => (bytes, headroom),
            Ok(splice) => match self.whole(&splice, edges.end, wanted, buffers).transpose() {
                Some(output) => return (output, splice.into_data().0),
                None => splice.into_data(),
            },
        };
        let data = bytes.get(headroom..).unwrap_or_default();
        (self.streamed(data, edges, wanted, buffers), bytes)
    }

    /// Decode by libdeflate, one call a member. `None` where that doesn't work out.
    pub(super) fn whole(
        &mut self,
        splice: &Splice,
        end: End,
        wanted: Wanted,
        buffers: &Buffers,
    ) -> Result<Option<Output>, InflateFault> {
        let decoder = match &mut self.whole {
            Some(decoder) => decoder,
            none => none.insert(WholeStream::new().ok_or(InflateFault::NoMemory)?),
        };
        let skip = splice.window_len();
        let tail_len = wanted.tail_max.min(TAIL_BYTES_EXPECTED);
        let len_max = skip + wanted.span_len + tail_len;
        let mut buffer = buffers.take(len_max);
        let room = buffer.get_mut(..len_max).unwrap_or_default();
        let len = members(decoder, splice.stream(), room, end)
            .and_then(|len| len.checked_sub(skip))
            .filter(|&len| wanted.check(len).is_ok());
        let Some(len) = len else {
            buffers.put(buffer);
            return Ok(None);
        };
        Ok(Some(Output { buffer, skip, len }))
    }

    /// Decode by zlib from the span's own bytes.
    pub(super) fn streamed(
        &mut self,
        data: &[u8],
        edges: Edges<'_>,
        wanted: Wanted,
        buffers: &Buffers,
    ) -> Result<Output, InflateFault> {
        let decoder = match &mut self.stream {
            Some(decoder) => decoder,
            none => none.insert(Inflater::new(Format::Raw).map_err(|_| InflateFault::NoMemory)?),
        };
        decoder.reset(Format::Raw);
        let mut input = data;
        if edges.bits != 0 {
            let (first, rest) = input.split_first().ok_or_else(cut_short)?;
            decoder.prime(edges.bits, first >> (8 - edges.bits));
            input = rest;
        }
        if let Some(window) = edges.window {
            decoder.set_window(window);
        }
        // One byte more than may come, so that too much is noticed.
        let tail_len = wanted.tail_max.min(TAIL_BYTES_EXPECTED);
        let mut buffer = buffers.take(wanted.span_len + tail_len + 1);
        let result = stream_members(decoder, input, edges.end, wanted, &mut buffer);
        match result {
            Ok(len) => Ok(Output { buffer, skip: 0, len }),
            Err(fault) => {
                buffers.put(buffer);
                Err(fault)
            }
        }
    }
}

/// Decode all members of a framed stream into `output`; the bytes produced.
fn members(decoder: &mut WholeStream, stream: &[u8], output: &mut [u8], end: End) -> Option<usize> {
    let (mut rest, mut produced_all) = (stream, 0);
    let mut is_first = true;
    loop {
        let room = output.get_mut(produced_all..)?;
        let (consumed, produced) = match decoder.inflate(rest, room) {
            Ok(counts) => counts,
            Err(WholeError::Bad | WholeError::OutputFull) => return None,
        };
        let (_, behind) = rest.split_at_checked(consumed)?;
        let content = room.get(..produced)?;
        produced_all += produced;
        if behind.is_empty() {
            // The end that we put there. A blob, though, ends with a trailer.
            return matches!(end, End::Inside(_)).then_some(produced_all);
        }
        let (trailer, behind) = behind.split_first_chunk::<TRAILER_LEN>()?;
        // Of the member that the span began inside, we have only the rest.
        if !is_first && !trailer_matches(trailer, content) {
            return None;
        }
        is_first = false;
        if behind.is_empty() {
            return (end == End::Blob).then_some(produced_all);
        }
        rest = behind.get(header_len(behind)?..)?;
    }
}

fn trailer_matches(trailer: &[u8; TRAILER_LEN], content: &[u8]) -> bool {
    let expected = u64::from_le_bytes(*trailer);
    let found = u64::from(crc32(content)) | (content.len() as u64) << 32;
    found == expected
}

/// Length of the gzip header (RFC 1952) at the start of `bytes`, if there is a whole one.
fn header_len(bytes: &[u8]) -> Option<usize> {
    const MAGIC_AND_METHOD: [u8; 3] = [0x1f, 0x8b, 8];
    const HAS_CRC: u8 = 2;
    const HAS_EXTRA: u8 = 4;
    const HAS_NAME: u8 = 8;
    const HAS_COMMENT: u8 = 16;
    const RESERVED: u8 = 0xe0;
    let (fixed, mut rest) = bytes.split_first_chunk::<10>()?;
    let flags = *fixed.get(3)?;
    if !fixed.starts_with(&MAGIC_AND_METHOD) || flags & RESERVED != 0 {
        return None;
    }
    if flags & HAS_EXTRA != 0 {
        let (len, behind) = rest.split_first_chunk::<2>()?;
        rest = behind.get(usize::from(u16::from_le_bytes(*len))..)?;
    }
    for flag in [HAS_NAME, HAS_COMMENT] {
        if flags & flag != 0 {
            let end = rest.iter().position(|&byte| byte == 0)?;
            rest = rest.get(end + 1..)?;
        }
    }
    if flags & HAS_CRC != 0 {
        // Its checksum is not compared: the streaming decoder does where it matters.
        return None;
    }
    Some(bytes.len() - rest.len())
}

/// Decode to the end of `input`; the bytes produced into `buffer`, which grows for a tail.
fn stream_members(
    decoder: &mut Inflater,
    mut input: &[u8],
    end: End,
    wanted: Wanted,
    buffer: &mut Vec<u8>,
) -> Result<usize, InflateFault> {
    let mut format = Format::Raw;
    let mut len = 0;
    loop {
        if len >= buffer.len() || len > wanted.max() {
            wanted.check(len)?;
            let doubled = buffer.len().saturating_mul(2);
            buffer.resize(doubled.min(wanted.max() + 1), 0);
        }
        let room = buffer.get_mut(len..).unwrap_or_default();
        let progress = decoder
            .step(input, room, Stop::End)
            .map_err(|bad| InflateFault::Stream(bad.to_string()))?;
        input = input.get(progress.consumed..).unwrap_or_default();
        len += progress.produced;
        if progress.end {
            if format == Format::Raw {
                input = input.get(TRAILER_LEN..).ok_or_else(cut_short)?;
            }
            if input.is_empty() {
                return Ok(len);
            }
            format = Format::Gzip;
            decoder.reset(format);
        } else if progress.is_stuck() {
            return match end {
                End::Inside(_) | End::Unknown => Ok(len),
                End::Blob => Err(cut_short()),
            };
        }
    }
}

fn cut_short() -> InflateFault {
    InflateFault::Stream("the compressed bytes end inside the stream".into())
}
