//! A layer's spans beside its zTOC, so that the next start need not read that.
//!
//! A zTOC holds a window of 32 KiB a span and all entries of the tar; to serve a layer, 128 bytes a
//! span are enough. All numbers little-endian.
//!
//! Header, 64 bytes:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `spantabl` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | count of spans |
//! | 16 | 8 | bytes of the blob |
//! | 24 | 32 | fingerprint: SHA-256 of the layer digest and the zTOC digest, as text |
//! | 56 | 8 | zero |
//!
//! Then 128 bytes a span:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 16 | compressed bytes: start, end |
//! | 16 | 16 | uncompressed bytes: start, end |
//! | 32 | 8 | where its window stands in the zTOC |
//! | 40 | 4 | CRC-32 of that window, 0 where there is none |
//! | 44 | 1 | restart: 0 stored, 1 DEFLATE, 2 zstd frame |
//! | 45 | 1 | bits of a DEFLATE restart |
//! | 46 | 2 | zero |
//! | 48 | 1 | digest of its compressed bytes: 0 SHA-256, 1 SHA-512 |
//! | 49 | 15 | zero |
//! | 64 | 64 | the digest, behind it zeros |
//!
//! At the end, 32 bytes: SHA-256 of all before.

use spanfs_layer::{
    Algorithm, CompressedOffset, Digest, Restart, Span, SpanTable, UncompressedOffset,
};

use crate::journal::SPAN_COUNT_MAX;

const MAGIC: [u8; 8] = *b"spantabl";
/// Changing it makes the next start of every layer read its zTOC once.
const VERSION: u32 = 1;
const HEADER_LEN: usize = 64;
const SPAN_LEN: usize = 128;
const SUM_LEN: usize = 32;

/// Longest file that is read.
pub(crate) const LEN_MAX: u64 = (HEADER_LEN + SPAN_COUNT_MAX * SPAN_LEN + SUM_LEN) as u64;

/// The file for a layer as one zTOC cuts it; `sums` are those of the spans' windows.
pub(crate) fn encode(layer: &Digest, ztoc: &Digest, table: &SpanTable, sums: &[u32]) -> Vec<u8> {
    let count = table.spans().len();
    let mut bytes = Vec::with_capacity(HEADER_LEN + count * SPAN_LEN + SUM_LEN);
    bytes.extend(header(layer, ztoc, count, table.compressed_len()));
    for (span, sum) in table.spans().iter().zip(sums) {
        let (kind, bits, window_at) = match span.restart {
            Restart::Stored => (0, 0, 0),
            Restart::Deflate { bits, window_at } => (1, bits, window_at),
            Restart::ZstdFrame => (2, 0, 0),
        };
        let begin = bytes.len();
        for number in [
            span.compressed.start.0,
            span.compressed.end.0,
            span.uncompressed.start.0,
            span.uncompressed.end.0,
            window_at,
        ] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(sum.to_le_bytes());
        bytes.extend([kind, bits, 0, 0]);
        bytes.push(u8::from(span.digest.algorithm() == Algorithm::Sha512));
        bytes.extend([0; 15]);
        bytes.extend(span.digest.as_bytes());
        bytes.resize(begin + SPAN_LEN, 0);
    }
    let sum = Digest::of(&bytes);
    bytes.extend(sum.as_bytes());
    bytes
}

/// Spans and the sums of their windows, or `None` if this is not the file of that layer and zTOC,
/// whole and unchanged.
pub(crate) fn decode(
    bytes: &[u8],
    layer: &Digest,
    ztoc: &Digest,
) -> Option<(SpanTable, Box<[u32]>)> {
    let (body, sum) = bytes.split_last_chunk::<SUM_LEN>()?;
    if Digest::of(body).as_bytes() != sum {
        return None;
    }
    let (head, body) = body.split_first_chunk::<HEADER_LEN>()?;
    let (spans, rest) = body.as_chunks::<SPAN_LEN>();
    let compressed_len = u64_at(head, 16)?;
    if !rest.is_empty() || *head != header(layer, ztoc, spans.len(), compressed_len) {
        return None;
    }
    let sums = spans.iter().map(|it| Some(u32::from_le_bytes(*it.get(40..)?.first_chunk()?)));
    let sums = sums.collect::<Option<_>>()?;
    let spans = spans.iter().map(span).collect::<Option<Vec<_>>>()?;
    Some((SpanTable::from_spans(spans, compressed_len).ok()?, sums))
}

fn span(bytes: &[u8; SPAN_LEN]) -> Option<Span> {
    let restart = match *bytes.get(44)? {
        0 => Restart::Stored,
        1 => Restart::Deflate { bits: *bytes.get(45)?, window_at: u64_at(bytes, 32)? },
        2 => Restart::ZstdFrame,
        _ => return None,
    };
    let digest = bytes.get(64..)?;
    let digest = match *bytes.get(48)? {
        0 => Digest::from_sha256(*digest.first_chunk()?),
        1 => Digest::from_sha512(*digest.first_chunk()?),
        _ => return None,
    };
    Some(Span {
        compressed: CompressedOffset(u64_at(bytes, 0)?)..CompressedOffset(u64_at(bytes, 8)?),
        uncompressed: UncompressedOffset(u64_at(bytes, 16)?)
            ..UncompressedOffset(u64_at(bytes, 24)?),
        digest,
        restart,
    })
}

fn header(layer: &Digest, ztoc: &Digest, count: usize, compressed_len: u64) -> [u8; HEADER_LEN] {
    let fingerprint = Digest::of(format!("{layer} {ztoc}").as_bytes());
    let mut bytes = [0; HEADER_LEN];
    let fields = MAGIC
        .into_iter()
        .chain(VERSION.to_le_bytes())
        .chain((count as u32).to_le_bytes())
        .chain(compressed_len.to_le_bytes())
        .chain(fingerprint.as_bytes().iter().copied());
    bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    bytes
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(cuts: &[(u64, u64, u8)]) -> SpanTable {
        let (mut input, mut output) = (10, 0);
        let spans = cuts.iter().enumerate().map(|(number, &(compressed, uncompressed, bits))| {
            let (start, from) = (input, output);
            input += compressed;
            output += uncompressed;
            let restart = match number % 3 {
                0 => Restart::Deflate { bits, window_at: number as u64 * 32_768 },
                1 => Restart::Stored,
                _ => Restart::ZstdFrame,
            };
            let digest = match number % 2 {
                0 => Digest::of(&[bits]),
                _ => Digest::from_sha512([bits; 64]),
            };
            Span {
                compressed: CompressedOffset(start)..CompressedOffset(input),
                uncompressed: UncompressedOffset(from)..UncompressedOffset(output),
                digest,
                restart,
            }
        });
        let spans = spans.collect();
        SpanTable::from_spans(spans, input).unwrap()
    }

    proptest! {
        #[test]
        fn survives_its_bytes_and_no_change_of_them(
            cuts in proptest::collection::vec((1u64..1 << 30, 1u64..1 << 30, 0u8..8), 1..20),
            at: prop::sample::Index,
            bit in 0u8..8,
        ) {
            let (layer, ztoc) = (Digest::of(b"layer"), Digest::of(b"ztoc"));
            let table = table(&cuts);
            let sums: Vec<u32> = (0..cuts.len() as u32).collect();
            let mut bytes = encode(&layer, &ztoc, &table, &sums);
            prop_assert_eq!(bytes.len(), HEADER_LEN + cuts.len() * SPAN_LEN + SUM_LEN);
            let found = decode(&bytes, &layer, &ztoc).unwrap();
            prop_assert_eq!((&found.0, &*found.1), (&table, sums.as_slice()));
            prop_assert!(decode(&bytes, &ztoc, &layer).is_none(), "another layer's");
            prop_assert!(decode(&bytes[..at.index(bytes.len())], &layer, &ztoc).is_none());
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes, &layer, &ztoc).is_none());
        }
    }
}
