//! The streaming reader: bytes in any pieces, records out.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::header::{Block, Header, blank_record, until_nul};
use super::pax::{self, Pax};
use super::sparse::{self, Map, PaxSparse, TextMap};
use super::{Archive, BLOCK_LEN, Limits, TarError};
use crate::{Kind, Record, UncompressedOffset};

/// Streaming reader of one tar archive.
///
/// Only headers are ever buffered; file data is counted and passed over.
#[derive(Debug)]
pub struct Reader {
    limits: Limits,
    /// Bytes taken so far, up to the archive's end.
    at: u64,
    state: State,
    /// First part of a block whose rest has not come yet.
    partial: Box<Block>,
    partial_len: usize,
    /// Extension headers that wait for their entry.
    pending: Pending,
    entries: u64,
    metadata_bytes: u64,
    global_header: Option<UncompressedOffset>,
    failed: Option<TarError>,
}

#[derive(Debug)]
enum State {
    /// A header or zero block comes next.
    Header,
    /// One zero block has been seen.
    SecondZero,
    /// Continuation of an old GNU sparse map.
    OldSparse(Box<Sparse>),
    /// Map of a PAX 1.0 sparse file.
    TextSparse(Box<Sparse>, TextMap),
    /// Payload of an extension header.
    Payload { extension: Extension, left: u64, pad: u64, buffer: Vec<u8> },
    /// Data and padding to pass over.
    Skip { data: u64, pad: u64 },
    /// Behind the end of the archive.
    End,
}

/// A sparse file whose map is not complete.
#[derive(Debug)]
struct Sparse {
    record: Record,
    main_header: UncompressedOffset,
    size: u64,
    map: Map,
    /// Bytes of payload that are left.
    stored: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    Pax,
    LongName,
    LongLink,
}

#[derive(Debug, Default)]
struct Pending {
    start: Option<UncompressedOffset>,
    pax: Pax,
    name: Vec<u8>,
    link: Vec<u8>,
}

impl Reader {
    /// Reader at the start of an archive.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            at: 0,
            state: State::Header,
            partial: Box::new([0; BLOCK_LEN]),
            partial_len: 0,
            pending: Pending::default(),
            entries: 0,
            metadata_bytes: 0,
            global_header: None,
            failed: None,
        }
    }

    /// Take the next bytes and append the records that they complete to `out`.
    ///
    /// Bytes behind the end of the archive are ignored. After an error every call gives it again.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<Record>) -> Result<(), TarError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.consume(bytes, out).inspect_err(|error| self.failed = Some(error.clone()))
    }

    /// The data has ended.
    pub fn finish(self) -> Result<Archive, TarError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let at = UncompressedOffset(self.at);
        let inside = match self.state {
            State::Header | State::SecondZero if self.partial_len > 0 => Some("a header block"),
            State::Header | State::SecondZero | State::End => None,
            State::OldSparse(_) | State::TextSparse(..) => Some("a sparse map"),
            State::Payload { .. } => Some("an extension header"),
            State::Skip { data: 0, .. } => None,
            State::Skip { .. } => Some("a file's data"),
        };
        if let Some(inside) = inside {
            return Err(TarError::Truncated { at, inside });
        }
        if let Some(at) = self.pending.start {
            return Err(TarError::Orphan { at });
        }
        let (entries, global_header) = (self.entries, self.global_header);
        Ok(Archive { size: self.at, entries, global_header })
    }

    /// True behind the end of the archive: what follows is padding.
    pub fn at_end(&self) -> bool {
        matches!(self.state, State::End)
    }

    fn consume(&mut self, mut bytes: &[u8], out: &mut Vec<Record>) -> Result<(), TarError> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::End => return Ok(()),
                State::Skip { data, pad } => {
                    let from_data = take(data, bytes.len());
                    let from_pad = take(pad, bytes.len() - from_data);
                    let done = *data == 0 && *pad == 0;
                    bytes = self.advance(bytes, from_data + from_pad);
                    if done {
                        self.state = State::Header;
                    }
                }
                State::Payload { .. } => bytes = self.payload(bytes)?,
                _ => bytes = self.block_of(bytes, out)?,
            }
        }
        Ok(())
    }

    fn advance<'a>(&mut self, bytes: &'a [u8], len: usize) -> &'a [u8] {
        self.at += len as u64;
        bytes.get(len..).unwrap_or_default()
    }

    /// Gather a block, straight from `bytes` where it is whole.
    fn block_of<'a>(
        &mut self,
        bytes: &'a [u8],
        out: &mut Vec<Record>,
    ) -> Result<&'a [u8], TarError> {
        if self.partial_len == 0
            && let Some((block, rest)) = bytes.split_first_chunk::<BLOCK_LEN>()
        {
            self.at += BLOCK_LEN as u64;
            self.block(block, out)?;
            return Ok(rest);
        }
        let free = self.partial.get_mut(self.partial_len..).unwrap_or_default();
        let len = free.len().min(bytes.len());
        free.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        self.partial_len += len;
        let rest = self.advance(bytes, len);
        if self.partial_len == BLOCK_LEN {
            self.partial_len = 0;
            let block = self.partial.clone();
            self.block(&block, out)?;
        }
        Ok(rest)
    }

    /// Act on a whole block, which ends at `self.at`.
    fn block(&mut self, block: &Block, out: &mut Vec<Record>) -> Result<(), TarError> {
        let at = UncompressedOffset(self.at - BLOCK_LEN as u64);
        match core::mem::replace(&mut self.state, State::Header) {
            State::SecondZero if is_zero(block) => self.end(),
            State::SecondZero => Err(TarError::LoneZeroBlock { at }),
            State::OldSparse(sparse) => self.old_sparse(sparse, block, out),
            State::TextSparse(sparse, map) => self.text_sparse(sparse, map, block, out),
            _ if is_zero(block) => {
                self.state = State::SecondZero;
                Ok(())
            }
            _ => self.header(block, at, out),
        }
    }

    fn end(&mut self) -> Result<(), TarError> {
        if let Some(at) = self.pending.start {
            return Err(TarError::Orphan { at });
        }
        self.state = State::End;
        Ok(())
    }

    fn header(
        &mut self,
        block: &Block,
        at: UncompressedOffset,
        out: &mut Vec<Record>,
    ) -> Result<(), TarError> {
        let header = Header::new(block, at)?;
        let kind = match header.typeflag() {
            b'x' => return self.extension(Extension::Pax, &header, at),
            b'L' => return self.extension(Extension::LongName, &header, at),
            b'K' => return self.extension(Extension::LongLink, &header, at),
            b'g' => {
                self.global_header.get_or_insert(at);
                return self.skip(header.size()?, at);
            }
            0 | b'0' | b'7' | b'S' => Kind::Regular,
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            typeflag => return Err(TarError::UnsupportedType { at, typeflag }),
        };
        let mut record = blank_record(kind);
        header.fill(&mut record)?;
        self.apply_pending(&mut record, at)?;
        // Before type flag 5 existed, a directory was a file with a slash behind its name.
        if record.typeflag == 0 && record.name.ends_with(b"/") {
            record.kind = Kind::Directory;
        }
        match record.kind {
            Kind::Regular if record.typeflag == b'S' => {
                self.start_old_sparse(record, &header, at, out)
            }
            Kind::Regular => self.regular(record, at, out),
            _ => self.emit(record, 0, at, out),
        }
    }

    fn apply_pending(
        &mut self,
        record: &mut Record,
        at: UncompressedOffset,
    ) -> Result<(), TarError> {
        let pending = core::mem::take(&mut self.pending);
        record.header = pending.start.unwrap_or(at);
        record.data = UncompressedOffset(self.at);
        pax::apply(&pending.pax, record).map_err(|reason| TarError::Pax { at, reason })?;
        record.pax = pending.pax;
        // In the rare archive that has both forms, Go lets GNU's win.
        if !pending.name.is_empty() {
            record.name = pending.name;
        }
        if !pending.link.is_empty() {
            record.link = pending.link;
        }
        Ok(())
    }

    fn regular(
        &mut self,
        mut record: Record,
        at: UncompressedOffset,
        out: &mut Vec<Record>,
    ) -> Result<(), TarError> {
        let sparse = sparse::from_pax(&mut record, self.limits.sparse_segments_max);
        let stored = record.size;
        match sparse.map_err(|reason| TarError::Sparse { at, reason })? {
            PaxSparse::No => self.emit(record, stored, at, out),
            PaxSparse::Map { size, map } => {
                self.emit_sparse(Sparse { record, main_header: at, size, map, stored }, out)
            }
            PaxSparse::InData { size } => {
                let map = Map::new();
                let sparse = Sparse { record, main_header: at, size, map, stored };
                self.state = State::TextSparse(Box::new(sparse), TextMap::default());
                Ok(())
            }
        }
    }

    fn start_old_sparse(
        &mut self,
        record: Record,
        header: &Header<'_>,
        at: UncompressedOffset,
        out: &mut Vec<Record>,
    ) -> Result<(), TarError> {
        let (entries, more, size) = header.old_sparse()?;
        let stored = record.size;
        let mut sparse = Sparse { record, main_header: at, size, map: Map::new(), stored };
        sparse::add_old(&mut sparse.map, entries, self.limits.sparse_segments_max)
            .map_err(|reason| TarError::Sparse { at, reason })?;
        if more {
            self.state = State::OldSparse(Box::new(sparse));
            return Ok(());
        }
        self.emit_sparse(sparse, out)
    }

    fn old_sparse(
        &mut self,
        mut sparse: Box<Sparse>,
        block: &Block,
        out: &mut Vec<Record>,
    ) -> Result<(), TarError> {
        let at = sparse.main_header;
        sparse.record.data = UncompressedOffset(self.at);
        let before = sparse.map.len();
        sparse::add_old(&mut sparse.map, &block[..504], self.limits.sparse_segments_max)
            .map_err(|reason| TarError::Sparse { at, reason })?;
        if block[504] == 0 {
            return self.emit_sparse(*sparse, out);
        }
        if sparse.map.len() == before {
            return Err(TarError::Sparse { at, reason: "a continuation of it is empty" });
        }
        self.state = State::OldSparse(sparse);
        Ok(())
    }

    fn text_sparse(
        &mut self,
        mut sparse: Box<Sparse>,
        mut text: TextMap,
        block: &Block,
        out: &mut Vec<Record>,
    ) -> Result<(), TarError> {
        let at = sparse.main_header;
        let failed = |reason| TarError::Sparse { at, reason };
        let left = sparse.stored.checked_sub(BLOCK_LEN as u64);
        sparse.stored = left.ok_or(failed("it is longer than the stored data"))?;
        match text.feed(block, self.limits.sparse_segments_max).map_err(failed)? {
            Some(map) => {
                sparse.map = map;
                self.emit_sparse(*sparse, out)
            }
            None => {
                self.state = State::TextSparse(sparse, text);
                Ok(())
            }
        }
    }

    fn emit_sparse(&mut self, sparse: Sparse, out: &mut Vec<Record>) -> Result<(), TarError> {
        let Sparse { mut record, main_header: at, size, map, stored } = sparse;
        let start = UncompressedOffset(self.at);
        let segments = sparse::place(map, size, start, stored)
            .map_err(|reason| TarError::Sparse { at, reason })?;
        record.sparse = Some((size, segments));
        self.emit(record, stored, at, out)
    }

    /// Hand over a record whose remaining `stored` bytes follow.
    fn emit(
        &mut self,
        record: Record,
        stored: u64,
        at: UncompressedOffset,
        out: &mut Vec<Record>,
    ) -> Result<(), TarError> {
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            let max = self.limits.entries_max;
            return Err(TarError::Limit { at, what: "a number", max });
        }
        self.metadata_bytes += metadata_len(&record);
        if self.metadata_bytes > self.limits.metadata_bytes_max {
            let max = self.limits.metadata_bytes_max;
            return Err(TarError::Limit { at, what: "bytes of names and attributes so far", max });
        }
        self.skip(stored, at)?;
        out.push(record);
        Ok(())
    }

    fn skip(&mut self, data: u64, at: UncompressedOffset) -> Result<(), TarError> {
        let pad = padding(data);
        let end = self.at.checked_add(data).and_then(|end| end.checked_add(pad));
        if end.is_none_or(|end| end > i64::MAX as u64) {
            return Err(TarError::Field { at, field: "size" });
        }
        self.state = State::after_data(data, pad);
        Ok(())
    }

    fn extension(
        &mut self,
        extension: Extension,
        header: &Header<'_>,
        at: UncompressedOffset,
    ) -> Result<(), TarError> {
        let left = header.size()?;
        let max = self.limits.extension_bytes_max;
        if left > max {
            return Err(TarError::Limit { at, what: "an extension header", max });
        }
        self.pending.start.get_or_insert(at);
        if left == 0 {
            return self.extend(extension, &[]);
        }
        self.state = State::Payload { extension, left, pad: padding(left), buffer: Vec::new() };
        Ok(())
    }

    /// Take payload bytes; whole payloads are not copied.
    fn payload<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], TarError> {
        let State::Payload { extension, left, pad, buffer } = &mut self.state else {
            return Ok(bytes);
        };
        let (extension, pad) = (*extension, *pad);
        let len = take(left, bytes.len());
        let (now, _) = bytes.split_at_checked(len).unwrap_or_default();
        if *left > 0 {
            buffer.extend_from_slice(now);
            return Ok(self.advance(bytes, len));
        }
        let before = core::mem::take(buffer);
        let rest = self.advance(bytes, len);
        if before.is_empty() {
            self.extend(extension, now)?;
        } else {
            self.extend(extension, &[before.as_slice(), now].concat())?;
        }
        self.state = State::after_data(0, pad);
        Ok(rest)
    }

    fn extend(&mut self, extension: Extension, payload: &[u8]) -> Result<(), TarError> {
        let at = UncompressedOffset(self.at);
        match extension {
            Extension::Pax => {
                self.pending.pax =
                    pax::parse(payload).map_err(|reason| TarError::Pax { at, reason })?;
            }
            Extension::LongName => self.pending.name = until_nul(payload).to_vec(),
            Extension::LongLink => self.pending.link = until_nul(payload).to_vec(),
        }
        Ok(())
    }
}

impl State {
    fn after_data(data: u64, pad: u64) -> Self {
        if data == 0 && pad == 0 { Self::Header } else { Self::Skip { data, pad } }
    }
}

/// Take up to `available` from `left`.
fn take(left: &mut u64, available: usize) -> usize {
    let len = usize::try_from(*left).map_or(available, |left| left.min(available));
    *left -= len as u64;
    len
}

fn padding(len: u64) -> u64 {
    len.wrapping_neg() % BLOCK_LEN as u64
}

fn is_zero(block: &Block) -> bool {
    block[0] == 0 && block.iter().all(|&byte| byte == 0)
}

fn metadata_len(record: &Record) -> u64 {
    let names = record.name.len() + record.link.len() + record.uname.len() + record.gname.len();
    let pairs = record.pax.iter().map(|(key, value)| key.len() + value.len() + 48);
    let segments = record.sparse.as_ref().map_or(0, |(_, segments)| segments.len() * 24);
    (names + pairs.sum::<usize>() + segments) as u64
}
