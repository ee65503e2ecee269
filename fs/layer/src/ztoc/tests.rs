use super::*;
use crate::fixtures::{self, bytes, json, read_tar, unhex};
use crate::{Kind, Restart, SpanError, SpanTable};
use serde_json::Value;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

struct Golden {
    layer: String,
    name: String,
    error: Option<String>,
    encoded: Option<Vec<u8>>,
}

fn goldens() -> Vec<Golden> {
    let rows = json("ztoc/ztocs.json");
    let golden = |row: &Value| {
        let text = |key: &str| row.get(key).map(|text| text.as_str().unwrap().to_string());
        let name = text("json").unwrap().strip_suffix(".json").unwrap().to_string();
        let encoded = text("ztoc").map(|file| bytes(&format!("ztoc/{file}")));
        Golden { layer: text("layer").unwrap(), name, error: text("error"), encoded }
    };
    rows.as_array().unwrap().iter().map(golden).collect()
}

/// Those that the peer reads, too.
fn good() -> Vec<(Golden, Vec<u8>, Value)> {
    let good = goldens().into_iter().filter(|golden| golden.error.is_none());
    good.map(|mut golden| {
        let encoded = golden.encoded.take().unwrap();
        let expected = json(&format!("ztoc/{}.json", golden.name));
        (golden, encoded, expected)
    })
    .collect()
}

#[test]
fn goldens_encode_to_the_same_bytes() {
    for (golden, encoded, _) in good() {
        let ztoc = Ztoc::decode(&encoded).unwrap_or_else(|e| panic!("{}: {e}", golden.name));
        assert!(ztoc.encode() == encoded, "{}", golden.name);
    }
}

#[test]
fn goldens_have_the_fields_that_the_peer_sees() {
    for (golden, encoded, expected) in good() {
        let name = &golden.name;
        let ztoc = Ztoc::decode(&encoded).unwrap();
        assert_eq!(ztoc.version, expected["version"].as_str().unwrap().as_bytes(), "{name}");
        assert_eq!(ztoc.compressed_size, expected["compressed_archive_size"], "{name}");
        assert_eq!(ztoc.uncompressed_size, expected["uncompressed_archive_size"], "{name}");
        let entries = expected["entries"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert_eq!(ztoc.records.len(), entries.len(), "{name}");
        for (record, entry) in ztoc.records.iter().zip(entries) {
            check_entry(name, record, entry);
        }
    }
}

fn check_entry(name: &str, record: &Record, entry: &Value) {
    let context = format!("{name}: {}", String::from_utf8_lossy(&record.name));
    assert_eq!(record.name, fixtures::raw(entry, "name"), "{context}");
    assert_eq!(record.link, fixtures::raw(entry, "linkname"), "{context}");
    assert_eq!(record.data.0, entry["uncompressed_offset"], "{context}");
    assert_eq!(record.size, entry["uncompressed_size"], "{context}");
    assert_eq!(record.header.0, entry["tar_header_offset"], "{context}");
    assert_eq!(record.mode, entry["mode"], "{context}");
    assert_eq!(record.uid, entry["uid"], "{context}");
    assert_eq!(record.gid, entry["gid"], "{context}");
    let text = entry["mod_time"].as_str().unwrap();
    assert_eq!(time::format(record.mtime), text, "{context}");
    let none = serde_json::Map::new();
    let pax = entry.get("pax_hex").map_or(&none, |pax| pax.as_object().unwrap());
    assert_eq!(record.pax.len(), pax.len(), "{context}");
    for (key, value) in &record.pax {
        let expected = pax[&*String::from_utf8_lossy(key)].as_str().unwrap();
        assert_eq!(*value, unhex(expected), "{context}");
    }
}

#[test]
fn goldens_make_the_spans_that_the_peer_makes() {
    for (golden, encoded, expected) in good() {
        let name = &golden.name;
        let table = SpanTable::from_ztoc(&encoded);
        if golden.layer.contains("lead-empty") {
            // The peer's daemon refuses its own zTOC here, as its first span is empty.
            assert_eq!(table, Err(ZtocError::Spans(SpanError::NonMonotonic { span: 0 })));
            continue;
        }
        let table = table.unwrap_or_else(|error| panic!("{name}: {error}"));
        let archive_size = expected["uncompressed_archive_size"].as_u64().unwrap();
        let in_archive = |&(index, span): &(usize, &Value)| {
            index == 0 || span["start_uncompressed"].as_u64().unwrap() < archive_size
        };
        let spans = expected["spans"].as_array().unwrap().iter().enumerate().filter(in_archive);
        let spans: Vec<&Value> = spans.map(|(_, span)| span).collect();
        assert_eq!(table.spans().len(), spans.len(), "{name}");
        assert_eq!(table.uncompressed_len(), archive_size, "{name}");
        let blob = bytes(&format!("layers/{}", golden.layer));
        assert_eq!(table.compressed_len(), blob.len() as u64, "{name}");
        for (index, (span, expected)) in table.spans().iter().zip(spans).enumerate() {
            assert_eq!(span.compressed.start.0, expected["start_compressed"], "{name}");
            assert_eq!(span.compressed.end.0, expected["end_compressed"], "{name}");
            assert_eq!(span.uncompressed.start.0, expected["start_uncompressed"], "{name}");
            let end = expected["end_uncompressed"].as_u64().unwrap().min(archive_size);
            assert_eq!(span.uncompressed.end.0, end, "{name}");
            assert_eq!(span.digest.to_string(), expected["digest"], "{name}");
            let compressed = span.compressed.start.0 as usize..span.compressed.end.0 as usize;
            assert_eq!(crate::Digest::of(&blob[compressed]), span.digest, "{name}");
            check_restart(name, &span.restart, &encoded, expected, &expected_point(&golden, index));
        }
    }
}

fn expected_point(golden: &Golden, index: usize) -> Value {
    json(&format!("ztoc/{}.json", golden.name))["checkpoints"][index].clone()
}

fn check_restart(name: &str, restart: &Restart, encoded: &[u8], span: &Value, point: &Value) {
    match *restart {
        Restart::Deflate { bits, window_at } => {
            assert_eq!(bits, point["bits"], "{name}");
            let window = &encoded[window_at as usize..window_at as usize + WINDOW_LEN];
            let digest = crate::Digest::of(window).hex().to_string();
            assert_eq!(digest, point["window_sha256"], "{name}");
        }
        Restart::Stored => assert_eq!(span["start_compressed"], span["start_uncompressed"]),
        Restart::ZstdFrame => panic!("{name} is no zstd layer"),
    }
}

/// What a builder that inflates finds, taken from a golden zTOC.
fn restarts(encoded: &[u8]) -> Restarts {
    let view = View::new(encoded).unwrap();
    if view.compression == Compression::Uncompressed {
        let cut = zinfo::TarCut::new(view.checkpoints).unwrap();
        return Restarts::Uncompressed { span_size: cut.span_size };
    }
    let points = zinfo::GzipPoints::new(view.checkpoints).unwrap();
    let checkpoint = |point: zinfo::Point| Checkpoint {
        input: crate::CompressedOffset(point.input),
        output: crate::UncompressedOffset(point.output),
        bits: point.bits,
        window: point
            .window_at
            .map_or(Vec::new(), |at| view.checkpoints[at..at + WINDOW_LEN].to_vec()),
    };
    let checkpoints = points.iter().map(checkpoint).collect();
    Restarts::Gzip { span_size: points.span_size as u64, checkpoints }
}

#[test]
fn layers_build_to_the_bytes_of_the_peer() {
    for (golden, encoded, expected) in good() {
        let name = &golden.name;
        let (records, archive) = read_tar(&fixtures::tar(&golden.layer), 1 << 20).unwrap();
        let blob = bytes(&format!("layers/{}", golden.layer));
        let digest = |span: &Value| {
            let at = |key: &str| span[key].as_u64().unwrap() as usize;
            crate::Digest::of(&blob[at("start_compressed")..at("end_compressed")])
        };
        let parts = Parts {
            records,
            archive,
            compressed_size: blob.len() as u64,
            restarts: restarts(&encoded),
            span_digests: expected["spans"].as_array().unwrap().iter().map(digest).collect(),
            build_tool: expected["build_tool"].as_str().unwrap().into(),
        };
        let built = Ztoc::from_parts(parts);
        if golden.layer.contains("lead-empty") {
            let refused = BuildError::Spans(SpanError::NonMonotonic { span: 0 });
            assert_eq!(built, Err(refused));
            continue;
        }
        let built = built.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(built.encode() == encoded, "{name}");
    }
}

#[test]
fn layers_that_the_peer_refuses_are_refused() {
    let mut refused = 0;
    for golden in goldens() {
        let Some(error) = &golden.error else { continue };
        if golden.layer.starts_with("mix-") || golden.layer.ends_with(".tar") {
            continue;
        }
        refused += 1;
        let (records, archive) = match read_tar(&fixtures::tar(&golden.layer), 1 << 20) {
            Ok(read) => read,
            Err(found) => {
                assert!(error.starts_with("error while reading tar header"), "{error}: {found}");
                continue;
            }
        };
        let checkpoints = Vec::from([Checkpoint {
            input: crate::CompressedOffset(10),
            output: crate::UncompressedOffset(0),
            bits: 0,
            window: Vec::new(),
        }]);
        let parts = Parts {
            records,
            archive,
            compressed_size: 1 << 20,
            restarts: Restarts::Gzip { span_size: 1 << 22, checkpoints },
            span_digests: Vec::from([crate::Digest::of(b"")]),
            build_tool: Vec::new(),
        };
        let found = Ztoc::from_parts(parts).unwrap_err();
        match found {
            BuildError::Sparse { .. } => assert!(golden.layer.contains("sparse-pax")),
            _ => assert!(found.to_string().starts_with(error.as_str()), "{error}: {found}"),
        }
    }
    assert_eq!(refused, 6);
}

#[test]
fn a_sparse_layer_that_the_peer_indexed_is_refused_as_it_does() {
    let golden = goldens().into_iter().find(|golden| golden.name.starts_with("sparse-pax"));
    let encoded = golden.unwrap().encoded.unwrap();
    assert!(matches!(Ztoc::decode(&encoded), Err(ZtocError::InvalidToc { .. })));
}

#[test]
fn kinds_survive_the_round_trip() {
    let (_, encoded, _) =
        good().into_iter().find(|(golden, ..)| golden.layer.starts_with("special")).unwrap();
    let kinds: Vec<Kind> = Ztoc::decode(&encoded).unwrap().records.iter().map(|r| r.kind).collect();
    for kind in [Kind::Regular, Kind::Directory, Kind::CharDevice, Kind::BlockDevice, Kind::Fifo] {
        assert!(kinds.contains(&kind), "{kind:?}");
    }
}
