//! Files made of runs of a layer file: reading them, and asking for what is missing.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use spanfs_cache::{Content, ReadError};
use spanfs_layer::UncompressedOffset;

use super::Failures;
use crate::Errno;
use crate::filesystem::{FillReply, Located};

/// Stored bytes of a file. What no run covers is zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Where they stand in the file.
    pub(crate) file: u64,
    /// Where they stand in the layer file.
    pub(crate) data: u64,
    /// Length in bytes.
    pub(crate) len: u64,
}

impl Run {
    /// The part of it in `wanted` (file offsets), with its place in the layer file.
    fn clip(self, wanted: &Range<u64>) -> Option<(Range<u64>, u64)> {
        let start = self.file.max(wanted.start);
        let end = self.file.saturating_add(self.len).min(wanted.end);
        (start < end).then(|| (start..end, self.data.saturating_add(start - self.file)))
    }
}

/// Read at `offset` of a file of `size` bytes that consists of `runs`, rising and without overlap.
pub(crate) fn read_present(
    content: &dyn Content,
    runs: impl Iterator<Item = Run>,
    size: u64,
    offset: u64,
    buffer: &mut [u8],
) -> Result<Option<usize>, ReadError> {
    let wanted = clamp(size, offset, buffer.len() as u64);
    let count = usize::try_from(wanted.end - wanted.start).unwrap_or(usize::MAX);
    let Some(buffer) = buffer.get_mut(..count) else { return Ok(Some(0)) };
    let mut done = wanted.start;
    for (part, data) in runs.filter_map(|run| run.clip(&wanted)) {
        slice(buffer, &wanted, done..part.start).fill(0);
        let place = slice(buffer, &wanted, part.clone());
        match content.read_present(UncompressedOffset(data), place)? {
            None => return Ok(None),
            Some(count) if count == place.len() => {}
            Some(count) => {
                let (len, end) = (place.len(), content.len());
                return Err(ReadError::Corrupt(format!(
                    "layer file of {end} bytes has {count} of the {len} expected at {data}"
                )));
            }
        }
        done = part.end;
    }
    slice(buffer, &wanted, done..wanted.end).fill(0);
    Ok(Some(count))
}

/// The same as a range of the layer file, where it is one.
pub(crate) fn located<'a>(
    content: &'a dyn Content,
    runs: impl Iterator<Item = Run>,
    size: u64,
    offset: u64,
    len: usize,
) -> Option<Located<'a>> {
    let wanted = clamp(size, offset, len as u64);
    let (part, data) = runs.filter_map(|run| run.clip(&wanted)).next()?;
    if part != wanted {
        return None;
    }
    let len = part.end - part.start;
    let end = UncompressedOffset(data.checked_add(len)?);
    let file = content.present_file(UncompressedOffset(data)..end)?;
    Some(Located { file, at: data, len: usize::try_from(len).ok()? })
}

/// The place of file range `part` in a buffer that stands for `wanted`; `part` lies inside.
fn slice<'a>(buffer: &'a mut [u8], wanted: &Range<u64>, part: Range<u64>) -> &'a mut [u8] {
    let start = (part.start - wanted.start) as usize;
    let end = (part.end.max(part.start) - wanted.start) as usize;
    &mut buffer[start..end]
}

fn clamp(size: u64, offset: u64, len: u64) -> Range<u64> {
    let start = offset.min(size);
    start..offset.saturating_add(len).clamp(start, size)
}

/// Ranges of the layer file behind a range of the file, neighbours joined.
pub(crate) fn data_ranges(
    runs: impl Iterator<Item = Run>,
    size: u64,
    offset: u64,
    len: u64,
) -> Vec<Range<UncompressedOffset>> {
    let wanted = clamp(size, offset, len);
    let mut ranges: Vec<Range<UncompressedOffset>> = Vec::new();
    for (part, data) in runs.filter_map(|run| run.clip(&wanted)) {
        let end = UncompressedOffset(data.saturating_add(part.end - part.start));
        match ranges.last_mut() {
            Some(last) if last.end.0 == data => last.end = end,
            _ => ranges.push(UncompressedOffset(data)..end),
        }
    }
    ranges
}

/// Fill all of `ranges`; the reply comes once, after the last of them, with the first error.
pub(crate) fn fill_all(
    content: &dyn Content,
    ranges: Vec<Range<UncompressedOffset>>,
    failures: &Arc<Failures>,
    reply: FillReply,
) {
    if ranges.is_empty() {
        return reply(Ok(()));
    }
    let state = JoinState { left: ranges.len(), outcome: Ok(()), reply };
    let join = Arc::new(Join(Mutex::new(Some(state))));
    for range in ranges {
        let (join, failures, start) = (Arc::clone(&join), Arc::clone(failures), range.start.0);
        let arrived = move |result: Result<(), ReadError>| {
            join.arrived(result.map_err(|error| failures.note(start, &error)));
        };
        content.fill(range, Box::new(arrived));
    }
}

/// For the log: which layer `ranges` are of, and how far they are.
pub(crate) fn describe(
    content: &dyn Content,
    ranges: Vec<Range<UncompressedOffset>>,
    failures: &Failures,
) -> String {
    let ranges: Vec<String> = ranges.into_iter().map(|range| content.describe(range)).collect();
    format!("layer {}: {}", failures.layer(), ranges.join(", "))
}

/// Several fills that one reply waits for; `None` once it went out.
struct Join(Mutex<Option<JoinState>>);

struct JoinState {
    left: usize,
    outcome: Result<(), Errno>,
    reply: FillReply,
}

impl Join {
    fn arrived(&self, result: Result<(), Errno>) {
        let mut place = self.0.lock();
        let Some(state) = place.as_mut() else {
            unreachable!("a fill replied more than once");
        };
        state.outcome = state.outcome.and(result);
        state.left -= 1;
        if state.left == 0
            && let Some(state) = place.take()
        {
            drop(place);
            (state.reply)(state.outcome);
        }
    }
}

#[cfg(test)]
mod tests;
