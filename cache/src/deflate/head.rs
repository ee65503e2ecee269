//! The header of a gzip member (RFC 1952), byte by byte.

use super::BadStream;
use crate::sys::crc32_append;

const HAS_CRC: u8 = 2;
const HAS_EXTRA: u8 = 4;
const HAS_NAME: u8 = 8;
const HAS_COMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;

/// Where in a header the next byte stands.
#[derive(Clone, Copy)]
enum Part {
    /// The ten bytes that each has.
    Fixed(u8),
    ExtraLen(u8),
    Extra(u16),
    Name,
    Comment,
    Crc(u8),
}

pub(super) struct Head {
    part: Part,
    flags: u8,
    /// The byte before.
    before: u8,
    extra_len: u16,
    /// CRC-32 of the bytes so far.
    crc: u32,
    found_crc: u16,
}

impl Head {
    pub(super) fn new() -> Self {
        Self { part: Part::Fixed(0), flags: 0, before: 0, extra_len: 0, crc: 0, found_crc: 0 }
    }

    /// Take one byte; `true` if it was the header's last.
    pub(super) fn take(&mut self, byte: u8) -> Result<bool, BadStream> {
        let next = match self.part {
            Part::Fixed(at) => self.fixed(at, byte)?,
            Part::ExtraLen(at) => {
                self.extra_len |= u16::from(byte) << (8 * at);
                match (at, self.extra_len) {
                    (0, _) => Some(Part::ExtraLen(1)),
                    (_, 0) => self.behind_extra(),
                    (_, len) => Some(Part::Extra(len)),
                }
            }
            Part::Extra(1) => self.behind_extra(),
            Part::Extra(left) => Some(Part::Extra(left - 1)),
            Part::Name if byte == 0 => self.behind_name(),
            Part::Comment if byte == 0 => self.behind_comment(),
            text @ (Part::Name | Part::Comment) => Some(text),
            Part::Crc(at) => {
                self.found_crc |= u16::from(byte) << (8 * at);
                if at == 0 {
                    self.part = Part::Crc(1);
                    return Ok(false);
                }
                if self.found_crc != self.crc as u16 {
                    return Err(BadStream("header crc mismatch"));
                }
                return Ok(true);
            }
        };
        if self.flags & HAS_CRC != 0 || matches!(self.part, Part::Fixed(_)) {
            self.crc = crc32_append(self.crc, &[byte]);
        }
        let Some(next) = next else { return Ok(true) };
        self.part = next;
        Ok(false)
    }

    fn fixed(&mut self, at: u8, byte: u8) -> Result<Option<Part>, BadStream> {
        // Two bytes at a time, so that a header cut short is judged as zlib judges it.
        let pair = [std::mem::replace(&mut self.before, byte), byte];
        match (at, pair) {
            (1, pair) if pair != [0x1f, 0x8b] => return Err(BadStream("incorrect header check")),
            (3, [method, _]) if method != 8 => return Err(BadStream("unknown compression method")),
            (3, [_, flags]) if flags & RESERVED != 0 => {
                return Err(BadStream("unknown header flags set"));
            }
            (3, [_, flags]) => self.flags = flags,
            _ => {}
        }
        Ok(match at {
            9 if self.flags & HAS_EXTRA != 0 => Some(Part::ExtraLen(0)),
            9 => self.behind_extra(),
            _ => Some(Part::Fixed(at + 1)),
        })
    }

    fn behind_extra(&self) -> Option<Part> {
        if self.flags & HAS_NAME != 0 { Some(Part::Name) } else { self.behind_name() }
    }

    fn behind_name(&self) -> Option<Part> {
        if self.flags & HAS_COMMENT != 0 { Some(Part::Comment) } else { self.behind_comment() }
    }

    fn behind_comment(&self) -> Option<Part> {
        (self.flags & HAS_CRC != 0).then_some(Part::Crc(0))
    }
}
