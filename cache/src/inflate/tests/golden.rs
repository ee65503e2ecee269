//! Every span of every zTOC that the peers made, from its compressed range alone.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::*;

fn fixtures(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixtures(name)).unwrap()).unwrap()
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap()
}

/// The spans of a zTOC's description, and the bits of each.
fn spans_of(ztoc: &Value) -> Vec<Span> {
    let spans = ztoc["spans"].as_array().unwrap().iter();
    spans
        .enumerate()
        .map(|(index, span)| {
            let restart = match &ztoc["checkpoints"] {
                Value::Null => Restart::Stored,
                points => {
                    Restart::Deflate { bits: number(&points[index], "bits") as u8, window_at: 0 }
                }
            };
            let at = |key| number(span, key);
            Span {
                compressed: CompressedOffset(at("start_compressed"))
                    ..CompressedOffset(at("end_compressed")),
                uncompressed: UncompressedOffset(at("start_uncompressed"))
                    ..UncompressedOffset(at("end_uncompressed")),
                digest: span["digest"].as_str().unwrap().parse().unwrap(),
                restart,
            }
        })
        .collect()
}

fn end_of(spans: &[Span], index: usize) -> End {
    match spans.get(index + 1).map(|next| next.restart) {
        None => End::Blob,
        Some(Restart::Deflate { bits, .. }) => End::Inside(bits),
        Some(_) => End::Inside(0),
    }
}

/// Call `check` with the blob, its tar, its spans, and the peer's digests of their content.
fn for_each_layer(mut check: impl FnMut(&str, &[u8], &[u8], &[Span], &[Value])) {
    let mut count = 0;
    for row in json("ztoc/ztocs.json").as_array().unwrap() {
        if row.get("error").is_some() {
            continue;
        }
        let name = row["json"].as_str().unwrap();
        let ztoc = json(&format!("ztoc/{name}"));
        let layer = row["layer"].as_str().unwrap();
        let blob = fs::read(fixtures(&format!("layers/{layer}"))).unwrap();
        let tar = if layer.ends_with(".gz") { gunzip(&blob) } else { blob.clone() };
        check(name, &blob, &tar, &spans_of(&ztoc), ztoc["spans"].as_array().unwrap());
        count += 1;
    }
    assert!(count > 60, "only {count} golden zTOCs");
}

#[test]
fn every_golden_span_inflates_alone() {
    let mut decoder = Decoder::new(Buffers::new(8 << 20));
    for_each_layer(|name, blob, tar, spans, expected| {
        for headroom in [HEADROOM, 7, 0] {
            let mut whole = Vec::new();
            for (index, span) in spans.iter().enumerate() {
                let given = span_of(blob, span, index, end_of(spans, index), headroom);
                let window = window_before(tar, span.uncompressed.start.0);
                let inflated = decoder.inflate(given, Some(&window)).unwrap();
                if let Some(digest) = expected[index]["uncompressed_sha256"].as_str() {
                    let found = Digest::of(inflated.bytes()).hex().to_string();
                    assert_eq!(found, digest, "{name} span {index} headroom {headroom}");
                }
                whole.extend_from_slice(inflated.bytes_and_tail());
            }
            assert!(whole == tar, "{name}: the spans and the tail are not the layer");
        }
    });
}

/// Both decoders must agree, and the fast one must be the one that does the work.
#[test]
fn both_decoders_give_the_same() {
    let buffers = Buffers::new(8 << 20);
    let mut gzip = gzip::Gzip::default();
    for_each_layer(|name, blob, tar, spans, _| {
        for (index, span) in spans.iter().enumerate() {
            let Restart::Deflate { bits, .. } = span.restart else { continue };
            let end = end_of(spans, index);
            let VerifiedSpan { bytes, headroom, .. } = span_of(blob, span, index, end, HEADROOM);
            let start = span.uncompressed.start.0;
            let window = (start > 0).then(|| window_before(tar, start));
            let edges = Edges { bits, end, window: window.as_deref() };
            let wanted =
                wanted(span.uncompressed.clone(), span.restart, end, bytes.len() as u64).unwrap();
            let streamed = gzip
                .streamed(&bytes[headroom..], edges, wanted, &buffers)
                .unwrap_or_else(|fault| panic!("{name} span {index}: {fault}"));
            let before = bytes.clone();
            let splice = splice::Splice::new(bytes, headroom, edges).ok().unwrap();
            let whole = gzip.whole(&splice, end, wanted, &buffers).unwrap();
            let Some(whole) = whole else {
                // Only a long tail may need the other decoder.
                let tail_len = streamed.len - wanted.span_len;
                assert!(tail_len > TAIL_BYTES_EXPECTED, "{name} span {index} needs streaming");
                continue;
            };
            let content =
                |output: &Output| output.buffer[output.skip..output.skip + output.len].to_vec();
            assert!(content(&whole) == content(&streamed), "{name} span {index}");
            let (restored, at) = splice.into_data();
            assert!(restored[at..] == before[headroom..], "{name} span {index}: bytes changed");
        }
    });
}
