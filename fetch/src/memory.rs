//! Memory behind wants: taken when a want starts, cut into parts that are filled independently, put
//! together again without copying, and recycled.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

/// Buffers that nobody uses, kept because fresh pages are dear.
#[derive(Debug)]
pub(crate) struct BufferPool {
    bytes_max: usize,
    free: Mutex<Vec<Vec<u8>>>,
}

/// Buffers kept at most, however small: the list is searched from end to end.
const BUFFERS_MAX: usize = 64;

/// Smaller buffers come cheaply from the allocator.
const BUFFER_LEN_MIN: usize = 64 << 10;

/// Larger buffers have a multiple of this, so that they serve all wants of about their length: those
/// of one layer's spans.
const BUFFER_STEP: usize = 256 << 10;

/// Room behind the bytes wanted: whoever decodes them where they lie appends an end to them, and a
/// buffer that must grow for that is copied whole.
const SPARE: usize = 64;

impl BufferPool {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, free: Mutex::new(Vec::new()) }
    }

    /// A buffer of exactly `len` bytes with unspecified content.
    pub(crate) fn take(&self, len: usize) -> Vec<u8> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let fits =
            |buffer: &&Vec<u8>| buffer.capacity() >= len + SPARE && buffer.capacity() / 4 <= len;
        let best = free.iter().filter(fits).map(Vec::capacity).min();
        let index = free.iter().position(|buffer| Some(buffer.capacity()) == best);
        let recycled = index.map(|index| free.swap_remove(index));
        drop(free);
        match recycled {
            Some(mut buffer) => {
                buffer.resize(len, 0);
                buffer
            }
            None if len < BUFFER_LEN_MIN => vec![0; len],
            None => {
                let mut fresh = vec![0; (len + SPARE).next_multiple_of(BUFFER_STEP)];
                fresh.truncate(len);
                fresh
            }
        }
    }

    pub(crate) fn give(&self, buffer: Vec<u8>) {
        if buffer.capacity() < BUFFER_LEN_MIN {
            return;
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let held: usize = free.iter().map(Vec::capacity).sum();
        if held + buffer.capacity() <= self.bytes_max && free.len() < BUFFERS_MAX {
            free.push(buffer);
        }
    }
}

/// Memory of one want: headroom, then a place for each byte of its range.
#[derive(Debug)]
pub(crate) struct Destination {
    range: Range<u64>,
    head: BytesMut,
    /// Parts at home, by their start in the blob; those that transfers write to are missing.
    parts: BTreeMap<u64, BytesMut>,
}

impl Destination {
    pub(crate) fn new(range: Range<u64>, headroom: usize, pool: &BufferPool) -> Self {
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut body = BytesMut::from(Bytes::from(pool.take(headroom.saturating_add(len))));
        let head = body.split_to(headroom);
        let parts = BTreeMap::from([(range.start, body)]);
        Self { range, head, parts }
    }

    /// Lend the memory of a part; `None` if any of it is out already.
    pub(crate) fn lend(&mut self, range: &Range<u64>) -> Option<BytesMut> {
        let (&start, part) = self.parts.range_mut(..=range.start).next_back()?;
        let before = usize::try_from(range.start - start).ok()?;
        let len = usize::try_from(range.end - range.start).ok()?;
        if before.checked_add(len)? > part.len() {
            return None;
        }
        let mut lent = part.split_off(before);
        if part.is_empty() {
            self.parts.remove(&start);
        }
        let rest = lent.split_off(len);
        if !rest.is_empty() {
            self.parts.insert(range.end, rest);
        }
        Some(lent)
    }

    /// Take a part back. It melts into its neighbours, so that a later part may cross their border.
    pub(crate) fn restore(&mut self, mut start: u64, mut part: BytesMut) {
        if part.is_empty() {
            return;
        }
        if let Some(next) = self.parts.remove(&(start + part.len() as u64)) {
            part.unsplit(next);
        }
        if let Some((&before, previous)) = self.parts.range_mut(..start).next_back()
            && before + previous.len() as u64 == start
        {
            let mut joined = std::mem::take(previous);
            joined.unsplit(part);
            (start, part) = (before, joined);
        }
        self.parts.insert(start, part);
    }

    /// Copy bytes in that came for somebody else.
    pub(crate) fn copy(&mut self, start: u64, bytes: &[u8]) {
        let range = start..start + bytes.len() as u64;
        let mut lent = self.lend(&range).unwrap_or_default();
        assert_eq!(
            lent.len(),
            bytes.len(),
            "the memory of {range:?} is lent out while it is copied to"
        );
        lent.copy_from_slice(bytes);
        self.restore(start, lent);
    }

    /// The whole buffer, once every part is at home: headroom and data.
    pub(crate) fn into_buffer(self) -> Vec<u8> {
        let mut whole = self.head;
        let mut position = self.range.start;
        for (start, part) in self.parts {
            assert_eq!(start, position, "a part of {:?} is not at home", self.range);
            position += part.len() as u64;
            // Neighbours of one allocation: this joins them without copying.
            whole.unsplit(part);
        }
        assert_eq!(position, self.range.end, "the end of {:?} is not at home", self.range);
        Vec::from(whole)
    }
}

/// Copy as much as fits, and say how much that was.
pub(crate) fn copy_prefix(to: &mut [u8], from: &[u8]) -> usize {
    let count = to.len().min(from.len());
    if let (Some(to), Some(from)) = (to.get_mut(..count), from.get(..count)) {
        to.copy_from_slice(from);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Parts lent and filled in any order come back as one buffer at the same address.
        #[test]
        fn parts_join_without_copying(
            headroom in 0usize..20,
            cuts in prop::collection::btree_set(1u64..100, 0..8),
            seed in any::<u64>(),
        ) {
            let pool = BufferPool::new(1 << 20);
            let mut destination = Destination::new(1000..1100, headroom, &pool);
            let mut edges: Vec<u64> = [0, 100].into_iter().chain(cuts).map(|at| 1000 + at).collect();
            edges.sort_unstable();
            let mut ranges: Vec<_> = edges.windows(2).map(|pair| pair[0]..pair[1]).collect();
            let mut random = crate::retry::Random(seed);
            let mut addresses = Vec::new();
            while !ranges.is_empty() {
                let range = ranges.swap_remove(random.below(ranges.len() as u64) as usize);
                let mut part = destination.lend(&range).unwrap();
                prop_assert!(destination.lend(&range).is_none());
                addresses.push(part.as_ptr() as usize - (range.start - 1000) as usize);
                part.iter_mut().zip(range.clone()).for_each(|(byte, at)| *byte = at as u8);
                destination.restore(range.start, part);
            }
            let all = destination.lend(&(1000..1100)).unwrap();
            destination.restore(1000, all);
            let buffer = destination.into_buffer();
            prop_assert_eq!(buffer.len(), headroom + 100);
            let expected: Vec<u8> = (1000u64..1100).map(|at| at as u8).collect();
            prop_assert_eq!(&buffer[headroom..], &expected[..]);
            let body = buffer.as_ptr() as usize + headroom;
            prop_assert!(addresses.iter().all(|&address| address == body), "bytes were moved");
        }
    }

    #[test]
    fn pool_reuses_and_is_bounded() {
        let pool = BufferPool::new(1 << 20);
        let first = pool.take(512 << 10);
        let address = first.as_ptr();
        pool.give(first);
        let second = pool.take(400 << 10);
        assert_eq!(second.as_ptr(), address);
        for _ in 0..8 {
            pool.give(vec![0; 512 << 10]);
        }
        assert_eq!(pool.free.lock().unwrap().len(), 2);
        // Far too large a buffer is not wasted on a small want.
        assert_eq!(pool.take(1000).capacity(), 1000);
    }
}
