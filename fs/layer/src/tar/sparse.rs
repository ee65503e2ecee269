//! Sparse maps: old GNU (in header blocks), PAX 0.0, 0.1 (in records) and 1.0 (before the data).

use alloc::vec::Vec;

use super::BLOCK_LEN;
use super::header::{number, until_nul};
use super::pax::{self, Pax};
use crate::{FileOffset, Record, SparseSegment, UncompressedOffset};

/// (offset in the file, length) of each stored run.
pub(super) type Map = Vec<(u64, u64)>;

/// What the PAX records say of a sparse file.
pub(super) enum PaxSparse {
    /// It is none.
    No,
    /// Formats 0.0 and 0.1: here is the map.
    Map { size: u64, map: Map },
    /// Format 1.0: the map stands before the data.
    InData { size: u64 },
}

/// Look for a sparse file in PAX records, and take its name from there.
pub(super) fn from_pax(
    record: &mut Record,
    segments_max: usize,
) -> Result<PaxSparse, &'static str> {
    let pax = &record.pax;
    if !pax.iter().any(|(key, _)| key.starts_with(b"GNU.sparse.")) {
        return Ok(PaxSparse::No);
    }
    let get = |key: &str| pax::value(pax, key.as_bytes()).filter(|value| !value.is_empty());
    let version = (get("GNU.sparse.major"), get("GNU.sparse.minor"));
    let in_records = match version {
        (None, None) | (Some(b"0"), Some(b"0" | b"1")) => true,
        (Some(b"1"), Some(b"0")) => false,
        _ => return Err("its format is neither 0.0, 0.1 nor 1.0"),
    };
    let size = get("GNU.sparse.realsize").or_else(|| get("GNU.sparse.size"));
    let size = size.and_then(pax::decimal).ok_or("it has no real size")?;
    let sparse = if in_records {
        PaxSparse::Map { size, map: map(pax, segments_max)? }
    } else {
        PaxSparse::InData { size }
    };
    if let Some(name) = get("GNU.sparse.name") {
        record.name = name.to_vec();
    }
    Ok(sparse)
}

fn map(pax: &Pax, segments_max: usize) -> Result<Map, &'static str> {
    let text = pax::value(pax, pax::SPARSE_MAP).unwrap_or_default();
    if text.is_empty() {
        return Ok(Map::new());
    }
    let mut numbers = text.split(|&byte| byte == b',').map(pax::decimal);
    let mut map = Map::new();
    while let Some(offset) = numbers.next() {
        let (Some(offset), Some(Some(len))) = (offset, numbers.next()) else {
            return Err("it is not pairs of numbers");
        };
        push(&mut map, (offset, len), segments_max)?;
    }
    Ok(map)
}

fn push(map: &mut Map, run: (u64, u64), segments_max: usize) -> Result<(), &'static str> {
    if map.len() >= segments_max {
        return Err("it has too many entries");
    }
    map.push(run);
    Ok(())
}

/// Add the map entries of an old GNU header or extension block: 12 + 12 octal digits each.
pub(super) fn add_old(
    map: &mut Map,
    entries: &[u8],
    segments_max: usize,
) -> Result<(), &'static str> {
    for entry in entries.chunks_exact(24) {
        let (offset, len) = entry.split_at(12);
        if offset.first() == Some(&0) {
            break;
        }
        let field = |field| number(field).and_then(|value| u64::try_from(value).ok());
        let run = field(offset).zip(field(len)).ok_or("it is not pairs of numbers")?;
        push(map, run, segments_max)?;
    }
    Ok(())
}

/// Map of format 1.0 under way: lines with a count, then offset and length of each run.
#[derive(Debug, Default)]
pub(super) struct TextMap {
    line: Vec<u8>,
    runs_left: Option<u64>,
    offset: Option<u64>,
    map: Map,
}

impl TextMap {
    /// Take the next block; gives the map with its last block.
    pub(super) fn feed(
        &mut self,
        block: &[u8; BLOCK_LEN],
        segments_max: usize,
    ) -> Result<Option<Map>, &'static str> {
        for &byte in block {
            if byte != b'\n' {
                if self.line.len() >= 20 {
                    return Err("a number in it is too long");
                }
                self.line.push(byte);
                continue;
            }
            let value = pax::decimal(until_nul(&self.line)).ok_or("it is not lines of numbers")?;
            self.line.clear();
            match (self.runs_left, self.offset.take()) {
                (None, _) => self.runs_left = Some(value),
                (Some(_), None) => self.offset = Some(value),
                (Some(left), Some(offset)) => {
                    push(&mut self.map, (offset, value), segments_max)?;
                    self.runs_left = Some(left.saturating_sub(1));
                }
            }
            if self.runs_left == Some(0) {
                return Ok(Some(core::mem::take(&mut self.map)));
            }
        }
        Ok(None)
    }
}

/// Check a map and place its runs in the tar, where they stand one behind the other.
pub(super) fn place(
    map: Map,
    size: u64,
    start: UncompressedOffset,
    stored: u64,
) -> Result<Vec<SparseSegment>, &'static str> {
    let mut segments = Vec::with_capacity(map.len());
    let (mut file_end, mut used) = (0_u64, 0_u64);
    for (file, len) in map {
        let end = file.checked_add(len).ok_or("a run is too long")?;
        if file < file_end {
            return Err("its runs overlap or don't rise");
        }
        let data = start.checked_add(used).ok_or("a run is too long")?;
        used = used.checked_add(len).ok_or("a run is too long")?;
        file_end = end;
        // GNU tar closes a map with an empty run at the end of the file.
        if len > 0 {
            segments.push(SparseSegment { file: FileOffset(file), data, len });
        }
    }
    if file_end > size {
        return Err("a run reaches behind the end of the file");
    }
    if used > stored {
        return Err("its runs are longer than the stored data");
    }
    Ok(segments)
}
