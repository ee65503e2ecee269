//! Against the zTOCs that the peers' tool made of the same layers.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::*;
use crate::inflate::VerifyFault;

fn fixture(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures"));
    fs::read(folder.join(name)).unwrap()
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&fixture(name)).unwrap()
}

fn options(span_size: u64) -> BuildOptions {
    BuildOptions { span_size, build_tool: "AWS SOCI CLI v0.2".into(), ..BuildOptions::default() }
}

fn lazy(built: Built) -> Ztoc {
    match built.toc {
        Toc::Lazy(ztoc) => ztoc,
        Toc::Whole { reason, .. } => panic!("no zTOC: {reason}"),
    }
}

/// Rows of the table that a peer could build, by whether its size is one that we take too.
fn rows() -> Vec<Value> {
    let rows = json("ztoc/ztocs.json").as_array().unwrap().clone();
    // The peer's library takes a negative span size, its command does not, and neither do we.
    rows.into_iter().filter(|row| row["span_size"].as_u64().is_some()).collect()
}

#[test]
fn ztocs_equal_the_peers_to_the_byte() {
    let mut count = 0;
    for row in rows().iter().filter(|row| row.get("error").is_none()) {
        let layer = row["layer"].as_str().unwrap();
        let blob = fixture(&format!("layers/{layer}"));
        for piece_len in [blob.len(), 4097] {
            let span_size = row["span_size"].as_u64().unwrap();
            let (built, tar) = build(&blob, options(span_size), piece_len).unwrap();
            let encoded = lazy(built).encode();
            assert_spans_give(&encoded, &blob, &tar);
            if layer == "mix-lead-empty.tar.gz" {
                continue;
            }
            let name = row["ztoc"].as_str().unwrap();
            let expected = fixture(&format!("ztoc/{name}"));
            let (ours, theirs) = (Ztoc::decode(&encoded), Ztoc::decode(&expected));
            assert_eq!(ours.unwrap(), theirs.unwrap(), "{name}");
            assert!(encoded == expected, "{name}: equal fields, other bytes");
            count += 1;
        }
    }
    assert!(count > 120, "only {count} zTOCs compared");
}

/// A blob that begins with empty blocks: the peer writes two checkpoints at output 0 and then
/// refuses its own zTOC. We write the first; all else is equal.
#[test]
fn an_empty_span_is_not_written() {
    let blob = fixture("layers/mix-lead-empty.tar.gz");
    let (built, _) = build(&blob, options(256 << 10), blob.len()).unwrap();
    let ours = lazy(built);
    let theirs = SpanTable::from_ztoc(&fixture("ztoc/mix-lead-empty.256k.ztoc"));
    assert!(theirs.is_err(), "the span table accepts an empty span");
    let described = json("ztoc/mix-lead-empty.256k.json");
    let outs: Vec<u64> = described["checkpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|point| point["out"].as_u64().unwrap())
        .collect();
    assert_eq!(outs.first_chunk(), Some(&[0, 0]));
    let points = spanfs_layer::ztoc::zinfo::GzipPoints::new(&ours.checkpoints).unwrap();
    let found: Vec<u64> = points.iter().map(|point| point.output).collect();
    assert_eq!(found, outs[1..]);
}

#[test]
fn layers_that_peers_refuse_have_a_reason() {
    for (layer, reason) in [
        ("sparse-gnu.tar.gz", "unsupported input tar entry 'S'"),
        ("sparse-pax.tar.gz", "unsupported sparse file"),
        ("global-header.tar.gz", "unsupported input tar entry 'g'"),
        ("contiguous.tar.gz", "unsupported input tar entry '7'"),
        ("mix-trail-zeros.tar.gz", "bytes follow it"),
        ("mix-trail-junk.tar.gz", "bytes follow it"),
        ("mix-zstd.tar.zst", "single zstd frame"),
    ] {
        let blob = fixture(&format!("layers/{layer}"));
        let (built, _) = build(&blob, options(256 << 10), 1000).unwrap();
        match &built.toc {
            Toc::Lazy(_) => panic!("{layer} has a zTOC"),
            Toc::Whole { reason: found, .. } => {
                assert!(found.to_string().contains(reason), "{layer}: {found}");
            }
        }
        assert!(!built.toc.records().is_empty());
    }
}

#[test]
fn broken_layers_are_errors() {
    for (layer, reason) in [
        ("short-file.tar.gz", "inside a file's data"),
        ("bad-checksum.tar.gz", "checksum"),
        ("mix-trunc.tar.gz", "inside its compressed stream"),
        ("mix-badcrc.tar.gz", "incorrect data check"),
    ] {
        let blob = fixture(&format!("layers/{layer}"));
        for piece_len in [1, 4097, blob.len()] {
            let error = build(&blob, options(256 << 10), piece_len).err().unwrap();
            let mut text = error.to_string();
            if let Some(source) = std::error::Error::source(&error) {
                text += &format!(": {source}");
            }
            assert!(text.contains(reason), "{layer}: {text}");
        }
    }
    let tar = fixture("layers/links-tar.tar");
    assert!(matches!(build(&tar, options(0), 512), Err(BuildError::SpanSize)));
}

/// Every layer, lazy or not: its digest and length are those that other tools found.
#[test]
fn every_layer_has_the_diff_id_that_others_found() {
    for layer in json("layers/layers.json").as_array().unwrap() {
        if layer["broken"] == true && layer["name"] != "mix-trail-zeros" {
            continue;
        }
        let name = layer["file"].as_str().unwrap();
        let (built, _) = build(&fixture(&format!("layers/{name}")), options(SPAN_SIZE), 1 << 16)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let Some(expected) = layer["uncompressed_sha256"].as_str() else { continue };
        assert_eq!(built.diff_id.hex().to_string(), expected, "{name}");
        assert_eq!(Some(built.uncompressed_len), layer["uncompressed_size"].as_u64(), "{name}");
    }
}

#[test]
fn zstd_frames_become_spans() {
    for layer in ["mix-zstd-frames.tar.zst", "mix-zstd-skippable.tar.zst"] {
        let blob = fixture(&format!("layers/{layer}"));
        for piece_len in [3, 5000, blob.len()] {
            let (built, tar) = build(&blob, options(100_000), piece_len).unwrap();
            match built.toc {
                Toc::Lazy(ztoc) => assert_spans_give(&ztoc.encode(), &blob, &tar),
                Toc::Whole { reason: NotLazy::OneFrame { .. }, .. } => {
                    assert_eq!(layer, "mix-zstd-skippable.tar.zst");
                }
                Toc::Whole { reason, .. } => panic!("{layer}: {reason}"),
            }
        }
    }
}

#[test]
fn a_bomb_stops_at_the_limit() {
    let blob = fixture("layers/sizes.tar.gz");
    let options = BuildOptions { uncompressed_bytes_max: 1 << 20, ..BuildOptions::default() };
    let error = build(&blob, options, blob.len()).err().unwrap();
    assert!(matches!(error, BuildError::TooLong { max: 0x10_0000 }), "{error}");
}

#[test]
fn a_sink_that_fails_stops_the_build() {
    let blob = fixture("layers/sizes.tar.gz");
    let full = |_: UncompressedOffset, _: &[u8]| Err(io::Error::from(io::ErrorKind::StorageFull));
    let mut builder = LayerBuilder::new(BuildOptions::default(), full).unwrap();
    let error = builder.feed(&blob).and_then(|()| builder.finish().map(drop)).unwrap_err();
    assert!(matches!(error, BuildError::Sink { at: UncompressedOffset(0), .. }), "{error}");
}

/// Bytes of another span, of another length, or changed, never become a verified span.
#[test]
fn only_the_promised_bytes_are_verified() {
    let blob = fixture("layers/mix-gzip6.tar.gz");
    let (built, _) = build(&blob, options(64 << 10), blob.len()).unwrap();
    let table = SpanTable::from_ztoc(&lazy(built).encode()).unwrap();
    let layer = Digest::of(&blob);
    let data = |number: usize| {
        let range = &table.spans()[number].compressed;
        blob[range.start.0 as usize..range.end.0 as usize].to_vec()
    };
    let check = |number, bytes| {
        VerifiedSpan::check(&layer, &table, number, Fetched { bytes, headroom: 0 })
            .map(|span| span.number())
            .map_err(|error| error.fault)
    };
    assert_eq!(check(1, data(1)), Ok(1));
    let mut changed = data(1);
    changed[100] ^= 1;
    let expected = table.spans()[1].digest;
    let found = Digest::of(&changed);
    assert_eq!(check(1, changed), Err(Box::new(VerifyFault::Digest { found, expected })));
    let len = data(1).len() as u64;
    let short = data(1)[1..].to_vec();
    let length = VerifyFault::Length { found: len - 1, expected: len };
    assert_eq!(check(1, short), Err(Box::new(length)));
    let count = table.spans().len();
    assert_eq!(check(count, data(1)), Err(Box::new(VerifyFault::NoSpan { count })));
}
