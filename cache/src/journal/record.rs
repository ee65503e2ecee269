//! The fixed-size pieces of a span journal; byte maps stand above [`super`].

use spanfs_layer::{Algorithm, Digest, Hasher};

use crate::layer_file::{STAMP_LEN, Stamp};

/// Bytes of a header.
pub(crate) const HEADER_LEN: usize = 64;
/// Bytes of a record.
pub(crate) const RECORD_LEN: usize = 32;

const MAGIC: [u8; 8] = *b"spanjrnl";
/// Changing it makes every cache refetch its incomplete layers.
const VERSION: u32 = 1;

/// What a journal belongs to. Equal headers mean the same spans at the same places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Spans of the layer.
    pub(crate) span_count: u32,
    /// Length of the layer file.
    pub(crate) file_len: u64,
    fingerprint: [u8; 32],
}

impl Header {
    /// Header for a layer as one zTOC cuts it.
    pub(crate) fn new(layer: &Digest, ztoc: &Digest, span_count: u32, file_len: u64) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(format!("{layer} {ztoc}").as_bytes());
        let mut fingerprint = [0; 32];
        for (to, from) in fingerprint.iter_mut().zip(hasher.finish().as_bytes()) {
            *to = *from;
        }
        Self { span_count, file_len, fingerprint }
    }

    /// See the byte map.
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut out = Writer(&mut bytes);
        out.put(&MAGIC);
        out.put(&VERSION.to_le_bytes());
        out.put(&self.span_count.to_le_bytes());
        out.put(&self.file_len.to_le_bytes());
        out.put(&self.fingerprint);
        let crc = crate::crc::crc32(bytes.first_chunk::<60>().map_or(&[], |it| it.as_slice()));
        with_tail(bytes, crc)
    }
}

/// One thing that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// A span's bytes were written to the layer file.
    Span {
        /// Its number.
        span: u32,
        /// CRC-32 of its uncompressed bytes.
        crc: u32,
    },
    /// The whole layer file has the diffID.
    Verified,
    /// The verified layer file is durable and looks like this.
    Sealed(Stamp),
    /// The zTOC kept beside was checked, is durable and looks like this.
    ZtocKept(Stamp),
    /// The layer index kept beside is ours, is durable and looks like this.
    IndexMade(Stamp),
}

impl Record {
    /// Bytes of the record at position `at` of the journal.
    pub(crate) fn encode(&self, at: u64) -> [u8; RECORD_LEN] {
        let none = Stamp([0; STAMP_LEN]);
        let (kind, span, crc, stamp) = match self {
            Self::Span { span, crc } => (1u32, *span, *crc, &none),
            Self::Verified => (2, 0, 0, &none),
            Self::Sealed(stamp) => (3, 0, 0, stamp),
            Self::ZtocKept(stamp) => (4, 0, 0, stamp),
            Self::IndexMade(stamp) => (5, 0, 0, stamp),
        };
        let mut bytes = [0; RECORD_LEN];
        let mut out = Writer(&mut bytes);
        out.put(&kind.to_le_bytes());
        out.put(&span.to_le_bytes());
        out.put(&crc.to_le_bytes());
        out.put(&stamp.0);
        let check = checksum(&bytes, at);
        with_tail(bytes, check)
    }

    /// The record, or `None` if it does not check.
    pub(crate) fn decode(bytes: &[u8; RECORD_LEN], at: u64, span_count: u32) -> Option<Self> {
        let word = |at: usize| {
            let word = bytes.get(at..)?.first_chunk::<4>()?;
            Some(u32::from_le_bytes(*word))
        };
        if word(28)? != checksum(bytes, at) {
            return None;
        }
        let stamp = Stamp(*bytes.get(12..)?.first_chunk::<STAMP_LEN>()?);
        match word(0)? {
            1 if word(4)? < span_count => Some(Self::Span { span: word(4)?, crc: word(8)? }),
            2 => Some(Self::Verified),
            3 => Some(Self::Sealed(stamp)),
            4 => Some(Self::ZtocKept(stamp)),
            5 => Some(Self::IndexMade(stamp)),
            _ => None,
        }
    }
}

/// The position is part of the sum, so that no record is believed anywhere but where it was written.
fn checksum(bytes: &[u8; RECORD_LEN], at: u64) -> u32 {
    let mut crc = crate::crc::Crc32::new();
    crc.update(&at.to_le_bytes());
    crc.update(bytes.first_chunk::<28>().map_or(&[], |it| it.as_slice()));
    crc.sum()
}

fn with_tail<const N: usize>(mut bytes: [u8; N], tail: u32) -> [u8; N] {
    if let Some(to) = bytes.last_chunk_mut::<4>() {
        *to = tail.to_le_bytes();
    }
    bytes
}

/// Fills an array from the front.
struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn put(&mut self, field: &[u8]) {
        let space = std::mem::take(&mut self.0);
        let (to, rest) = space.split_at_mut(field.len());
        to.copy_from_slice(field);
        self.0 = rest;
    }
}
