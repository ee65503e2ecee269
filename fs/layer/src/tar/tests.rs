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
