//! Where the bytes of a regular file lie: chunk indexes into its layer file.
//!
//! A file that lies in one piece on a block border needs one chunk as large as itself, or as the
//! index allows. A sparse file's chunks are as large as its borders allow; where these are no block borders, its chunks
//! are laid out anew behind the end of the tar, by copies that the owner of the layer file makes
//! once the tar is complete.

use alloc::vec::Vec;
use core::ops::Range;

use super::inode::CHUNK_BITS_MAX;
use super::{BLOCK, BLOCK_BITS, ErofsError, NO_BLOCK};
use crate::tree::Node;
use crate::{SparseSegment, UncompressedOffset};

/// Bytes of a layer's tar that its index expects to find in a second place too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataCopy {
    /// Which device of the index, from 0: the node's layer.
    pub device: u16,
    /// What to copy.
    pub from: Range<UncompressedOffset>,
    /// Where to, behind the end of the tar. What no copy covers there stays a hole.
    pub to: UncompressedOffset,
}

/// Chunk indexes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunks {
    /// log2 of a chunk in bytes.
    pub(super) bits: u32,
    pub(super) blocks: Blocks,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Blocks {
    /// One run from this block on.
    Run { first: u32, count: u64 },
    /// One for each chunk; [`NO_BLOCK`] is a hole.
    Each(Vec<u32>),
}

/// 8 MiB of indexes for one file.
const CHUNKS_MAX: u64 = 1 << 20;

impl Chunks {
    pub(super) fn count(&self) -> u64 {
        match &self.blocks {
            Blocks::Run { count, .. } => *count,
            Blocks::Each(blocks) => blocks.len() as u64,
        }
    }

    /// First block of each chunk.
    pub(super) fn blocks(&self) -> impl Iterator<Item = u32> {
        let (run, each) = match &self.blocks {
            Blocks::Run { first, count } => (Some((*first, *count)), &[][..]),
            Blocks::Each(blocks) => (None, blocks.as_slice()),
        };
        let step = self.bits - BLOCK_BITS;
        let run = run.into_iter().flat_map(move |(first, count)| {
            (0..count).map(move |chunk| (u64::from(first) + (chunk << step)) as u32)
        });
        run.chain(each.iter().copied())
    }
}

/// A layer file and what its index adds to it.
pub(super) struct DataFile {
    pub(super) device: u16,
    /// Bytes of the tar.
    pub(super) tar_len: u64,
    /// Bytes with what is appended.
    pub(super) len: u64,
}

/// Finds the chunks of a regular file with content, of at most `1 << bits_max` bytes unless they would
/// be too many.
pub(super) fn chunks_of(
    node: &Node<'_>,
    bits_max: u32,
    file: &mut DataFile,
    copies: &mut Vec<DataCopy>,
) -> Result<Chunks, ErofsError> {
    for run in node.extents() {
        let SparseSegment { data: UncompressedOffset(at), len, .. } = run;
        if at.checked_add(len).is_none_or(|end| end > file.tar_len) {
            return Err(ErofsError::Content { device: file.device, at, len });
        }
    }
    let size = node.size();
    let mut extents = node.extents();
    if let (Some(run), None) = (extents.next(), extents.next())
        && run.len == size
        && run.data.0 % BLOCK == 0
    {
        let bits = bits_of(size, bits_max);
        let first = (run.data.0 / BLOCK) as u32;
        return Ok(Chunks { bits, blocks: Blocks::Run { first, count: size.div_ceil(1 << bits) } });
    }
    match direct(node, bits_max) {
        Some(chunks) => Ok(chunks),
        None => copied(node, file, copies),
    }
}

/// log2 of one chunk that holds the whole file, or of the largest that is to be.
fn bits_of(size: u64, bits_max: u32) -> u32 {
    let log2_up = |len: u64| u64::BITS - len.saturating_sub(1).leading_zeros();
    let bits_min = log2_up(size.div_ceil(CHUNKS_MAX));
    log2_up(size).min(bits_max).max(bits_min).clamp(BLOCK_BITS, CHUNK_BITS_MAX)
}

/// Chunks where the runs lie already, if all their borders allow it.
fn direct(node: &Node<'_>, bits_max: u32) -> Option<Chunks> {
    let size = node.size();
    let mut borders = 0;
    for run in node.extents() {
        let end = run.file.0 + run.len;
        borders |= run.file.0 | if end == size { 0 } else { end };
        if run.data.0 % BLOCK != 0 {
            return None;
        }
    }
    let bits = borders.trailing_zeros().min(bits_of(size, bits_max));
    let count = size.div_ceil(1 << bits);
    if bits < BLOCK_BITS || count > CHUNKS_MAX {
        return None;
    }
    let mut blocks = alloc::vec![NO_BLOCK; count as usize];
    for run in node.extents() {
        let first = run.file.0 >> bits;
        let chunks = run.len.div_ceil(1 << bits);
        for chunk in 0..chunks {
            let block = (run.data.0 >> BLOCK_BITS) + (chunk << (bits - BLOCK_BITS));
            if let Some(place) = blocks.get_mut((first + chunk) as usize) {
                *place = block as u32;
            }
        }
    }
    Some(Chunks { bits, blocks: Blocks::Each(blocks) })
}

/// Chunks behind the tar, one for each that holds a stored byte.
fn copied(
    node: &Node<'_>,
    file: &mut DataFile,
    copies: &mut Vec<DataCopy>,
) -> Result<Chunks, ErofsError> {
    let size = node.size();
    let mut bits = BLOCK_BITS;
    while size.div_ceil(1 << bits) > CHUNKS_MAX {
        bits += 1;
    }
    if bits > CHUNK_BITS_MAX {
        let max = CHUNKS_MAX << CHUNK_BITS_MAX;
        return Err(ErofsError::TooLarge { what: "sparse file", found: size, max });
    }
    let mut blocks = alloc::vec![NO_BLOCK; size.div_ceil(1 << bits) as usize];
    for run in node.extents() {
        let (mut at, mut from) = (run.file.0, run.data.0);
        let end = at + run.len;
        while at < end {
            let chunk = at >> bits;
            let until = end.min((chunk + 1) << bits);
            let Some(block) = blocks.get_mut(chunk as usize) else { break };
            if *block == NO_BLOCK {
                *block = append(file, 1 << bits)?;
            }
            let to = u64::from(*block) * BLOCK + (at - (chunk << bits));
            add_copy(copies, file.device, from..from + (until - at), to);
            from += until - at;
            at = until;
        }
    }
    Ok(Chunks { bits, blocks: Blocks::Each(blocks) })
}

fn append(file: &mut DataFile, len: u64) -> Result<u32, ErofsError> {
    let at = file.len;
    let max = u64::from(NO_BLOCK - 1) * BLOCK;
    file.len = at.saturating_add(len);
    if file.len > max {
        return Err(ErofsError::TooLarge { what: "layer file", found: file.len, max });
    }
    Ok((at / BLOCK) as u32)
}

/// Lengthens the last copy where the new one goes on from it.
fn add_copy(copies: &mut Vec<DataCopy>, device: u16, from: Range<u64>, to: u64) {
    if let Some(last) = copies.last_mut() {
        let len = last.from.end.0 - last.from.start.0;
        if last.device == device && last.from.end.0 == from.start && last.to.0 + len == to {
            last.from.end = UncompressedOffset(from.end);
            return;
        }
    }
    let from = UncompressedOffset(from.start)..UncompressedOffset(from.end);
    copies.push(DataCopy { device, from, to: UncompressedOffset(to) });
}
