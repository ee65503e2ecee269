//! A zTOC that is known saves time and changes nothing.

use std::io::Write as _;

use super::*;
use crate::build::BuildOptions;

/// Spans of the zTOC that is known; a pass without it cuts others.
const SPAN_LEN: u64 = 40_000;

fn gzip(tar: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

/// A tar whose content repeats itself over any distance, so that windows matter.
fn repeating_tar() -> Vec<u8> {
    let mut tar = tar_of(3, 1_500_000);
    let len = tar.len() - 2048;
    let mut random = Random(9);
    let mut at = 40_000;
    while at < len {
        let (back, run) = (1 + random.next() as usize % 30_000, random.next() as usize % 200);
        for to in at..(at + run).min(len) {
            tar[to] = tar[to - back];
        }
        at += 2 * run + 1;
    }
    tar
}

fn ztoc_of(blob: &[u8], span_size: u64) -> Vec<u8> {
    let options = BuildOptions { span_size, ..BuildOptions::default() };
    let mut builder = LayerBuilder::new(options, |_: UncompressedOffset, _: &[u8]| Ok(())).unwrap();
    builder.feed(blob).unwrap();
    let Toc::Lazy(ztoc) = builder.finish().unwrap().toc else { panic!("it has a zTOC") };
    ztoc.encode()
}

/// Get the layer by a zTOC; the zTOC that it has then, and how often its bytes were asked for.
fn get(tar: &[u8], blob: &[u8], known: Vec<u8>, buffer: Buffer) -> (Arc<[u8]>, u64) {
    let root = tempfile::tempdir().unwrap();
    let source = TestBlob::new(blob.to_vec());
    let diff_id = Digest::of(tar);
    let cache = cache(root.path());
    let spec =
        WholeSpec { known: Some(known.into()), buffer, ..spec(source.clone(), Some(diff_id)) };
    let whole = cache.whole(spec).unwrap();
    assert_eq!((whole.diff_id, records(&whole).len()), (diff_id, 1));
    assert_content(&whole, tar);
    let WholeToc::Lazy { ztoc, .. } = &whole.toc else { panic!("it has a zTOC") };
    let passes = (source.wants() as u64 * 10_000).div_ceil(blob.len() as u64 + 10_000);
    // All of it is sound on the disk, too.
    drop(cache);
    source.fail(|_| Fault::Unreachable);
    let again = super::cache(root.path()).whole(super::spec(source, Some(diff_id))).unwrap();
    assert_eq!(again.origin, Origin::Disk);
    assert_content(&again, tar);
    (Arc::clone(ztoc), passes)
}

#[test]
fn the_spans_of_a_known_ztoc_give_the_layer() {
    let tar = repeating_tar();
    let blob = gzip(&tar);
    let known = ztoc_of(&blob, SPAN_LEN);
    for buffer in [Buffer::Memory, Buffer::File] {
        let (ztoc, passes) = get(&tar, &blob, known.clone(), buffer);
        assert!(*ztoc == known[..], "the layer was not decoded by the zTOC that is known");
        assert_eq!(passes, 1);
    }
}

#[test]
fn a_ztoc_that_is_not_the_layers_is_left_aside() {
    let tar = repeating_tar();
    let blob = gzip(&tar);
    let (known, own) = (ztoc_of(&blob, SPAN_LEN), ztoc_of(&blob, 16 << 10));
    let other = ztoc_of(&gzip(&tar_of(8, 1_000_000)), SPAN_LEN);
    // In the middle stand windows, of which most bytes are referred to; near the end, digests.
    let window = known.len() / 2 + 20_000;
    let mut lying = known.clone();
    for byte in &mut lying[window..window + 8000] {
        *byte ^= 0x55;
    }
    let digest = Digest::of(&blob[10..]).to_string();
    let mut misnamed = known.clone();
    let at = known.windows(7).position(|it| it == &digest.as_bytes()[..7]).unwrap() + 10;
    misnamed[at] = if misnamed[at] == b'0' { b'1' } else { b'0' };
    let cut = known[..known.len() - 5].to_vec();
    for (what, wrong) in [
        ("another layer's", other),
        ("one with wrong windows", lying),
        ("one with a wrong digest", misnamed),
        ("a torn one", cut),
        ("none", Vec::new()),
    ] {
        for buffer in [Buffer::Memory, Buffer::File] {
            let (ztoc, passes) = get(&tar, &blob, wrong.clone(), buffer);
            assert!(*ztoc == own[..], "{what}: the zTOC is not that of a pass of its own");
            assert!(passes <= 2, "{what}: read {passes} times");
        }
    }
}

/// The blob itself is wrong: said as without a zTOC, and nothing is kept.
#[test]
fn a_wrong_blob_is_told_from_a_wrong_ztoc() {
    let tar = repeating_tar();
    let blob = gzip(&tar);
    let known = ztoc_of(&blob, SPAN_LEN);
    let root = tempfile::tempdir().unwrap();
    let mut changed = blob.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    let source = Renamed(TestBlob::new(changed), Digest::of(&blob));
    let spec = spec(Arc::new(source), Some(Digest::of(&tar)));
    let spec = WholeSpec { known: Some(known.into()), ..spec };
    let error = cache(root.path()).whole(spec).err().unwrap();
    let is_named = matches!(error, CacheError::Condemned { .. } | CacheError::Build { .. });
    assert!(is_named, "{error}");
    assert_nothing_left(root.path());
}
