//! One header block, read field by field.
//!
//! | offset | size | field | | offset | size | field |
//! |---|---|---|---|---|---|---|
//! | 0 | 100 | name | | 257 | 6 + 2 | magic, version |
//! | 100 | 8 | mode | | 265 | 32 | user name |
//! | 108 | 8 | uid | | 297 | 32 | group name |
//! | 116 | 8 | gid | | 329 | 8 | device major |
//! | 124 | 12 | size | | 337 | 8 | device minor |
//! | 136 | 12 | mtime | | 345 | 155 | prefix (131 in star; GNU: times and sparse map) |
//! | 148 | 8 | checksum | | 508 | 4 | star's trailer |
//! | 156 | 1 | type flag | | 157 | 100 | link name |

use alloc::vec::Vec;

use super::{BLOCK_LEN, TarError};
use crate::{Record, Time, UncompressedOffset};

pub(super) type Block = [u8; BLOCK_LEN];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// Fields of a header block that has the right checksum.
pub(super) struct Header<'a> {
    block: &'a Block,
    at: UncompressedOffset,
}

impl<'a> Header<'a> {
    /// Check the block that stands at `at`.
    pub(super) fn new(block: &'a Block, at: UncompressedOffset) -> Result<Self, TarError> {
        let claimed = octal(&block[148..156]);
        let blank = i64::from(b' ') * 8;
        let sum_field = block[148..156].iter().map(|&byte| i64::from(byte)).sum::<i64>();
        let unsigned = byte_sum(block) - sum_field + blank;
        if claimed == Some(unsigned) {
            return Ok(Self { block, at });
        }
        // Old writers added the bytes up as signed ones.
        let signed = |bytes: &[u8]| bytes.iter().map(|&byte| i64::from(byte as i8)).sum::<i64>();
        if claimed == Some(signed(block) - signed(&block[148..156]) + blank) {
            return Ok(Self { block, at });
        }
        Err(TarError::Checksum { at, expected: unsigned, found: claimed.unwrap_or(-1) })
    }

    pub(super) fn typeflag(&self) -> u8 {
        self.block[156]
    }

    /// Size field; never negative.
    pub(super) fn size(&self) -> Result<u64, TarError> {
        let size = self.number(&self.block[124..136], "size")?;
        u64::try_from(size).map_err(|_| self.invalid("size"))
    }

    /// Old GNU sparse: the first four map entries, whether more blocks follow, the logical size.
    pub(super) fn old_sparse(&self) -> Result<(&'a [u8], bool, u64), TarError> {
        if self.format() != Format::Gnu {
            return Err(self.invalid("magic for a sparse file"));
        }
        let size = self.number(&self.block[483..495], "real size")?;
        let size = u64::try_from(size).map_err(|_| self.invalid("real size"))?;
        Ok((&self.block[386..482], self.block[482] != 0, size))
    }

    /// Everything that the block says of its entry; kind, offsets and extensions are the caller's.
    pub(super) fn fill(&self, record: &mut Record) -> Result<(), TarError> {
        let block = self.block;
        record.typeflag = self.typeflag();
        record.name = until_nul(&block[0..100]).to_vec();
        record.link = until_nul(&block[157..257]).to_vec();
        record.mode = self.number(&block[100..108], "mode")?;
        record.uid = self.number(&block[108..116], "uid")?;
        record.gid = self.number(&block[116..124], "gid")?;
        record.size = self.size()?;
        record.mtime = Time { seconds: self.number(&block[136..148], "mtime")?, nanoseconds: 0 };
        let format = self.format();
        if format == Format::V7 {
            return Ok(());
        }
        record.uname = until_nul(&block[265..297]).to_vec();
        record.gname = until_nul(&block[297..329]).to_vec();
        record.devmajor = self.number(&block[329..337], "device major number")?;
        record.devminor = self.number(&block[337..345], "device minor number")?;
        let prefix = match format {
            Format::V7 => &[],
            Format::Ustar => until_nul(&block[345..500]),
            Format::Star => until_nul(&block[345..476]),
            Format::Gnu => self.gnu_prefix(),
        };
        if !prefix.is_empty() {
            record.name = [prefix, b"/", record.name.as_slice()].concat();
        }
        Ok(())
    }

    /// GNU headers hold times where ustar has the prefix. Go before 1.8 wrote prefixes there all
    /// the same; they show by not being numbers.
    fn gnu_prefix(&self) -> &'a [u8] {
        let is_time = |field: &[u8]| field.first() == Some(&0) || number(field).is_some();
        if is_time(&self.block[345..357]) && is_time(&self.block[357..369]) {
            return &[];
        }
        let prefix = until_nul(&self.block[345..500]);
        if prefix.is_ascii() { prefix } else { &[] }
    }

    fn format(&self) -> Format {
        match (&self.block[257..265], &self.block[508..512]) {
            ([b'u', b's', b't', b'a', b'r', 0, ..], b"tar\0") => Format::Star,
            ([b'u', b's', b't', b'a', b'r', 0, ..], _) => Format::Ustar,
            (b"ustar  \0", _) => Format::Gnu,
            _ => Format::V7,
        }
    }

    fn number(&self, field: &[u8], name: &'static str) -> Result<i64, TarError> {
        number(field).ok_or_else(|| self.invalid(name))
    }

    fn invalid(&self, field: &'static str) -> TarError {
        TarError::Field { at: self.at, field }
    }
}

/// Sum of a block's bytes, the largest cost of reading a header: eight bytes at a time, in lanes of
/// 16 bits that take 64 times two bytes.
fn byte_sum(block: &Block) -> i64 {
    const LANES: u64 = 0x00ff_00ff_00ff_00ff;
    let (words, _) = block.as_chunks::<8>();
    let lanes = words.iter().fold(0, |lanes, &word| {
        let word = u64::from_le_bytes(word);
        lanes + (word & LANES) + (word >> 8 & LANES)
    });
    [0, 16, 32, 48].iter().map(|lane| (lanes >> lane & 0xffff) as i64).sum()
}

/// Bytes before the first NUL.
pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Number in octal or, with the first bit set, big-endian two's complement ("base-256").
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    // Bit 6 is the sign; bit 7 only marks the form.
    let negative = first & 0x40 != 0;
    let top = if negative { first | 0x80 } else { first & 0x7f };
    let mut value = i64::from(top as i8);
    for &byte in rest {
        value = value.checked_mul(256)?.checked_add(i64::from(byte))?;
    }
    Some(value)
}

/// Octal digits between spaces and NULs; nothing at all is zero.
fn octal(field: &[u8]) -> Option<i64> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !is_blank(byte)) else { return Some(0) };
    let end = field.iter().rposition(|byte| !is_blank(byte))? + 1;
    until_nul(field.get(start..end)?).iter().try_fold(0_i64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// A record with nothing in it.
pub(crate) fn blank_record(kind: crate::Kind) -> Record {
    Record {
        name: Vec::new(),
        kind,
        typeflag: 0,
        link: Vec::new(),
        mode: 0,
        uid: 0,
        gid: 0,
        uname: Vec::new(),
        gname: Vec::new(),
        mtime: Time::default(),
        devmajor: 0,
        devminor: 0,
        pax: Vec::new(),
        header: UncompressedOffset(0),
        data: UncompressedOffset(0),
        size: 0,
        sparse: None,
    }
}
