//! The part of FlatBuffers that zTOCs need: a reader that trusts no offset, and a writer that lays
//! bytes out exactly as the Go builder does, because the digest of a zTOC is its name.
//!
//! A table starts with an i32, the distance back to its vtable; the vtable is u16s: its own length,
//! the table's length, then the place of each slot in the table (0 = absent). Strings and vectors
//! are referred to by a u32, the distance forward, and begin with a u32 count. A string has a NUL
//! behind it. All is little endian. Strings here are bytes: names in layers need not be UTF-8.

use alloc::vec;
use alloc::vec::Vec;

/// A place in the buffer that can't be what an offset says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfBounds {
    pub(super) at: usize,
}

/// Buffer being read.
#[derive(Clone, Copy)]
pub(super) struct Buffer<'a>(&'a [u8]);

/// Table whose vtable lies within the buffer.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    buffer: Buffer<'a>,
    at: usize,
    vtable: &'a [u8],
}

/// Vector of offsets to strings or tables.
#[derive(Clone, Copy)]
pub(super) struct Offsets<'a> {
    buffer: Buffer<'a>,
    at: usize,
    count: usize,
}

impl<'a> Buffer<'a> {
    /// The root table of an encoded buffer.
    pub(super) fn root(encoded: &'a [u8]) -> Result<Table<'a>, OutOfBounds> {
        let buffer = Self(encoded);
        buffer.table(buffer.target(0)?)
    }

    fn bytes<const N: usize>(self, at: usize) -> Result<[u8; N], OutOfBounds> {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk());
        bytes.copied().ok_or(OutOfBounds { at })
    }

    fn target(self, at: usize) -> Result<usize, OutOfBounds> {
        let distance = u32::from_le_bytes(self.bytes(at)?);
        at.checked_add(distance as usize).ok_or(OutOfBounds { at })
    }

    fn table(self, at: usize) -> Result<Table<'a>, OutOfBounds> {
        let fail = OutOfBounds { at };
        let back = i64::from(i32::from_le_bytes(self.bytes(at)?));
        let start = usize::try_from(at as i64 - back).map_err(|_| fail)?;
        let len = usize::from(u16::from_le_bytes(self.bytes(start)?));
        let end = start.checked_add(len).ok_or(fail)?;
        let vtable = self.0.get(start..end).and_then(|vtable| vtable.get(4..));
        Ok(Table { buffer: self, at, vtable: vtable.ok_or(OutOfBounds { at: start })? })
    }

    /// Count and start of the elements of a vector whose elements are `len` bytes long.
    fn vector(self, at: usize, len: usize) -> Result<(usize, usize), OutOfBounds> {
        let count = u32::from_le_bytes(self.bytes(at)?) as usize;
        let start = at + 4;
        let end = count.checked_mul(len).and_then(|len| start.checked_add(len));
        match end {
            Some(end) if end <= self.0.len() => Ok((count, start)),
            _ => Err(OutOfBounds { at }),
        }
    }

    /// Byte vector or string, and where its bytes stand.
    fn byte_vector(self, at: usize) -> Result<(&'a [u8], usize), OutOfBounds> {
        let (len, start) = self.vector(at, 1)?;
        let bytes = self.0.get(start..start + len);
        Ok((bytes.ok_or(OutOfBounds { at })?, start))
    }
}

impl<'a> Table<'a> {
    fn slot(&self, id: usize) -> Option<usize> {
        let place = self.vtable.get(id * 2..)?.first_chunk::<2>()?;
        match u16::from_le_bytes(*place) {
            0 => None,
            place => Some(self.at + usize::from(place)),
        }
    }

    fn scalar<const N: usize>(&self, id: usize) -> Result<Option<[u8; N]>, OutOfBounds> {
        self.slot(id).map(|at| self.buffer.bytes(at)).transpose()
    }

    pub(super) fn i64(&self, id: usize) -> Result<i64, OutOfBounds> {
        Ok(self.scalar(id)?.map_or(0, i64::from_le_bytes))
    }

    pub(super) fn i32(&self, id: usize) -> Result<i32, OutOfBounds> {
        Ok(self.scalar(id)?.map_or(0, i32::from_le_bytes))
    }

    pub(super) fn u32(&self, id: usize) -> Result<u32, OutOfBounds> {
        Ok(self.scalar(id)?.map_or(0, u32::from_le_bytes))
    }

    pub(super) fn i8(&self, id: usize, default: i8) -> Result<i8, OutOfBounds> {
        Ok(self.scalar(id)?.map_or(default, i8::from_le_bytes))
    }

    /// String or byte vector with the place of its bytes; absent is empty.
    pub(super) fn bytes(&self, id: usize) -> Result<(&'a [u8], usize), OutOfBounds> {
        let Some(at) = self.slot(id) else { return Ok((&[], 0)) };
        self.buffer.byte_vector(self.buffer.target(at)?)
    }

    pub(super) fn string(&self, id: usize) -> Result<&'a [u8], OutOfBounds> {
        Ok(self.bytes(id)?.0)
    }

    pub(super) fn table(&self, id: usize) -> Result<Option<Table<'a>>, OutOfBounds> {
        let Some(at) = self.slot(id) else { return Ok(None) };
        self.buffer.table(self.buffer.target(at)?).map(Some)
    }

    /// Vector of offsets; absent is empty.
    pub(super) fn offsets(&self, id: usize) -> Result<Offsets<'a>, OutOfBounds> {
        let buffer = self.buffer;
        let Some(at) = self.slot(id) else { return Ok(Offsets { buffer, at: 0, count: 0 }) };
        let (count, at) = buffer.vector(buffer.target(at)?, 4)?;
        Ok(Offsets { buffer, at, count })
    }
}

impl<'a> Offsets<'a> {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    fn places(self) -> impl Iterator<Item = usize> + 'a {
        (0..self.count).map(move |index| self.at + index * 4)
    }

    pub(super) fn tables(self) -> impl Iterator<Item = Result<Table<'a>, OutOfBounds>> + 'a {
        self.places().map(move |at| self.buffer.table(self.buffer.target(at)?))
    }

    pub(super) fn strings(self) -> impl Iterator<Item = Result<&'a [u8], OutOfBounds>> + 'a {
        self.places().map(move |at| Ok(self.buffer.byte_vector(self.buffer.target(at)?)?.0))
    }
}

/// Where something was written, counted from the buffer's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written(usize);

/// Writer that fills the buffer from its end to its start.
pub(super) struct Builder {
    /// The buffer back to front: pushing here is prepending there.
    reversed: Vec<u8>,
    /// Largest alignment so far; the whole buffer is padded to it.
    align_max: usize,
    /// Vtables so far, as (place, slots), shared by tables of the same shape.
    vtables: Vec<(usize, Vec<u16>)>,
}

/// Table being written: slots added so far.
pub(super) struct TableBuilder<'b> {
    builder: &'b mut Builder,
    start: usize,
    slots: Vec<usize>,
}

impl Builder {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { reversed: Vec::with_capacity(bytes), align_max: 1, vtables: Vec::new() }
    }

    /// Pad so that, with `more` bytes in front, the place is aligned to `align`.
    fn prepare(&mut self, align: usize, more: usize) {
        self.align_max = self.align_max.max(align);
        let pad = (self.reversed.len() + more).wrapping_neg() % align;
        self.reversed.resize(self.reversed.len() + pad, 0);
    }

    fn place(&mut self, bytes: &[u8]) {
        self.reversed.extend(bytes.iter().rev());
    }

    fn offset(&mut self, to: Written) {
        self.prepare(4, 0);
        let distance = self.reversed.len() + 4 - to.0;
        self.place(&(distance as u32).to_le_bytes());
    }

    fn count(&mut self, count: usize) -> Written {
        self.place(&(count as u32).to_le_bytes());
        Written(self.reversed.len())
    }

    pub(super) fn string(&mut self, bytes: &[u8]) -> Written {
        self.prepare(4, bytes.len() + 1);
        self.place(&[0]);
        self.place(bytes);
        self.count(bytes.len())
    }

    pub(super) fn byte_vector(&mut self, bytes: &[u8]) -> Written {
        self.prepare(4, bytes.len());
        self.place(bytes);
        self.count(bytes.len())
    }

    pub(super) fn offsets(&mut self, elements: &[Written]) -> Written {
        self.prepare(4, elements.len() * 4);
        for &element in elements.iter().rev() {
            self.offset(element);
        }
        self.count(elements.len())
    }

    pub(super) fn table(&mut self, slots: usize) -> TableBuilder<'_> {
        TableBuilder { start: self.reversed.len(), builder: self, slots: vec![0; slots] }
    }

    pub(super) fn finish(mut self, root: Written) -> Vec<u8> {
        self.prepare(self.align_max, 4);
        self.offset(root);
        self.reversed.reverse();
        self.reversed
    }
}

impl TableBuilder<'_> {
    fn scalar<const N: usize>(&mut self, id: usize, bytes: [u8; N]) {
        self.builder.prepare(N, 0);
        self.builder.place(&bytes);
        self.added(id);
    }

    fn added(&mut self, id: usize) {
        let place = self.builder.reversed.len();
        if let Some(slot) = self.slots.get_mut(id) {
            *slot = place;
        }
    }

    pub(super) fn i64(&mut self, id: usize, value: i64) {
        if value != 0 {
            self.scalar(id, value.to_le_bytes());
        }
    }

    pub(super) fn i32(&mut self, id: usize, value: i32) {
        if value != 0 {
            self.scalar(id, value.to_le_bytes());
        }
    }

    pub(super) fn u32(&mut self, id: usize, value: u32) {
        if value != 0 {
            self.scalar(id, value.to_le_bytes());
        }
    }

    pub(super) fn i8(&mut self, id: usize, value: i8, default: i8) {
        if value != default {
            self.scalar(id, value.to_le_bytes());
        }
    }

    pub(super) fn offset(&mut self, id: usize, to: Written) {
        self.builder.offset(to);
        self.added(id);
    }

    /// Close the table: trailing empty slots go, and an equal vtable is used again, latest first.
    /// As in Go, tables of one shape but different length count as equal.
    pub(super) fn finish(mut self) -> Written {
        self.builder.prepare(4, 0);
        let table = self.builder.reversed.len() + 4;
        while self.slots.last() == Some(&0) {
            self.slots.pop();
        }
        let slot = |&place: &usize| if place == 0 { 0 } else { (table - place) as u16 };
        let slots: Vec<u16> = self.slots.iter().map(slot).collect();
        let vtables = &mut self.builder.vtables;
        if let Some((vtable, _)) = vtables.iter().rev().find(|(_, known)| *known == slots) {
            let back = *vtable as i64 - table as i64;
            self.builder.place(&(back as i32).to_le_bytes());
            return Written(table);
        }
        let lens = [slots.len() as u16 * 2 + 4, (table - self.start) as u16];
        let vtable = table + lens.len() * 2 + slots.len() * 2;
        self.builder.place(&((vtable - table) as i32).to_le_bytes());
        for value in slots.iter().rev().chain(lens.iter().rev()) {
            self.builder.place(&value.to_le_bytes());
        }
        self.builder.vtables.push((vtable, slots));
        Written(table)
    }
}
