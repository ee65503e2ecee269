//! From bytes to a valid zTOC.

use alloc::vec::Vec;
use core::ops::Range;

use super::flatbuffer::{Buffer, Offsets, OutOfBounds, Table};
use super::{COPIES_MAX, Compression, Ztoc, ZtocError, time};
use crate::tar::{self, BLOCK_LEN, Pax, blank_record};
use crate::{Digest, Kind, Record, Time, UncompressedOffset};

/// First second of the year 10000. The peer writes no text for times beyond the year 9999, so an
/// entry without text and without a PAX time decodes to this one, which encodes to no text again.
const TIME_WITHOUT_TEXT: Time = Time { seconds: 253_402_300_800, nanoseconds: 0 };

/// An encoded zTOC whose outer fields have been checked; records and windows stay where they are.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// See [`Ztoc::version`].
    pub version: &'a [u8],
    /// See [`Ztoc::build_tool`].
    pub build_tool: &'a [u8],
    /// See [`Ztoc::compressed_size`].
    pub compressed_size: u64,
    /// See [`Ztoc::uncompressed_size`].
    pub uncompressed_size: u64,
    /// See [`Ztoc::compression`].
    pub compression: Compression,
    /// See [`Ztoc::checkpoints`].
    pub checkpoints: &'a [u8],
    /// Where `checkpoints` begins in the encoded zTOC.
    pub checkpoints_at: usize,
    metadata: Option<Offsets<'a>>,
    digests: Option<Offsets<'a>>,
    copied_bytes_max: usize,
}

impl From<OutOfBounds> for ZtocError {
    fn from(OutOfBounds { at }: OutOfBounds) -> Self {
        Self::OutOfBounds { at }
    }
}

impl<'a> View<'a> {
    /// Check the outer fields.
    pub fn new(encoded: &'a [u8]) -> Result<Self, ZtocError> {
        let root = Buffer::root(encoded)?;
        let size = |id| {
            let size = root.i64(id)?;
            u64::try_from(size).map_err(|_| ZtocError::NegativeSize { size })
        };
        let mut view = Self {
            version: root.string(0)?,
            build_tool: root.string(1)?,
            compressed_size: size(2)?,
            uncompressed_size: size(3)?,
            compression: Compression::Gzip,
            checkpoints: &[],
            checkpoints_at: 0,
            metadata: root.table(4)?.map(|toc| toc.offsets(0)).transpose()?,
            digests: None,
            copied_bytes_max: encoded.len().saturating_mul(COPIES_MAX),
        };
        if let Some(info) = root.table(5)? {
            let code = info.i8(0, Compression::Gzip.code())?;
            view.compression =
                Compression::from_code(code).ok_or(ZtocError::UnknownCompression { code })?;
            let digests = info.offsets(2)?;
            let max_span_id = info.i32(1)?;
            if i64::from(max_span_id) + 1 != digests.count() as i64 {
                return Err(ZtocError::SpanCount { max_span_id, digests: digests.count() });
            }
            view.digests = Some(digests);
            (view.checkpoints, view.checkpoints_at) = info.bytes(3)?;
        }
        Ok(view)
    }

    /// Digest of each span's compressed bytes.
    pub fn span_digests(&self) -> Result<Vec<Digest>, ZtocError> {
        let Some(digests) = self.digests else { return Ok(Vec::new()) };
        let mut budget = Budget::new(self.copied_bytes_max);
        budget.spend(digests.count().saturating_mul(size_of::<Digest>()))?;
        let parse = |(span, text): (usize, Result<&[u8], OutOfBounds>)| {
            let text = core::str::from_utf8(text?).unwrap_or_default();
            text.parse().map_err(|source| ZtocError::Digest { span, source })
        };
        digests.strings().enumerate().map(parse).collect()
    }

    /// The tar's entries in archive order.
    pub fn records(&self) -> Result<Vec<Record>, ZtocError> {
        let (mut budget, mut times) = (self.record_budget()?, Times::default());
        let mut records = Vec::new();
        records.reserve_exact(self.record_count());
        for (index, table) in self.entries().enumerate() {
            let mut record = blank_record(Kind::Regular);
            read(table?, index, &mut budget, &mut times, &mut record)?;
            records.push(record);
        }
        derive_headers(&mut records, self.uncompressed_size)?;
        Ok(records)
    }

    /// How many entries there are, as it says.
    pub fn record_count(&self) -> usize {
        self.metadata.map_or(0, |entries| entries.count())
    }

    /// Lend the tar's entries to `look` one after the other, until it fails: those of
    /// [`Self::records`], without holding all of them. That the zTOC is wrong may show only behind some
    /// of them, and so may that headers are elsewhere, where entries are not in the order of their data.
    pub fn each_record<E>(
        &self,
        mut look: impl FnMut(&Record) -> Result<(), E>,
    ) -> Result<Result<(), E>, ZtocError> {
        let (mut budget, mut record) = (self.record_budget()?, blank_record(Kind::Regular));
        let (mut headers, mut is_rising) = (Headers::new(self.uncompressed_size), true);
        let mut times = Times::default();
        for (index, table) in self.entries().enumerate() {
            let before = record.data;
            read(table?, index, &mut budget, &mut times, &mut record)?;
            is_rising &= before <= record.data;
            if !is_rising {
                break;
            }
            record.header = headers.next(index, &record)?;
            if let Err(error) = look(&record) {
                return Ok(Err(error));
            }
        }
        if is_rising {
            return Ok(Ok(()));
        }
        // Headers are known only once all are: they go by the order of the data.
        let seen = headers.count;
        Ok(self.records()?.iter().skip(seen).try_for_each(look))
    }

    fn entries(&self) -> impl Iterator<Item = Result<Table<'a>, OutOfBounds>> + 'a {
        self.metadata.into_iter().flat_map(Offsets::tables)
    }

    fn record_budget(&self) -> Result<Budget, ZtocError> {
        let mut budget = Budget::new(self.copied_bytes_max);
        budget.spend(self.record_count().saturating_mul(size_of::<Record>()))?;
        Ok(budget)
    }
}

impl Ztoc {
    /// Decode and check everything but the restart points, which [`crate::SpanTable`] checks.
    pub fn decode(encoded: &[u8]) -> Result<Self, ZtocError> {
        let view = View::new(encoded)?;
        Ok(Self {
            version: view.version.to_vec(),
            build_tool: view.build_tool.to_vec(),
            compressed_size: view.compressed_size,
            uncompressed_size: view.uncompressed_size,
            records: view.records()?,
            compression: view.compression,
            span_digests: view.span_digests()?,
            checkpoints: view.checkpoints.to_vec(),
        })
    }
}

/// Memory that decoding may still take.
struct Budget {
    left: usize,
    max: usize,
}

impl Budget {
    fn new(max: usize) -> Self {
        Self { left: max, max }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), ZtocError> {
        self.left = self.left.checked_sub(bytes).ok_or(ZtocError::TooLarge { max: self.max })?;
        Ok(())
    }

    fn copy(&mut self, bytes: &[u8], to: &mut Vec<u8>) -> Result<(), ZtocError> {
        self.spend(bytes.len())?;
        to.clear();
        to.extend_from_slice(bytes);
        Ok(())
    }
}

/// The last time that was read: the next one is mostly the same.
#[derive(Default)]
struct Times<'a>(Option<(&'a [u8], Time)>);

impl<'a> Times<'a> {
    fn parse(&mut self, text: &'a [u8]) -> Option<Time> {
        if let Some((known, time)) = self.0
            && known == text
        {
            return Some(time);
        }
        let time = time::parse(text)?;
        self.0 = Some((text, time));
        Some(time)
    }
}

/// Everything of an entry but its header.
fn read<'a>(
    table: Table<'a>,
    index: usize,
    budget: &mut Budget,
    times: &mut Times<'a>,
    into: &mut Record,
) -> Result<(), ZtocError> {
    let invalid = |field| ZtocError::Entry { index, field };
    (into.kind, into.typeflag) = kind(table.string(1)?).ok_or(invalid("type"))?;
    let offset = |id, field| u64::try_from(table.i64(id)?).map_err(|_| invalid(field));
    pax(table.offsets(13)?, budget, &mut into.pax)?;
    into.mtime = match table.string(10)? {
        b"" => pax_time(&into.pax).unwrap_or(TIME_WITHOUT_TEXT),
        text => times.parse(text).ok_or(invalid("modification time"))?,
    };
    budget.copy(table.string(0)?, &mut into.name)?;
    budget.copy(table.string(4)?, &mut into.link)?;
    into.mode = table.i64(5)?;
    into.uid = table.u32(6)?.into();
    into.gid = table.u32(7)?.into();
    budget.copy(table.string(8)?, &mut into.uname)?;
    budget.copy(table.string(9)?, &mut into.gname)?;
    into.devmajor = table.i64(11)?;
    into.devminor = table.i64(12)?;
    into.data = UncompressedOffset(offset(2, "offset")?);
    into.size = offset(3, "size")?;
    Ok(())
}

/// Only a time that has no text: any other would have been written as one.
fn pax_time(pax: &Pax) -> Option<Time> {
    let (_, value) = pax.iter().find(|(key, _)| key == b"mtime")?;
    tar::pax_time(value).filter(|&mtime| time::format(mtime).is_empty())
}

fn pax(xattrs: Offsets<'_>, budget: &mut Budget, into: &mut Pax) -> Result<(), ZtocError> {
    budget.spend(xattrs.count().saturating_mul(size_of::<(Vec<u8>, Vec<u8>)>()))?;
    into.clear();
    into.reserve_exact(xattrs.count());
    for xattr in xattrs.tables() {
        let (xattr, mut key, mut value) = (xattr?, Vec::new(), Vec::new());
        budget.copy(xattr.string(0)?, &mut key)?;
        budget.copy(xattr.string(1)?, &mut value)?;
        into.push((key, value));
    }
    Ok(())
}

fn kind(name: &[u8]) -> Option<(Kind, u8)> {
    Some(match name {
        b"reg" => (Kind::Regular, b'0'),
        b"hardlink" => (Kind::Hardlink, b'1'),
        b"symlink" => (Kind::Symlink, b'2'),
        b"char" => (Kind::CharDevice, b'3'),
        b"block" => (Kind::BlockDevice, b'4'),
        b"dir" => (Kind::Directory, b'5'),
        b"fifo" => (Kind::Fifo, b'6'),
        _ => return None,
    })
}

/// Give each record its header: it begins where the entry before it ends.
fn derive_headers(records: &mut [Record], archive_size: u64) -> Result<(), ZtocError> {
    let mut order: Vec<usize> = (0..records.len()).collect();
    if !records.is_sorted_by_key(|record| record.data) {
        order.sort_by_key(|&index| records.get(index).map(|record| record.data));
    }
    let mut headers = Headers::new(archive_size);
    for index in order {
        let Some(record) = records.get_mut(index) else { continue };
        record.header = headers.next(index, record)?;
    }
    Ok(())
}

/// Where the headers of entries begin that are given in the order of their data.
struct Headers {
    at: u64,
    count: usize,
    archive_size: u64,
}

impl Headers {
    fn new(archive_size: u64) -> Self {
        Self { at: 0, count: 0, archive_size }
    }

    /// That of the next one.
    fn next(&mut self, index: usize, record: &Record) -> Result<UncompressedOffset, ZtocError> {
        let invalid = || ZtocError::InvalidToc { index, data: record.data.0 };
        let header = self.at;
        let Range { start, end } = extent(record).ok_or_else(invalid)?;
        if start < header.saturating_add(BLOCK_LEN as u64) {
            return Err(invalid());
        }
        if record.kind == Kind::Regular && end > self.archive_size {
            return Err(invalid());
        }
        self.at = end.checked_next_multiple_of(BLOCK_LEN as u64).ok_or_else(invalid)?;
        self.count += 1;
        Ok(UncompressedOffset(header))
    }
}

/// What an entry takes of the tar behind its headers. Peers count the size of any kind of entry.
pub(super) fn extent(record: &Record) -> Option<Range<u64>> {
    Some(record.data.0..record.data.0.checked_add(record.size)?)
}
