//! The parts of a file that have been seen, as the ELF reader wants them.

use std::cell::RefCell;
use std::ops::Range;

use object::ReadRef;

/// Parts of one file. A read of anything else fails, and is remembered.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    len: u64,
    parts: Vec<(u64, Vec<u8>)>,
    missing: RefCell<Option<Range<u64>>>,
}

/// What one question fetches at least, and its alignment.
const STEP: u64 = 4096;
/// Largest part of a file that is looked at.
pub(super) const PART_LEN_MAX: u64 = 1 << 20;

impl Pieces {
    pub(super) fn of_file(len: u64) -> Self {
        Self { len, ..Self::default() }
    }

    pub(super) fn add(&mut self, offset: u64, bytes: Vec<u8>) {
        self.parts.push((offset, bytes));
    }

    /// The first read that failed for want of bytes since the last call, widened to whole steps.
    pub(super) fn take_missing(&self) -> Option<Range<u64>> {
        let missing = self.missing.take()?;
        let start = missing.start / STEP * STEP;
        let end = missing.end.checked_next_multiple_of(STEP)?.min(self.len);
        (start < end && end - start <= PART_LEN_MAX).then_some(start..end)
    }

    /// Bytes from `offset` on, as far as their part reaches.
    fn part_at(&self, offset: u64) -> Option<&[u8]> {
        self.parts.iter().find_map(|(start, bytes)| {
            let skip = usize::try_from(offset.checked_sub(*start)?).ok()?;
            bytes.get(skip..).filter(|rest| !rest.is_empty())
        })
    }

    fn miss<T>(&self, range: Range<u64>) -> Result<T, ()> {
        if range.end <= self.len {
            self.missing.borrow_mut().get_or_insert(range);
        }
        Err(())
    }
}

impl<'a> ReadRef<'a> for &'a Pieces {
    fn len(self) -> Result<u64, ()> {
        Ok(self.len)
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        if size == 0 {
            return Ok(&[]);
        }
        let end = offset.checked_add(size).ok_or(())?;
        let wanted = usize::try_from(size).map_err(|_| ())?;
        // Parts overlap: a later one may reach further than the first that begins early enough.
        let covers = |(start, bytes): &'a (u64, Vec<u8>)| {
            let skip = usize::try_from(offset.checked_sub(*start)?).ok()?;
            bytes.get(skip..skip.checked_add(wanted)?)
        };
        match self.parts.iter().find_map(covers) {
            Some(bytes) => Ok(bytes),
            None => self.miss(offset..end),
        }
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        let Some(part) = self.part_at(range.start) else {
            let end = range.start.saturating_add(1).min(range.end);
            return self.miss(range.start..end);
        };
        let limit = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let part = part.get(..limit.min(part.len())).unwrap_or(part);
        match part.iter().position(|&byte| byte == delimiter) {
            Some(at) => part.get(..at).ok_or(()),
            // A text that runs over the end of its part: ask for a part that holds all of it.
            None if (part.len() as u64) < STEP && part.len() < limit => {
                let end = range.start.saturating_add(STEP).min(range.end).min(self.len);
                if self.read_bytes_at(range.start, end.saturating_sub(range.start)).is_ok() {
                    return self.text_in_larger_part(range.start, delimiter);
                }
                Err(())
            }
            None => Err(()),
        }
    }
}

impl Pieces {
    fn text_in_larger_part(&self, start: u64, delimiter: u8) -> Result<&[u8], ()> {
        self.parts
            .iter()
            .filter_map(|(at, bytes)| {
                let skip = usize::try_from(start.checked_sub(*at)?).ok()?;
                let rest = bytes.get(skip..)?;
                rest.get(..rest.iter().position(|&byte| byte == delimiter)?)
            })
            .next()
            .ok_or(())
    }
}
