//! The compressed blob beside a layer that came lazily.

use crate::layer::open::COMPRESSED;

use super::*;

const GO_ON: &dyn Fn() -> bool = &|| false;

fn blob_of(layer: &Layer) -> Vec<u8> {
    std::fs::read(layer.complete_blob(GO_ON).unwrap()).unwrap()
}

#[test]
fn what_was_read_is_not_fetched_again() {
    let root = tempfile::tempdir().unwrap();
    let place = Place::new(root.path());
    let test = TestLayer::new(31, 20 * SPAN + 100, SPAN, 60);
    let layer = test.open(&place);
    layer.keep_blob().unwrap();
    read(&layer, 0, 7 * SPAN).unwrap();
    layer.prefetch(UncompressedOffset(0)..UncompressedOffset(1 << 20), Priority::Background);
    wait_complete(&layer);
    assert_eq!(test.blob.wants(), 21);
    assert_eq!(blob_of(&layer), *test.blob.bytes);
    assert_eq!(test.blob.wants(), 21, "the blob came by the spans");
    layer.forget_blob();
    assert!(!layer.claim.file(COMPRESSED).exists());
}

#[test]
fn what_an_earlier_process_left_counts_by_its_digests() {
    let root = tempfile::tempdir().unwrap();
    let test = TestLayer::new(32, 20 * SPAN, SPAN, 0);
    {
        let place = Place::new(root.path());
        let layer = test.open(&place);
        layer.keep_blob().unwrap();
        read(&layer, 0, 12 * SPAN).unwrap();
        flip(&layer.claim.file(COMPRESSED), 3 * SPAN as u64);
    }
    let place = Place::new(root.path());
    let layer = test.open(&place);
    layer.keep_blob().unwrap();
    read(&layer, 0, 20 * SPAN).unwrap();
    wait_complete(&layer);
    let before = test.blob.wants();
    assert_eq!(blob_of(&layer), *test.blob.bytes);
    let wanted = test.blob.wanted.lock();
    assert_eq!(wanted.len(), before + 1, "the rest is believed");
    assert_eq!(wanted[before], 3 * SPAN as u64..4 * SPAN as u64);
}

#[test]
fn a_layer_that_was_complete_before_anybody_wanted_its_blob_is_fetched_once() {
    let root = tempfile::tempdir().unwrap();
    let place = Place::new(root.path());
    let test = TestLayer::new(33, 20 * SPAN, SPAN, 0);
    let layer = test.open(&place);
    read(&layer, 0, 20 * SPAN).unwrap();
    wait_complete(&layer);
    test.blob.wanted.lock().clear();
    assert_eq!(blob_of(&layer), *test.blob.bytes);
    let bytes: u64 = test.blob.wanted.lock().iter().map(|range| range.end - range.start).sum();
    assert_eq!(bytes, test.blob.bytes.len() as u64);
}

/// What lies outside of spans has no digest of its own: only the whole shows it.
#[test]
fn wrong_bytes_are_never_handed_on() {
    let root = tempfile::tempdir().unwrap();
    let place = Place::new(root.path());
    let test = TestLayer::new(34, 8 * SPAN, SPAN, 0);
    let layer = test.open(&place);
    read(&layer, 0, 8 * SPAN).unwrap();
    wait_complete(&layer);
    let mut count = 0;
    test.blob.fail(move |_| {
        count += 1;
        if count == 1 { Fault::Flip } else { Fault::None }
    });
    assert_eq!(blob_of(&layer), *test.blob.bytes, "the second try has the right ones");
    layer.forget_blob();
    test.blob.fail(|_| Fault::Flip);
    let error = layer.complete_blob(GO_ON).unwrap_err();
    assert_eq!(error.class(), spanfs_fetch::Class::Corrupt, "{error}");
    assert!(!layer.claim.file(COMPRESSED).exists());
}

#[test]
fn whoever_stops_it_does_not_wait() {
    let root = tempfile::tempdir().unwrap();
    let place = Place::new(root.path());
    let test = TestLayer::new(35, 8 * SPAN, SPAN, 0);
    let layer = test.open(&place);
    read(&layer, 0, 8 * SPAN).unwrap();
    wait_complete(&layer);
    test.blob.fail(|_| Fault::Stall);
    let started = Instant::now();
    let stop = || started.elapsed() > Duration::from_millis(100);
    let error = layer.complete_blob(&stop).unwrap_err();
    assert!(matches!(error, CacheError::Stopped { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// Readers come before the blob: a disk without room keeps the layer, and lets the blob go.
#[test]
fn a_full_disk_costs_the_blob_alone() {
    let Some(disk) = crate::testing::Tmpfs::new(c"size=400k") else { return };
    let place = Place::new(disk.path());
    let test = TestLayer::new(36, 60 * SPAN, SPAN, 0);
    let layer = test.open(&place);
    layer.keep_blob().unwrap();
    assert!(read(&layer, 0, 60 * SPAN).unwrap() == test.content());
    layer.prefetch(UncompressedOffset(0)..UncompressedOffset(1 << 20), Priority::Background);
    assert!(!layer.claim.file(COMPRESSED).exists());
    assert!(layer.status().disk_error.is_some());
}
