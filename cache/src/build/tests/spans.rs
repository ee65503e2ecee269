//! By a zTOC that is known, the same comes out; by one that is wrong, nothing does.

use std::path::Path;

use super::*;
use crate::inflate::{Pool, PoolOptions};

const SPAN_LEN: u64 = 64 << 10;

fn pool() -> Pool {
    Pool::new(&PoolOptions::for_threads(3)).unwrap()
}

/// What comes out of `blob` by `encoded`, and the tar as it was written.
fn by_spans(
    pool: &Pool,
    blob: &[u8],
    encoded: &[u8],
    piece_len: usize,
) -> Result<(Built, Vec<u8>), SpansError> {
    let tar = Arc::new(Mutex::new(Vec::new()));
    let sink = {
        let tar = Arc::clone(&tar);
        move |at: UncompressedOffset, bytes: &[u8]| {
            let (mut tar, at) = (tar.lock(), at.0 as usize);
            let len = tar.len().max(at + bytes.len());
            tar.resize(len, 0);
            tar[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        }
    };
    let known = KnownToc::new(encoded.into(), blob.len() as u64)?;
    let layer = Digest::of(blob);
    let mut builder =
        SpanBuilder::new(layer, known, pool, Priority::OnDemand, Arc::new(sink)).unwrap();
    for piece in blob.chunks(piece_len) {
        builder.feed(piece)?;
    }
    let built = builder.finish()?;
    let tar = std::mem::take(&mut *tar.lock());
    Ok((built, tar))
}

fn layers() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/layers"));
    let mut layers = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|it| it == "gz" || it == "zst") {
            layers.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
    layers.sort();
    layers
}

/// A layer in one go, with its zTOC if it has one.
fn in_order(blob: &[u8]) -> Option<(Built, Vec<u8>, Vec<u8>)> {
    let options = BuildOptions { span_size: SPAN_LEN, ..BuildOptions::default() };
    let (built, tar) = build(blob, options, blob.len()).ok()?;
    let Toc::Lazy(ztoc) = &built.toc else { return None };
    let encoded = ztoc.encode();
    Some((built, tar, encoded))
}

#[test]
fn all_comes_out_as_in_order() {
    let (pool, mut count) = (pool(), 0);
    for (name, blob) in layers() {
        let Some((expected, tar, encoded)) = in_order(&blob) else { continue };
        for piece_len in [blob.len(), 30_011, 509] {
            let (found, written) = match by_spans(&pool, &blob, &encoded, piece_len) {
                Ok(found) => found,
                Err(SpansError::Other(reason)) => {
                    assert!(
                        reason.contains("side by side") || reason.contains("end at"),
                        "{reason}"
                    );
                    continue;
                }
                Err(error) => panic!("{name}: {error}"),
            };
            assert!(written == tar, "{name} in pieces of {piece_len}");
            assert_eq!(found.toc.records().len(), expected.toc.records().len());
            let Toc::Lazy(ztoc) = &found.toc else { panic!("{name} has no zTOC") };
            assert!(ztoc.encode() == encoded, "{name} has another zTOC");
            assert_eq!(
                (found.blob_digest, found.blob_size, found.diff_id, found.uncompressed_len),
                (expected.blob_digest, blob.len() as u64, expected.diff_id, tar.len() as u64)
            );
            assert_eq!(
                (found.archive, found.span_sums),
                (expected.archive, expected.span_sums.clone())
            );
            count += 1;
        }
    }
    assert!(count > 30, "only {count} layers");
}

/// Whatever is wrong with a zTOC or a blob: an error, or what its own digests deny.
#[test]
fn by_a_wrong_ztoc_nothing_is_taken_for_the_layer() {
    let pool = pool();
    let blob = layers().into_iter().find(|(name, _)| name.contains("mix-gzip6")).unwrap().1;
    let (expected, tar, encoded) = in_order(&blob).unwrap();
    let (mut refused, mut denied, mut harmless) = (0, 0, 0);
    for at in (0..encoded.len()).step_by(encoded.len() / 700) {
        let mut wrong = encoded.clone();
        wrong[at] ^= 0x10;
        match by_spans(&pool, &blob, &wrong, 10_000) {
            Err(_) => refused += 1,
            Ok((built, _)) if built.diff_id != expected.diff_id => denied += 1,
            // A byte of a window that no span refers to.
            Ok((_, written)) => {
                assert!(written == tar);
                harmless += 1;
            }
        }
    }
    assert!(refused > 0 && denied > 0, "{refused} refused, {denied} denied, {harmless} harmless");
    for at in (0..blob.len()).step_by(blob.len() / 20) {
        let mut wrong = blob.clone();
        wrong[at] ^= 0x10;
        let found = by_spans(&pool, &wrong, &encoded, 10_000);
        assert!(found.is_err() || at < 10 || at + 8 >= blob.len(), "byte {at} changed");
    }
    let other = layers().into_iter().find(|(name, _)| name.contains("mix-gzip9")).unwrap().1;
    let (_, _, other) = in_order(&other).unwrap();
    assert!(by_spans(&pool, &blob, &other, 10_000).is_err(), "a zTOC of another layer");
}

#[test]
fn a_disk_that_refuses_is_no_fault_of_the_ztoc() {
    let pool = pool();
    let blob = layers().into_iter().find(|(name, _)| name.contains("mix-gzip6")).unwrap().1;
    let (_, _, encoded) = in_order(&blob).unwrap();
    let known = KnownToc::new(encoded.into(), blob.len() as u64).unwrap();
    let full = |_: UncompressedOffset, _: &[u8]| Err(io::Error::from(io::ErrorKind::StorageFull));
    let layer = Digest::of(&blob);
    let mut builder =
        SpanBuilder::new(layer, known, &pool, Priority::OnDemand, Arc::new(full)).unwrap();
    let error = builder.feed(&blob).and_then(|()| builder.finish().map(drop)).unwrap_err();
    assert!(matches!(error, SpansError::Build(BuildError::Sink { .. })), "{error}");
}
