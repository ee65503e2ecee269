//! The span journal: which spans of a layer file are there, and what has been proved of the whole.
//!
//! Append-only. A record is written only after what it speaks of was written. Nothing in it is
//! believed unchecked: a span needs its checksum over the layer file's bytes, a whole its stamp.
//! All numbers little-endian.
//!
//! Header, 64 bytes:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `spanjrnl` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | count of spans |
//! | 16 | 8 | length of the layer file |
//! | 24 | 32 | fingerprint: SHA-256 of the layer digest and the zTOC digest, as text |
//! | 56 | 4 | zero |
//! | 60 | 4 | CRC-32 of bytes 0 to 60 |
//!
//! Then records of 32 bytes:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | kind: 1 span, 2 verified, 3 sealed, 4 zTOC kept, 5 index made |
//! | 4 | 4 | number of the span, else zero |
//! | 8 | 4 | CRC-32 of the span's uncompressed bytes, else zero |
//! | 12 | 16 | stamp of the file that kinds 3 to 5 speak of, else zero |
//! | 28 | 4 | CRC-32 of the record's position (8 bytes) and its bytes 0 to 28 |
//!
//! The first record that does not check ends the journal: a torn tail costs what stands behind it.

mod record;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use record::{HEADER_LEN, RECORD_LEN};
pub(crate) use record::{Header, Record};

/// Most spans that a layer may have: 16 GiB of tar in spans of 4 KiB. Bounds what is read at start.
pub(crate) const SPAN_COUNT_MAX: usize = 1 << 22;

/// Longest journal that is read: every span recorded twice, and some records of the whole.
fn journal_len_max(span_count: u32) -> u64 {
    HEADER_LEN as u64 + (u64::from(span_count) * 2 + 1024) * RECORD_LEN as u64
}

/// A journal open for appending.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    /// Where the next record goes.
    end: u64,
    /// Length past which nothing is appended any more.
    len_max: u64,
}

impl Journal {
    /// Open for appending; the records that an earlier run left, oldest first.
    ///
    /// A journal of another layer, zTOC or format, or a damaged one, yields no records and starts
    /// anew. What stands behind a torn record is cut off.
    pub(crate) fn open(path: &Path, header: &Header) -> io::Result<(Self, Vec<Record>)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let file = options.create(true).truncate(false).open(path)?;
        let records = read_records(&file, header)?;
        let Some(records) = records else {
            // Not emptied: whoever has it open for another zTOC must not write into ours.
            std::fs::remove_file(path)?;
            let file = options.create_new(true).open(path)?;
            file.write_all_at(&header.encode(), 0)?;
            return Ok((Self::at(file, HEADER_LEN as u64, header), Vec::new()));
        };
        let end = (HEADER_LEN + records.len() * RECORD_LEN) as u64;
        file.set_len(end)?;
        Ok((Self::at(file, end, header), records))
    }

    fn at(file: File, end: u64, header: &Header) -> Self {
        Self { file, end, len_max: journal_len_max(header.span_count) }
    }

    /// Records of a journal that another process may be writing; never changes it.
    pub(crate) fn peek(path: &Path, header: &Header) -> io::Result<Vec<Record>> {
        match File::open(path) {
            Ok(file) => Ok(read_records(&file, header)?.unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Append a record. After an error the next append overwrites what was half written.
    pub(crate) fn append(&mut self, record: &Record) -> io::Result<()> {
        if self.end + RECORD_LEN as u64 > self.len_max {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "span journal is full"));
        }
        self.file.write_all_at(&record.encode(self.end), self.end)?;
        self.end += RECORD_LEN as u64;
        Ok(())
    }

    /// Bring the records to the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// `None` if the header is not the one expected.
fn read_records(file: &File, header: &Header) -> io::Result<Option<Vec<Record>>> {
    let len = file.metadata()?.len().min(journal_len_max(header.span_count));
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(parse(&bytes, header))
}

/// The records of a journal up to its first that does not check; `None` for another's journal.
fn parse(bytes: &[u8], header: &Header) -> Option<Vec<Record>> {
    let (head, body) = bytes.split_first_chunk::<HEADER_LEN>()?;
    if *head != header.encode() {
        return None;
    }
    let (records, _torn) = body.as_chunks::<RECORD_LEN>();
    let records = records.iter().enumerate().map_while(|(number, bytes)| {
        let at = HEADER_LEN + number * RECORD_LEN;
        Record::decode(bytes, at as u64, header.span_count)
    });
    Some(records.collect())
}

#[cfg(test)]
mod tests;
