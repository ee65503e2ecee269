use super::BLOCK_LEN;
use super::{Limits, Reader, TarError};
use crate::fixtures::{self, json, json_lines, raw, read_tar, unhex};
use crate::{Digest, Kind, Record};
use serde_json::Value;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

/// Layers whose compression, not whose tar, is what is broken.
fn unreadable(row: &Value) -> bool {
    let broken_gzip = row["name"].as_str().unwrap().starts_with("mix-") && row["broken"] == true;
    broken_gzip || row["algorithm"] == "zstd"
}

fn content(record: &Record, tar: &[u8]) -> Vec<u8> {
    let slice = |at: u64, len: u64| &tar[at as usize..(at + len) as usize];
    match &record.sparse {
        None => slice(record.data.0, record.size).to_vec(),
        Some((size, segments)) => {
            let mut content = vec![0; *size as usize];
            for segment in segments {
                let file = segment.file.0 as usize;
                content[file..file + segment.len as usize]
                    .copy_from_slice(slice(segment.data.0, segment.len));
            }
            content
        }
    }
}

fn check(layer: &str, record: &Record, expected: &Value, tar: &[u8]) {
    let name = raw(expected, "name");
    let context = format!("{layer}: {}", String::from_utf8_lossy(&name));
    let mut found = record.name.clone();
    while record.kind == Kind::Directory && found.ends_with(b"/") {
        found.pop();
    }
    assert_eq!(found, name, "{context}");
    let kind = match (record.kind, record.typeflag) {
        (_, b'7') => "cont",
        (_, b'S') => "sparse",
        (Kind::Regular, _) => "reg",
        (Kind::Directory, _) => "dir",
        (Kind::Symlink, _) => "symlink",
        (Kind::Hardlink, _) => "hardlink",
        (Kind::CharDevice, _) => "char",
        (Kind::BlockDevice, _) => "block",
        (Kind::Fifo, _) => "fifo",
    };
    assert_eq!(kind, expected["type"], "{context}");
    assert_eq!(format!("{:04o}", record.mode), expected["mode"], "{context}");
    assert_eq!(record.uid, expected["uid"], "{context}");
    assert_eq!(record.gid, expected["gid"], "{context}");
    let size = record.sparse.as_ref().map_or(record.size, |(size, _)| *size);
    assert_eq!(size, expected["size"], "{context}");
    assert_eq!(record.mtime.seconds, expected["mtime"]["sec"], "{context}");
    assert_eq!(record.mtime.nanoseconds, expected["mtime"]["nsec"], "{context}");
    assert_eq!(record.link, raw(expected, "linkname"), "{context}");
    for (found, key) in [(record.devmajor, "devmajor"), (record.devminor, "devminor")] {
        assert_eq!(found, expected[key].as_i64().unwrap_or(0), "{context}");
    }
    let none = serde_json::Map::new();
    let xattrs = expected.get("xattrs_hex").map_or(&none, |xattrs| xattrs.as_object().unwrap());
    for (key, value) in record.xattrs() {
        let key = String::from_utf8_lossy(key);
        assert_eq!(unhex(xattrs[&*key].as_str().unwrap()), value, "{context}: {key}");
    }
    assert_eq!(record.xattrs().count(), xattrs.len(), "{context}");
    assert_eq!(record.header.0, expected["header_offset"], "{context}");
    // The reference counts the map of a PAX 1.0 sparse file as header.
    let first = record.sparse.as_ref().and_then(|(_, segments)| segments.first());
    let data = first.map_or(record.data, |segment| segment.data);
    assert_eq!(data.0, expected["data_offset"], "{context}");
    if let Some(sha256) = expected.get("sha256").filter(|_| record.kind == Kind::Regular) {
        let digest = Digest::of(&content(record, tar)).hex().to_string();
        assert_eq!(&digest, sha256, "{context}");
    }
}

#[test]
fn golden_layers_are_read() {
    let mut layers = 0;
    for row in json("layers/layers.json").as_array().unwrap() {
        if unreadable(row) {
            continue;
        }
        let layer = row["name"].as_str().unwrap();
        let tar = fixtures::tar(row["file"].as_str().unwrap());
        let expected = json_lines(&format!("layers/{}", row["expect"].as_str().unwrap()));
        let result = read_tar(&tar, 1 << 20);
        // The specification allows an empty layer, unlike the tool that wrote the expectation.
        if layer != "zero-bytes" && expected.iter().any(|entry| entry.get("error").is_some()) {
            assert!(result.is_err(), "{layer}");
            continue;
        }
        let expected = if layer == "zero-bytes" { &[] } else { expected.as_slice() };
        let (records, archive) = result.unwrap_or_else(|error| panic!("{layer}: {error}"));
        assert_eq!(records.len(), expected.len(), "{layer}");
        assert_eq!(archive.entries, expected.len() as u64, "{layer}");
        for (record, expected) in records.iter().zip(expected) {
            check(layer, record, expected, &tar);
        }
        layers += 1;
    }
    assert!(layers > 40, "only {layers} layers were compared");
}

#[test]
fn pieces_of_any_length_give_the_same() {
    let layers = ["names-pax", "names-gnu", "xattrs", "sparse-gnu", "sparse-pax", "short-file"];
    for layer in layers.into_iter().chain(["bad-checksum", "eof-then-junk", "global-header"]) {
        let tar = fixtures::tar(&format!("{layer}.tar.gz"));
        let whole = read_tar(&tar, usize::MAX);
        for piece_len in [1, 7, 511, 512, 513, 1000, 4096] {
            assert_eq!(read_tar(&tar, piece_len), whole, "{layer} in pieces of {piece_len}");
        }
    }
}

/// A header block of a GNU archive with a right checksum, as `change` leaves it.
fn block(name: &[u8], typeflag: u8, size: &str, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut block = vec![0; BLOCK_LEN];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, size.as_bytes());
    put(136, b"00000000000\0");
    put(156, &[typeflag]);
    put(257, b"ustar  \0");
    change(&mut block);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn header(name: &[u8], typeflag: u8, size: usize) -> Vec<u8> {
    block(name, typeflag, &format!("{size:011o}"), |_| ())
}

/// A header and its payload, padded.
fn member(name: &[u8], typeflag: u8, payload: &[u8]) -> Vec<u8> {
    let mut member = [&header(name, typeflag, payload.len()), payload].concat();
    member.resize(member.len().next_multiple_of(BLOCK_LEN), 0);
    member
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut payload = String::new();
    for (key, value) in records {
        let bare = key.len() + value.len() + 3;
        let len = (bare..).find(|len| bare + len.to_string().len() == *len).unwrap();
        payload += &format!("{len} {key}={value}\n");
    }
    member(b"pax", b'x', payload.as_bytes())
}

fn only(parts: &[Vec<u8>]) -> Record {
    let tar = [parts.concat(), vec![0; 2 * BLOCK_LEN]].concat();
    let (mut records, _) = read_tar(&tar, 4096).unwrap();
    assert_eq!(records.len(), 1);
    records.remove(0)
}

fn failure(parts: &[Vec<u8>]) -> String {
    let tar = [parts.concat(), vec![0; 2 * BLOCK_LEN]].concat();
    read_tar(&tar, 4096).unwrap_err().to_string()
}

#[test]
fn extensions_apply_in_go_s_order() {
    let file = || member(b"short", b'0', b"");
    let name = |parts: &[Vec<u8>]| String::from_utf8(only(parts).name).unwrap();
    assert_eq!(name(&[pax(&[("path", "p")]), file()]), "p");
    assert_eq!(name(&[pax(&[("path", "")]), file()]), "short");
    assert_eq!(name(&[pax(&[("path", "p"), ("path", "q")]), file()]), "q");
    assert_eq!(name(&[pax(&[("path", "p")]), pax(&[("mtime", "1")]), file()]), "short");
    assert_eq!(name(&[member(b"", b'L', b"long\0"), file()]), "long");
    assert_eq!(name(&[member(b"", b'L', b""), file()]), "short");
    assert_eq!(name(&[member(b"", b'L', b"long"), pax(&[("path", "p")]), file()]), "long");
    let record = only(&[member(b"", b'K', b"target"), member(b"n", b'2', b"")]);
    assert_eq!((record.link.as_slice(), record.header.0, record.data.0), (&b"target"[..], 0, 1536));
}

#[test]
fn odd_headers_are_read() {
    let only_block = |block: Vec<u8>| only(&[block]);
    let minus_one = only_block(block(b"a", b'0', "00000000000", |b| b[136..148].fill(0xff)));
    assert_eq!(minus_one.mtime.seconds, -1);
    let spaces = only_block(block(b"a", b'5', "          0", |b| {
        b[108..116].copy_from_slice(b"    17 \0");
    }));
    assert_eq!((spaces.uid, spaces.kind), (0o17, Kind::Directory));
    assert_eq!(only_block(header(b"d/", 0, 0)).kind, Kind::Directory);
    assert_eq!(only_block(header(b"d/", b'0', 0)).kind, Kind::Regular);
    // Kinds without data have none, whatever their size says.
    assert_eq!(only_block(header(b"l", b'1', 1000)).size, 1000);
    let old_prefix =
        only_block(block(b"name", b'0', "", |b| b[345..351].copy_from_slice(b"prefix")));
    assert_eq!(old_prefix.name, b"prefix/name");
    let times = only_block(block(b"name", b'0', "", |b| {
        b[345..357].copy_from_slice(b"00000000017\0");
    }));
    assert_eq!(times.name, b"name");
    let signed = |block: &mut Vec<u8>| {
        let sum: i32 = block[..148].iter().chain(&block[156..]).map(|&b| i32::from(b as i8)).sum();
        block[148..156].copy_from_slice(format!("{:06o}\0 ", sum + 256).as_bytes());
    };
    let mut latin = block(b"\xe9", b'0', "", |_| ());
    signed(&mut latin);
    assert_eq!(only_block(latin).name, b"\xe9");
}

#[test]
fn bad_headers_are_refused() {
    let file = || member(b"f", b'0', b"");
    let sum = |change: fn(&mut [u8])| failure(&[block(b"f", b'0', "00000000000", change)]);
    for (found, expected) in [
        (failure(&[member(b"v", b'V', b"")]), "unsupported input tar entry 'V' at 0"),
        (failure(&[header(b"f", b'0', 6000)]), "inside a file's data"),
        (sum(|b| b[100..108].copy_from_slice(b"0000888\0")), "tar header at 0 has an invalid mode"),
        (sum(|b| b[124..136].fill(0xff)), "invalid size"),
        (sum(|b| b[124..128].copy_from_slice(&[0x80, 0xff, 0xff, 0xff])), "invalid size"),
        (failure(&[vec![0; 512], file()]), "lone zero block"),
        (failure(&[pax(&[("mtime", "1")])]), "extension header at 0 has no entry behind it"),
        (failure(&[pax(&[("mtime", "x")]), file()]), "mtime is not a time"),
        (failure(&[pax(&[("size", "-1")]), file()]), "size is not a number"),
        (failure(&[pax(&[("path", "a\0b")]), file()]), "holds a NUL"),
        (failure(&[member(b"", b'x', b"9 a=b"), file()]), "length is wrong"),
        (failure(&[member(b"", b'x', b"5 a=b"), file()]), "newline"),
        (failure(&[member(b"", b'x', b"5 ab\n"), file()]), "`=`"),
        (failure(&[header(b"", b'x', 2 << 20)]), "above the limit of 1048576"),
        (
            failure(&[pax(&[("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0")]), file()]),
            "format",
        ),
        (failure(&[pax(&[("GNU.sparse.map", "1")]), file()]), "real size"),
        (
            failure(&[pax(&[("GNU.sparse.map", "1"), ("GNU.sparse.size", "9")]), file()]),
            "pairs of numbers",
        ),
        (
            failure(&[pax(&[("GNU.sparse.map", "5,1"), ("GNU.sparse.size", "9")]), file()]),
            "longer than the stored data",
        ),
        (
            failure(&[
                pax(&[("GNU.sparse.map", "5,1,4,1"), ("GNU.sparse.size", "9")]),
                member(b"f", b'0', b"ab"),
            ]),
            "overlap",
        ),
    ] {
        assert!(found.contains(expected), "{found:?} lacks {expected:?}");
    }
}

#[test]
fn sparse_maps_of_every_form_agree() {
    let expected = |data: u64| {
        let segment = |file, data, len| crate::SparseSegment {
            file: crate::FileOffset(file),
            data: crate::UncompressedOffset(data),
            len,
        };
        Some((100, vec![segment(10, data, 2), segment(50, data + 2, 3)]))
    };
    let (size, name) = (("GNU.sparse.size", "100"), ("GNU.sparse.name", "real"));
    let v00 = pax(&[
        size,
        ("GNU.sparse.offset", "10"),
        ("GNU.sparse.numbytes", "2"),
        ("GNU.sparse.offset", "50"),
        ("GNU.sparse.numbytes", "3"),
    ]);
    let v01 = pax(&[size, name, ("GNU.sparse.map", "10,2,50,3")]);
    let (major, minor) = (("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"));
    let v10 = pax(&[major, minor, name, ("GNU.sparse.realsize", "100")]);
    let mut text = b"2\n10\n2\n50\n3\n".to_vec();
    text.resize(BLOCK_LEN, 0);
    text.extend(b"abcde");
    let old = block(b"f", b'S', "00000000005", |b| {
        for (index, number) in [10, 2, 50, 3, 100].into_iter().enumerate() {
            let at = if index == 4 { 483 } else { 386 + 12 * index };
            b[at..at + 12].copy_from_slice(format!("{number:011o}\0").as_bytes());
        }
    });
    let mut stored = b"abcde".to_vec();
    stored.resize(BLOCK_LEN, 0);
    assert_eq!(only(&[v00, member(b"f", b'0', b"abcde")]).sparse, expected(1536));
    let record = only(&[v01, member(b"f", b'0', b"abcde")]);
    assert_eq!((record.sparse, record.name.as_slice()), (expected(1536), &b"real"[..]));
    let record = only(&[v10, member(b"f", b'0', &text)]);
    assert_eq!((record.sparse, record.size), (expected(2048), 517));
    assert_eq!(only(&[old, stored]).sparse, expected(512));
}

#[test]
fn limits_hold() {
    let tar = [member(b"a", b'0', b""), member(b"b", b'0', b"")].concat();
    let feed = |limits| Reader::new(limits).feed(&tar, &mut Vec::new());
    assert!(feed(Limits { entries_max: 2, ..Limits::default() }).is_ok());
    let error = feed(Limits { entries_max: 1, ..Limits::default() });
    assert!(matches!(error, Err(TarError::Limit { max: 1, .. })));
    let error = feed(Limits { metadata_bytes_max: 1, ..Limits::default() });
    assert!(matches!(error, Err(TarError::Limit { max: 1, .. })));
}

#[test]
fn an_error_stays() {
    let mut reader = Reader::new(Limits::default());
    let mut records = Vec::new();
    let error = reader.feed(&[1; 512], &mut records).unwrap_err();
    assert_eq!(reader.feed(&[0; 2048], &mut records), Err(error.clone()));
    assert_eq!(reader.finish(), Err(error));
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]

    /// Damaged archives give records or an error, the same however they are cut.
    #[test]
    fn damaged_archives_never_panic(
        which in 0_usize..6,
        damage in proptest::collection::vec((0_usize..1 << 16, proptest::num::u8::ANY), 0..8),
        piece_len in 1_usize..2000,
    ) {
        let layers = ["names-pax", "names-gnu", "xattrs", "sparse-pax", "sparse-gnu", "special"];
        let mut tar = fixtures::tar(&format!("{}.tar.gz", layers[which]));
        for (at, byte) in damage {
            // Keep to the headers, where damage tells, and mend checksums half of the time.
            let at = at % tar.len();
            tar[at] ^= byte;
            let start = at - at % BLOCK_LEN;
            if byte & 1 == 1 && start + BLOCK_LEN <= tar.len() {
                let block = &mut tar[start..start + BLOCK_LEN];
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let whole = read_tar(&tar, usize::MAX);
        proptest::prop_assert_eq!(&read_tar(&tar, piece_len), &whole);
        if let Ok((records, archive)) = whole {
            for record in records {
                proptest::prop_assert!(record.header.0 + 512 <= record.data.0);
                proptest::prop_assert!(record.data.0 <= archive.size);
            }
        }
    }
}
