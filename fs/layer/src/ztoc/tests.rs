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
        let entries = parts.records.len();
        let built = Ztoc::from_parts(parts).map_err(|refused| {
            assert_eq!(refused.records.len(), entries, "{name}");
            refused.reason
        });
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
        let found = Ztoc::from_parts(parts).unwrap_err().reason;
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

#[test]
fn old_zinfo_lacks_its_first_checkpoint() {
    let (_, encoded, _) =
        good().into_iter().find(|(golden, ..)| golden.name == "mix-gzip6.256k").unwrap();
    let mut ztoc = Ztoc::decode(&encoded).unwrap();
    let record_len = WINDOW_LEN + 17;
    ztoc.checkpoints.drain(12..12 + record_len);
    let old = ztoc.encode();
    assert_eq!(Ztoc::decode(&old), Ok(ztoc.clone()));
    let (new, old_table) = (SpanTable::from_ztoc(&encoded), SpanTable::from_ztoc(&old));
    let (new, old_table) = (new.unwrap(), old_table.unwrap());
    assert_eq!(new.spans().len(), old_table.spans().len());
    assert_eq!(old_table.spans()[0].restart, Restart::Deflate { bits: 0, window_at: 0 });
    for (new, old_span) in new.spans().iter().zip(old_table.spans()).skip(1) {
        assert_eq!(
            (&new.compressed, &new.uncompressed),
            (&old_span.compressed, &old_span.uncompressed)
        );
        let window = |encoded: &[u8], restart: &Restart| match *restart {
            Restart::Deflate { window_at, .. } => {
                encoded[window_at as usize..window_at as usize + WINDOW_LEN].to_vec()
            }
            _ => panic!("not deflate"),
        };
        assert!(window(&encoded, &new.restart) == window(&old, &old_span.restart));
    }
    ztoc.checkpoints.push(0);
    let odd = SpanTable::from_ztoc(&ztoc.encode());
    assert!(matches!(odd, Err(ZtocError::Spans(SpanError::Encoding(_)))), "{odd:?}");
}

/// Parts of a layer without entries.
fn parts(archive_size: u64, compressed_size: u64, restarts: Restarts, spans: usize) -> Parts {
    Parts {
        records: Vec::new(),
        archive: crate::tar::Archive { size: archive_size, entries: 0, global_header: None },
        compressed_size,
        restarts,
        span_digests: Vec::from_iter((0..spans).map(|span| crate::Digest::of(&[span as u8]))),
        build_tool: b"test".to_vec(),
    }
}

fn frames(starts: &[(u64, u64)]) -> Restarts {
    let frame = |&(input, output): &(u64, u64)| Frame {
        input: crate::CompressedOffset(input),
        output: crate::UncompressedOffset(output),
    };
    Restarts::Zstd { frames: starts.iter().map(frame).collect() }
}

#[test]
fn zstd_frames_make_spans() {
    let restarts = frames(&[(0, 0), (100, 5000), (250, 9000)]);
    let ztoc = Ztoc::from_parts(parts(8192, 300, restarts, 3)).unwrap();
    assert_eq!(ztoc.compression, Compression::Zstd);
    let encoded = ztoc.encode();
    assert_eq!(Ztoc::decode(&encoded), Ok(ztoc));
    let table = SpanTable::from_ztoc(&encoded).unwrap();
    let ranges = |span: &crate::Span| {
        let (from, to) = (&span.compressed, &span.uncompressed);
        (from.start.0, from.end.0, to.start.0, to.end.0)
    };
    // The third frame holds only padding.
    let found: Vec<_> = table.spans().iter().map(ranges).collect();
    assert_eq!(found, [(0, 100, 0, 5000), (100, 250, 5000, 8192)]);
    assert!(table.spans().iter().all(|span| span.restart == Restart::ZstdFrame));
    assert_eq!(table.compressed_len(), 300);
}

#[test]
fn restarts_that_make_no_spans_are_refused() {
    fn check(parts: Parts, expected: SpanError) {
        let refused = Ztoc::from_parts(parts).unwrap_err();
        assert_eq!(refused.reason, BuildError::Spans(expected));
    }
    let non_monotonic = |span| SpanError::NonMonotonic { span };
    check(parts(512, 9, frames(&[(0, 0)]), 2), SpanError::Count { spans: 1, digests: 2 });
    check(parts(512, 9, frames(&[(0, 1)]), 1), SpanError::Start { output: 1 });
    check(parts(512, 9, frames(&[(0, 0), (0, 5)]), 2), non_monotonic(0));
    check(parts(512, 9, frames(&[(0, 0), (5, 0)]), 2), non_monotonic(0));
    check(parts(512, 9, frames(&[(0, 0), (5, 9), (10, 20)]), 3), non_monotonic(2));
    check(parts(512, 9, frames(&[(0, 0), (7, 9), (5, 20)]), 3), non_monotonic(1));
    let cut = |span_size| Restarts::Uncompressed { span_size };
    check(parts(512, 9, cut(4), 3), SpanError::Size { expected: 512, found: 9 });
    check(parts(512, 1024, cut(100), 3), SpanError::Count { spans: 11, digests: 3 });
    let zero = Ztoc::from_parts(parts(512, 512, cut(0), 1)).unwrap_err();
    assert!(matches!(zero.reason, BuildError::Spans(SpanError::Encoding(_))));
}

#[test]
fn a_ztoc_beyond_its_offsets_is_refused() {
    let checkpoint = |number: u64| Checkpoint {
        input: crate::CompressedOffset(10 + number),
        output: crate::UncompressedOffset(number),
        bits: 0,
        window: Vec::new(),
    };
    let checkpoints = (0..65_600).map(checkpoint).collect();
    let restarts = Restarts::Gzip { span_size: 0, checkpoints };
    let built = Ztoc::from_parts(parts(1 << 20, 1 << 20, restarts, 0));
    assert_eq!(built.unwrap_err().reason, BuildError::TooLarge { bytes: 12 + 65_600 * 32_785 });
}

#[test]
fn padding_behind_a_plain_tar_makes_no_spans() {
    let ztoc =
        Ztoc::from_parts(parts(1024, 10_240, Restarts::Uncompressed { span_size: 1000 }, 11));
    let table = SpanTable::from_ztoc(&ztoc.unwrap().encode()).unwrap();
    assert_eq!(table.spans().len(), 2);
    assert_eq!((table.uncompressed_len(), table.compressed_len()), (1024, 10_240));
    assert_eq!(table.spans()[1].compressed.end.0, 2000);
}

#[test]
fn one_entry_named_many_times_is_refused() {
    let name = [b'n'; 4096];
    let mut builder = flatbuffer::Builder::with_capacity(0);
    let name = builder.string(&name);
    let kind = builder.string(b"reg");
    let time = builder.string(b"2026-01-01T00:00:00Z");
    let mut entry = builder.table(14);
    entry.offset(0, name);
    entry.offset(1, kind);
    entry.offset(10, time);
    entry.i64(2, 512);
    let entry = entry.finish();
    let metadata = builder.offsets(&[entry; 100]);
    let mut toc = builder.table(1);
    toc.offset(0, metadata);
    let toc = toc.finish();
    let mut root = builder.table(6);
    root.offset(4, toc);
    let root = root.finish();
    let encoded = builder.finish(root);
    let max = encoded.len() * COPIES_MAX;
    assert_eq!(Ztoc::decode(&encoded), Err(ZtocError::TooLarge { max }));
}

mod properties {
    use super::*;
    use crate::Time;
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    fn text(len_max: usize) -> impl Strategy<Value = Vec<u8>> {
        vec(any::<u8>(), 0..len_max)
    }

    fn kinds() -> impl Strategy<Value = (Kind, u8)> {
        let kinds = [
            (Kind::Regular, b'0'),
            (Kind::Hardlink, b'1'),
            (Kind::Symlink, b'2'),
            (Kind::CharDevice, b'3'),
            (Kind::BlockDevice, b'4'),
            (Kind::Directory, b'5'),
            (Kind::Fifo, b'6'),
        ];
        (0..kinds.len()).prop_map(move |index| kinds[index])
    }

    prop_compose! {
        /// A record as decoding gives it, but for its place.
        fn record()(
            (name, link, uname, gname) in (text(300), text(40), text(9), text(9)),
            (kind, typeflag) in kinds(),
            (mode, uid, gid) in (any::<i64>(), any::<u32>(), any::<u32>()),
            (devmajor, devminor) in (any::<i64>(), any::<i64>()),
            seconds in -62_167_219_200_i64..253_402_300_800,
            nanoseconds in 0_u32..1_000_000_000,
            pax in btree_map(text(20), text(60), 0..5),
            size in 0_u64..100_000,
        ) -> Record {
            Record {
                name, kind, typeflag, link, mode, uid: uid.into(), gid: gid.into(), uname, gname,
                mtime: Time { seconds, nanoseconds }, devmajor, devminor,
                pax: pax.into_iter().collect(),
                header: crate::UncompressedOffset(0), data: crate::UncompressedOffset(0),
                size, sparse: None,
            }
        }
    }

    prop_compose! {
        fn ztoc()(
            mut records in vec(record(), 0..20),
            headers in vec(1_u64..5, 20),
            (version, build_tool) in (text(9), text(30)),
            code in 1_i8..=3,
            spans in 0_usize..5,
            checkpoints in text(100),
            compressed_size in 0_u64..1 << 63,
        ) -> Ztoc {
            let mut at = 0;
            for (record, blocks) in records.iter_mut().zip(headers) {
                record.header = crate::UncompressedOffset(at);
                record.data = crate::UncompressedOffset(at + blocks * 512);
                at = (record.data.0 + record.size).next_multiple_of(512);
            }
            Ztoc {
                version, build_tool, compressed_size, uncompressed_size: at + 1024, records,
                compression: Compression::from_code(code).unwrap(),
                span_digests: (0..spans).map(|span| crate::Digest::of(&[span as u8])).collect(),
                checkpoints,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn decoding_undoes_encoding(ztoc in ztoc()) {
            prop_assert_eq!(Ztoc::decode(&ztoc.encode()), Ok(ztoc));
        }

        #[test]
        fn entries_are_lent_in_any_order_of_their_data(
            mut ztoc in ztoc(),
            swaps in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..4),
        ) {
            let count = ztoc.records.len();
            for (one, other) in swaps.into_iter().filter(|_| count > 0) {
                ztoc.records.swap(one.index(count), other.index(count));
            }
            examine(&ztoc.encode());
        }

        /// Damaged zTOCs give an error or a valid value, which then survives the round trip.
        #[test]
        fn damaged_ztocs_never_panic(
            ztoc in ztoc(),
            damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut encoded = ztoc.encode();
            for (at, byte) in damage {
                let at = at.index(encoded.len());
                encoded[at] ^= byte;
            }
            examine(&encoded);
            examine(&encoded[..cut.index(encoded.len())]);
        }

        #[test]
        fn damaged_goldens_never_panic(
            which in any::<prop::sample::Index>(),
            damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        ) {
            let files = ["links-tar.512b", "names-gnu.4096k", "special.4096k", "mix-tar.64k"];
            let file = files[which.index(files.len())];
            let mut encoded = bytes(&format!("ztoc/{file}.ztoc"));
            for (at, byte) in damage {
                // Half of the damage goes to the outer tables at both ends.
                let span = if byte & 1 == 0 { encoded.len() } else { 256 };
                let at = at.index(span);
                encoded[at] ^= byte;
            }
            examine(&encoded);
        }
    }

    /// Whether the zTOC holds or not, entries one by one are those of the whole.
    fn examine_entries(encoded: &[u8]) {
        let Ok(view) = View::new(encoded) else { return };
        let mut lent = Vec::new();
        let seen = view.each_record(|record| {
            lent.push(Record { header: crate::UncompressedOffset(0), ..record.clone() });
            Ok::<_, ()>(())
        });
        match view.records() {
            Ok(mut records) => {
                assert_eq!(seen, Ok(Ok(())));
                records.iter_mut().for_each(|it| it.header = crate::UncompressedOffset(0));
                assert_eq!(lent, records);
            }
            Err(_) => assert!(seen.is_err()),
        }
    }

    fn examine(encoded: &[u8]) {
        examine_entries(encoded);
        if let Ok(ztoc) = Ztoc::decode(encoded) {
            assert_eq!(Ztoc::decode(&ztoc.encode()), Ok(ztoc));
        }
        let Ok(table) = SpanTable::from_ztoc(encoded) else { return };
        let last = table.spans().len().saturating_sub(1);
        for (index, pair) in table.spans().windows(2).enumerate() {
            assert!(index < last);
            assert_eq!(pair[0].uncompressed.end, pair[1].uncompressed.start);
            assert!(pair[0].compressed.start < pair[1].compressed.end);
        }
        for span in table.spans() {
            if let Restart::Deflate { window_at, .. } = span.restart {
                assert!(window_at as usize + WINDOW_LEN <= encoded.len());
            }
        }
    }
}
