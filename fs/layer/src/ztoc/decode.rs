//! From bytes to a valid zTOC.

use alloc::vec::Vec;
use core::ops::Range;

use super::flatbuffer::{Buffer, Offsets, OutOfBounds, Table};
use super::{COPIES_MAX, Compression, Ztoc, ZtocError, time};
use crate::tar::{self, BLOCK_LEN, Pax};
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
        let Some(metadata) = self.metadata else { return Ok(Vec::new()) };
        let mut budget = Budget::new(self.copied_bytes_max);
        budget.spend(metadata.count().saturating_mul(size_of::<Record>()))?;
        let mut records = Vec::with_capacity(metadata.count());
        for (index, table) in metadata.tables().enumerate() {
            records.push(record(table?, index, &mut budget)?);
        }
        derive_headers(&mut records, self.uncompressed_size)?;
        Ok(records)
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

    fn copy(&mut self, bytes: &[u8]) -> Result<Vec<u8>, ZtocError> {
        self.spend(bytes.len())?;
        Ok(bytes.to_vec())
    }
}

fn record(table: Table<'_>, index: usize, budget: &mut Budget) -> Result<Record, ZtocError> {
    let invalid = |field| ZtocError::Entry { index, field };
    let (kind, typeflag) = kind(table.string(1)?).ok_or(invalid("type"))?;
    let offset = |id, field| u64::try_from(table.i64(id)?).map_err(|_| invalid(field));
    let pax = pax(table.offsets(13)?, budget)?;
    let mtime = match table.string(10)? {
        b"" => pax_time(&pax).unwrap_or(TIME_WITHOUT_TEXT),
        text => time::parse(text).ok_or(invalid("modification time"))?,
    };
    Ok(Record {
        name: budget.copy(table.string(0)?)?,
        kind,
        typeflag,
        link: budget.copy(table.string(4)?)?,
        mode: table.i64(5)?,
        uid: table.u32(6)?.into(),
        gid: table.u32(7)?.into(),
        uname: budget.copy(table.string(8)?)?,
        gname: budget.copy(table.string(9)?)?,
        mtime,
        devmajor: table.i64(11)?,
        devminor: table.i64(12)?,
        pax,
        header: UncompressedOffset(0),
        data: UncompressedOffset(offset(2, "offset")?),
        size: offset(3, "size")?,
        sparse: None,
    })
}

/// Only a time that has no text: any other would have been written as one.
fn pax_time(pax: &Pax) -> Option<Time> {
    let (_, value) = pax.iter().find(|(key, _)| key == b"mtime")?;
    tar::pax_time(value).filter(|&mtime| time::format(mtime).is_empty())
}

fn pax(xattrs: Offsets<'_>, budget: &mut Budget) -> Result<Pax, ZtocError> {
    budget.spend(xattrs.count().saturating_mul(size_of::<(Vec<u8>, Vec<u8>)>()))?;
    let mut pax = Vec::with_capacity(xattrs.count());
    for xattr in xattrs.tables() {
        let xattr = xattr?;
        pax.push((budget.copy(xattr.string(0)?)?, budget.copy(xattr.string(1)?)?));
    }
    Ok(pax)
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
    let mut header = 0;
    for index in order {
        let Some(record) = records.get_mut(index) else { continue };
        let invalid = ZtocError::InvalidToc { index, data: record.data.0 };
        record.header = UncompressedOffset(header);
        let Range { start, end } = extent(record).ok_or(invalid.clone())?;
        if start < header.saturating_add(BLOCK_LEN as u64) {
            return Err(invalid);
        }
        if record.kind == Kind::Regular && end > archive_size {
            return Err(invalid);
        }
        header = end.checked_next_multiple_of(BLOCK_LEN as u64).ok_or(invalid)?;
    }
    Ok(())
}

/// What an entry takes of the tar behind its headers. Peers count the size of any kind of entry.
pub(super) fn extent(record: &Record) -> Option<Range<u64>> {
    Some(record.data.0..record.data.0.checked_add(record.size)?)
}
