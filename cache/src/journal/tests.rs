use super::*;
use crate::layer_file::Stamp;
use spanfs_layer::Digest;

fn header() -> Header {
    Header::new(&Digest::of(b"layer"), &Digest::of(b"ztoc"), 100, 4096)
}

fn records() -> Vec<Record> {
    let spans = (0..10).map(|span| Record::Span { span: span * 7, crc: span ^ 0xdead });
    let wholes = [
        Record::Verified,
        Record::ZtocKept(Stamp([1; 16])),
        Record::IndexMade(Stamp([2; 16])),
        Record::Sealed(Stamp([3; 16])),
    ];
    spans.chain(wholes).collect()
}

fn written() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let (mut journal, old) = Journal::open(&path, &header()).unwrap();
    assert!(old.is_empty());
    for record in records() {
        journal.append(&record).unwrap();
    }
    std::fs::read(path).unwrap()
}

/// Open a journal of these bytes; what is read must be a prefix of what was written.
fn reopened(bytes: &[u8]) -> Vec<Record> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    std::fs::write(&path, bytes).unwrap();
    let peeked = Journal::peek(&path, &header()).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "peek changes nothing");
    let (mut journal, found) = Journal::open(&path, &header()).unwrap();
    assert_eq!(peeked, found);
    assert!(records().starts_with(&found), "{found:?}");

    // An append behind whatever was left is found again.
    journal.append(&Record::Span { span: 99, crc: 5 }).unwrap();
    let (_, again) = Journal::open(&path, &header()).unwrap();
    let expected: Vec<_> =
        found.iter().cloned().chain([Record::Span { span: 99, crc: 5 }]).collect();
    assert_eq!(again, expected);
    found
}

#[test]
fn survives_every_truncation() {
    let whole = written();
    for len in 0..=whole.len() {
        let found = reopened(&whole[..len]);
        assert_eq!(found.len(), len.saturating_sub(HEADER_LEN) / RECORD_LEN, "{len}");
    }
}

#[test]
fn a_flipped_bit_ends_the_journal_there() {
    let whole = written();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        let found = reopened(&bytes);
        let expected = at.checked_sub(HEADER_LEN).map_or(0, |at| at / RECORD_LEN);
        assert_eq!(found.len(), expected, "byte {at}");
    }
}

#[test]
fn a_moved_record_is_not_believed() {
    let mut bytes = written();
    let first = bytes[HEADER_LEN..HEADER_LEN + RECORD_LEN].to_vec();
    bytes[HEADER_LEN + RECORD_LEN..HEADER_LEN + 2 * RECORD_LEN].copy_from_slice(&first);
    assert_eq!(reopened(&bytes).len(), 1);
}

#[test]
fn a_span_beyond_the_table_is_not_believed() {
    let record = Record::Span { span: 100, crc: 1 };
    let mut bytes = header().encode().to_vec();
    bytes.extend(record.encode(HEADER_LEN as u64));
    assert!(reopened(&bytes).is_empty());
}

#[test]
fn another_layers_journal_starts_anew() {
    let other = Header::new(&Digest::of(b"other"), &Digest::of(b"ztoc"), 100, 4096);
    let mut bytes = other.encode().to_vec();
    bytes.extend(Record::Verified.encode(HEADER_LEN as u64));
    assert!(reopened(&bytes).is_empty());
}

#[test]
fn is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let header = Header::new(&Digest::of(b"layer"), &Digest::of(b"ztoc"), 1, 512);
    let (mut journal, _) = Journal::open(&dir.path().join("journal"), &header).unwrap();
    let appended = (0..2000).take_while(|_| journal.append(&Record::Verified).is_ok()).count();
    assert_eq!(appended, 1026);
}
