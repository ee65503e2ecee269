//! Which chunks of a download are in its file: an append-only journal beside it.
//!
//! Header, 128 bytes, little endian:
//!
//! | Offset | Size | Meaning |
//! |---|---|---|
//! | 0 | 8 | `spanfsdl` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | length of the digest's text |
//! | 16 | 8 | length of the blob |
//! | 24 | 8 | length of a chunk |
//! | 32 | 88 | first bytes of the digest's text, rest zero |
//! | 120 | 8 | checksum of the bytes before |
//!
//! Then records of 24 bytes: chunk index, checksum of the chunk's data, checksum of the record's first
//! 16 bytes mixed with the header's. The first record that does not check out ends the journal. Neither
//! data nor journal is brought to the disk at once: a kill takes nothing of them, and what a power cut
//! takes is fetched again, as the chunk's sum tells.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt;

use spanfs_layer::Digest;

const MAGIC: &[u8; 8] = b"spanfsdl";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 128;
const RECORD_LEN: usize = 24;
const DIGEST_LEN_MAX: usize = 88;

/// What a journal is about; a journal about something else is of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) chunk_bytes: u64,
}

impl Subject {
    pub(super) fn chunks_count(&self) -> u64 {
        self.size.div_ceil(self.chunk_bytes)
    }

    fn header(&self) -> [u8; HEADER_LEN] {
        let digest = self.digest.to_string();
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(digest.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(&self.chunk_bytes.to_le_bytes());
        bytes.extend(digest.bytes().chain(std::iter::repeat(0)).take(DIGEST_LEN_MAX));
        // Covers all of the digest, also where its text is longer than its place.
        let sum = checksum(digest.as_bytes(), checksum(&bytes, 0));
        bytes.extend_from_slice(&sum.to_le_bytes());
        let mut header = [0; HEADER_LEN];
        header.copy_from_slice(&bytes);
        header
    }
}

/// An open journal, at its end.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    seed: u64,
    len: u64,
}

impl Journal {
    /// Read what a journal says of the subject, or begin it anew. Returns index and checksum of the
    /// chunks that are in the file.
    pub(super) fn open(file: File, subject: &Subject) -> io::Result<(Self, Vec<(u64, u64)>)> {
        let header = subject.header();
        let seed = checksum(&header, 0);
        let bytes_max = HEADER_LEN as u64 + subject.chunks_count() * RECORD_LEN as u64 * 2;
        let mut bytes = Vec::new();
        (&file).take(bytes_max).read_to_end(&mut bytes)?;
        if bytes.get(..HEADER_LEN) != Some(&header) {
            file.set_len(0)?;
            file.write_all_at(&header, 0)?;
            return Ok((Self { file, seed, len: HEADER_LEN as u64 }, Vec::new()));
        }
        let mut chunks = Vec::new();
        let records = bytes.get(HEADER_LEN..).unwrap_or_default().chunks_exact(RECORD_LEN);
        for record in records {
            match parse(record, seed).filter(|&(index, _)| index < subject.chunks_count()) {
                Some(chunk) => chunks.push(chunk),
                None => break,
            }
        }
        let len = (HEADER_LEN + chunks.len() * RECORD_LEN) as u64;
        // A torn tail must not come to stand behind a new record.
        file.set_len(len)?;
        Ok((Self { file, seed, len }, chunks))
    }

    /// Record a chunk that is in the file.
    pub(super) fn append(&mut self, index: u64, sum: u64) -> io::Result<()> {
        let mut record = [index.to_le_bytes(), sum.to_le_bytes()].concat();
        let own = checksum(&record, self.seed);
        record.extend_from_slice(&own.to_le_bytes());
        self.file.write_all_at(&record, self.len)?;
        self.len += RECORD_LEN as u64;
        Ok(())
    }
}

fn parse(record: &[u8], seed: u64) -> Option<(u64, u64)> {
    let (body, own) = record.split_at_checked(16)?;
    let own = u64::from_le_bytes(own.try_into().ok()?);
    if checksum(body, seed) != own {
        return None;
    }
    let (index, sum) = body.split_at_checked(8)?;
    Some((u64::from_le_bytes(index.try_into().ok()?), u64::from_le_bytes(sum.try_into().ok()?)))
}

/// Finds torn and stale pages, not forgery: the blob's digest is checked by whoever reads it. Eight
/// bytes at a step, so that it costs little beside a copy.
pub(super) fn checksum(bytes: &[u8], seed: u64) -> u64 {
    const PRIME: u64 = 0x9e37_79b1_85eb_ca87;
    let mix = |state: u64, word: u64| {
        let product = u128::from(state ^ word ^ PRIME) * u128::from(PRIME | 1);
        (product as u64) ^ ((product >> 64) as u64).rotate_left(17)
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let mut state = mix(seed, bytes.len() as u64);
    for word in words {
        state = mix(state, u64::from_le_bytes(*word)).wrapping_add(seed);
    }
    let mut last = [0; 8];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    mix(state, u64::from_le_bytes(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        let digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        Subject { digest, size: 1000, chunk_bytes: 100 }
    }

    fn open(path: &std::path::Path, subject: &Subject) -> (Journal, Vec<(u64, u64)>) {
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).open(path).unwrap();
        Journal::open(file, subject).unwrap()
    }

    #[test]
    fn survives_and_drops_what_is_torn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (mut journal, chunks) = open(&path, &subject());
        assert!(chunks.is_empty());
        journal.append(3, 30).unwrap();
        journal.append(1, 10).unwrap();
        journal.append(9, 90).unwrap();
        drop(journal);
        let bytes = std::fs::read(&path).unwrap();
        for cut in 0..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let (mut journal, chunks) = open(&path, &subject());
            let whole = cut.saturating_sub(HEADER_LEN) / RECORD_LEN;
            assert_eq!(chunks, [(3, 30), (1, 10), (9, 90)][..whole], "cut at {cut}");
            journal.append(5, 50).unwrap();
            drop(journal);
            assert_eq!(open(&path, &subject()).1.last(), Some(&(5, 50)));
        }
        for flipped in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[flipped] ^= 4;
            std::fs::write(&path, &damaged).unwrap();
            let whole = flipped.checked_sub(HEADER_LEN).map_or(0, |at| at / RECORD_LEN);
            assert_eq!(open(&path, &subject()).1.len(), whole, "flipped at {flipped}");
        }
    }

    #[test]
    fn another_subject_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        open(&path, &subject()).0.append(3, 30).unwrap();
        let other = Subject { size: 1001, ..subject() };
        assert!(open(&path, &other).1.is_empty());
    }

    #[test]
    fn checksum_sees_every_bit_and_the_length() {
        let bytes: Vec<u8> = (0..37).collect();
        let right = checksum(&bytes, 1);
        assert_ne!(right, checksum(&bytes, 2));
        assert_ne!(right, checksum(&bytes[..36], 1));
        for bit in 0..bytes.len() * 8 {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(right, checksum(&other, 1), "bit {bit}");
        }
    }
}
