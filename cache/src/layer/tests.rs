mod blob;
mod crash;
mod disk;
mod follow;
mod golden;

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::open::{JOURNAL, LAYER, TAIL, ZTOC};
use super::*;
use crate::CacheError;
use crate::testing::{Fault, Place, Random, TestBlob, TestLayer, fill, read, wait_until};

const SPAN: usize = 4096;

fn wait_complete(layer: &Layer) {
    let started = std::time::Instant::now();
    while layer.complete_file().is_none() {
        let lives: Vec<_> = (0..layer.lives.count()).map(|span| layer.lives.of(span)).collect();
        let verifying = layer.verifying.load(Ordering::Acquire);
        let status = layer.status();
        assert!(
            started.elapsed() < crate::testing::PATIENCE,
            "never complete: {status:?} {lives:?} verifying {verifying}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn flip(path: &std::path::Path, at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn reads_what_the_blob_holds_and_fetches_each_span_once() {
    let root = tempfile::tempdir().unwrap();
    let place = Place::new(root.path());
    let test = TestLayer::new(1, 10 * SPAN + 100, SPAN, 60);
    let layer = test.open(&place);
    assert_eq!(layer.len(), (10 * SPAN + 40).next_multiple_of(512) as u64);
    assert!(layer.read_present(UncompressedOffset(0), &mut [0; 10]).unwrap().is_none());

    assert_eq!(read(&layer, 5000, 10_000).unwrap(), &test.content()[5000..15_000]);
    assert_eq!(test.blob.wants(), 3);
    let all = read(&layer, 0, 1 << 20).unwrap();
    let (content, padding) = all.split_at(test.content().len());
    assert_eq!(content, test.content());
    assert!(all.len() as u64 == layer.len() && padding.iter().all(|byte| *byte == 0));
    assert_eq!(test.blob.wants(), 11);
    assert!(read(&layer, layer.len(), 10).unwrap().is_empty());

    wait_complete(&layer);
    let status = layer.status();
    assert_eq!((status.spans_present, status.verification), (11, Verification::Verified));
    assert_eq!(status.fetched_bytes, test.blob.bytes.len() as u64);
    assert!(layer.usage_bytes() >= layer.len());
}

#[test]
fn its_file_is_lent_for_ranges_that_stand_there() {
    let root = tempfile::tempdir().unwrap();
    let test = TestLayer::new(2, 10 * SPAN, SPAN, 0);
    let layer = test.open(&Place::new(root.path()));
    let lends = |start, end| {
        let range = UncompressedOffset(start)..UncompressedOffset(end);
        layer.present_file(range).is_some()
    };
    assert!(!lends(0, 10));
    let span = SPAN as u64;
    fill(&layer, span..3 * span).unwrap();
    wait_until("the write of what was read", || lends(span, 3 * span));
    assert!(!lends(span - 1, 3 * span) && !lends(span, 3 * span + 1));
    fill(&layer, 0..layer.len()).unwrap();
    wait_until("the write of the rest", || lends(0, layer.len()));
    assert!(!lends(layer.len() - 1, layer.len() + 1));
    std::fs::File::options().write(true).open(layer.layer_path()).unwrap().set_len(100).unwrap();
    assert!(read(&layer, 0, 10 * SPAN).unwrap() == test.content());
    assert!(!lends(0, 10), "what was cut is in memory");
}

#[test]
fn many_readers_of_a_faulty_source_see_only_right_bytes() {
    let root = tempfile::tempdir().unwrap();
    let place = Place::new(root.path());
    for seed in 0..4 {
        let test = TestLayer::new(100 + seed, 300 * SPAN, SPAN, 0);
        let mut random = Random(seed + 7);
        test.blob.fail(move |_| match random.below(10) {
            0 => Fault::Unreachable,
            1 => Fault::Flip,
            2 => Fault::Lost,
            _ => Fault::None,
        });
        let layer = test.open(&place);
        std::thread::scope(|scope| {
            for reader in 0..8 {
                let (layer, test) = (&layer, &test);
                scope.spawn(move || {
                    let mut random = Random(seed * 100 + reader + 1);
                    for _ in 0..200 {
                        let at = random.below(300 * SPAN as u64) as usize;
                        let len = random.below(3 * SPAN as u64) as usize + 1;
                        let len = len.min(test.content().len() - at);
                        // Errors are allowed here; other bytes never.
                        if let Ok(found) = read(layer, at as u64, len) {
                            assert!(found == test.content()[at..at + len], "seed {seed}, at {at}");
                        }
                    }
                });
            }
        });
        test.blob.fail(|_| Fault::None);
        assert!(read(&layer, 0, 300 * SPAN).unwrap() == test.content(), "seed {seed}");
        wait_complete(&layer);
    }
    assert_eq!(place.works.bytes_inflight(), 0);
    assert_eq!(place.works.demand(), 0);
}

#[test]
fn concurrent_readers_of_a_good_source_cause_one_fetch_a_span() {
    let root = tempfile::tempdir().unwrap();
    let place = Place::new(root.path());
    let mut random = Random(5);
    let bytes = (0..100 * SPAN).map(|_| random.next() as u8).collect();
    let blob = TestBlob::with_delay(bytes, Duration::from_millis(1));
    let test = TestLayer::of(blob, SPAN, 0);
    let layer = test.open(&place);
    layer.prefetch(UncompressedOffset(0)..UncompressedOffset(1 << 20), Priority::Background);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for at in (0..100 * SPAN).step_by(SPAN / 2) {
                    let found = read(&layer, at as u64, 100).unwrap();
                    assert_eq!(found, &test.content()[at..at + 100]);
                }
            });
        }
    });
    assert_eq!(test.blob.wants(), 100);
}

#[test]
fn faults_reach_the_reader_and_pass() {
    let root = tempfile::tempdir().unwrap();
    let place = Place::new(root.path());
    let test = TestLayer::new(2, 4 * SPAN, SPAN, 0);
    let layer = test.open(&place);
    let check = |fault, wants: usize, expected: fn(&ReadError) -> bool| {
        let before = test.blob.wants();
        test.blob.fail(move |_| fault);
        let error = read(&layer, 0, 10).unwrap_err();
        assert!(expected(&error), "{fault:?}: {error:?}");
        assert_eq!(test.blob.wants() - before, wants, "{fault:?}");
    };
    check(Fault::Unreachable, 1, |error| matches!(error, ReadError::Unavailable(_)));
    check(Fault::Flip, 2, |error| matches!(error, ReadError::Corrupt(_)));
    check(Fault::Lost, 1, |error| matches!(error, ReadError::Unavailable(_)));
    test.blob.fail(|_| Fault::None);
    assert_eq!(read(&layer, 0, 10).unwrap(), &test.content()[..10]);
}

#[test]
fn late_failure_is_not_waited_for_again() {
    let root = tempfile::tempdir().unwrap();
    let place = Place::new(root.path());
    let delay = Duration::from_millis(2100);
    let test = TestLayer::of(TestBlob::with_delay(vec![7; SPAN], delay), SPAN, 0);
    let layer = test.open(&place);
    test.blob.fail(|_| Fault::Unreachable);
    let begun = Instant::now();
    read(&layer, 0, 10).unwrap_err();
    assert!(begun.elapsed() >= delay);
    // as the kernel does: the same again, in smaller pieces
    for at in 0..10 {
        let error = read(&layer, at, 1).unwrap_err();
        assert!(matches!(error, ReadError::Unavailable(_)), "{error:?}");
    }
    assert_eq!(test.blob.wants(), 1);
    assert!(begun.elapsed() < delay * 2, "{:?}", begun.elapsed());
    // and a program that tries later is served
    test.blob.fail(|_| Fault::None);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(read(&layer, 0, 10).unwrap(), [7; 10]);
}

#[test]
fn one_flipped_reply_costs_only_a_second_fetch() {
    let root = tempfile::tempdir().unwrap();
    let test = TestLayer::new(3, SPAN, SPAN, 0);
    let layer = test.open(&Place::new(root.path()));
    let mut first = true;
    test.blob.fail(move |_| if std::mem::take(&mut first) { Fault::Flip } else { Fault::None });
    assert_eq!(read(&layer, 0, SPAN).unwrap(), test.content());
    assert_eq!(test.blob.wants(), 2);
}

#[test]
fn closing_answers_those_who_wait() {
    let root = tempfile::tempdir().unwrap();
    let place = Place::new(root.path());
    let test = TestLayer::new(4, SPAN, SPAN, 0);
    test.blob.fail(|_| Fault::Stall);
    let layer = test.open(&place);
    let (sender, receiver) = std::sync::mpsc::channel();
    let all = UncompressedOffset(0)..UncompressedOffset(SPAN as u64);
    layer.fill(all, Box::new(move |result| sender.send(result).unwrap()));
    drop(layer);
    assert!(matches!(receiver.try_recv().unwrap(), Err(ReadError::Unavailable(_))));
    assert_eq!(place.works.demand(), 0);
}

#[test]
fn what_was_read_is_not_fetched_again_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let test = TestLayer::new(6, 8 * SPAN, SPAN, 0);
    let layer = test.open(&Place::new(root.path()));
    fill(&layer, 0..3 * SPAN as u64).unwrap();
    drop(layer);
    let layer = test.open(&Place::new(root.path()));
    assert!(
        layer.read_present(UncompressedOffset(0), &mut [0]).unwrap().is_none(),
        "unchecked yet"
    );
    assert_eq!(read(&layer, 0, 3 * SPAN).unwrap(), &test.content()[..3 * SPAN]);
    assert_eq!(test.blob.wants(), 3);
    assert_eq!(read(&layer, 0, 8 * SPAN).unwrap(), test.content());
    assert_eq!(test.blob.wants(), 8);
    wait_complete(&layer);
    wait_until("the seal", || layer.writer.lock().fill.is_none());
    drop(layer);
    // Complete, durable, unchanged: believed at once.
    let layer = test.open(&Place::new(root.path()));
    assert!(layer.complete_file().is_some());
    assert_eq!(read(&layer, 0, 8 * SPAN).unwrap(), test.content());
    assert_eq!(test.blob.wants(), 8);
}

#[test]
fn a_complete_layer_without_seal_is_verified_again_at_once() {
    let root = tempfile::tempdir().unwrap();
    let test = TestLayer::new(7, 8 * SPAN + 10, SPAN, 5);
    let mut spec = test.spec();
    spec.diff_id = None;
    let layer = test.try_open(&Place::new(root.path()), spec).unwrap();
    fill(&layer, 0..layer.len()).unwrap();
    assert_eq!(layer.status().verification, Verification::Unverifiable);
    assert!(layer.complete_file().is_none());
    drop(layer);
    let layer = test.open(&Place::new(root.path()));
    wait_complete(&layer);
    assert_eq!(test.blob.wants(), 9);
}

/// Spoil the files of a half-filled and of a complete layer: whatever happens, right bytes.
#[test]
fn no_spoiled_file_yields_wrong_bytes() {
    for (filled, seal) in [(5, false), (8, true)] {
        let names = [LAYER, JOURNAL, ZTOC, TAIL];
        for (case, name) in (0..64u64).zip(names.into_iter().cycle()) {
            let root = tempfile::tempdir().unwrap();
            let test = TestLayer::new(8, 8 * SPAN, SPAN, 100);
            let layer = test.open(&Place::new(root.path()));
            fill(&layer, 0..(filled * SPAN - 200) as u64).unwrap();
            if seal {
                wait_complete(&layer);
                wait_until("the seal", || layer.writer.lock().fill.is_none());
            }
            let path = layer.claim.file(name);
            drop(layer);
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            let mut random = Random(case + 1);
            let at = random.below(metadata.len());
            if random.below(3) == 0 {
                std::fs::File::options().write(true).open(&path).unwrap().set_len(at).unwrap();
            } else {
                flip(&path, at);
            }
            let layer = test.open(&Place::new(root.path()));
            let found = read(&layer, 0, test.content().len()).unwrap();
            assert!(found == test.content(), "case {case}: {name} spoiled at {at}, sealed {seal}");
            wait_complete(&layer);
        }
    }
}

#[test]
fn a_span_that_rots_under_us_is_fetched_again_before_the_whole_is_shown() {
    let root = tempfile::tempdir().unwrap();
    let test = TestLayer::new(9, 8 * SPAN, SPAN, 0);
    let layer = test.open(&Place::new(root.path()));
    fill(&layer, 0..7 * SPAN as u64).unwrap();
    flip(&layer.layer_path(), 3 * SPAN as u64);
    fill(&layer, 0..8 * SPAN as u64).unwrap();
    wait_complete(&layer);
    assert_eq!(read(&layer, 0, 8 * SPAN).unwrap(), test.content());
    assert_eq!(test.blob.wants(), 9);
    assert!(layer.status().disk_error.unwrap().contains("spans [3]"));
}

#[test]
fn a_ztoc_that_lied_is_found_out_and_remembered() {
    let root = tempfile::tempdir().unwrap();
    let test = TestLayer::new(10, 8 * SPAN, SPAN, 0);
    let mut spec = test.spec();
    spec.diff_id = Some(Digest::of(b"something else"));
    let place = Place::new(root.path());
    let layer = test.try_open(&place, spec.clone()).unwrap();
    fill(&layer, 0..8 * SPAN as u64).unwrap();
    wait_until("the verdict", || matches!(layer.status().verification, Verification::Failed(_)));
    assert!(matches!(read(&layer, 0, 1), Err(ReadError::Corrupt(_))));
    assert!(matches!(fill(&layer, 0..1), Err(ReadError::Corrupt(_))));
    assert!(layer.complete_file().is_none());
    wait_until("removal", || !layer.layer_path().exists());
    let path = layer.claim.path().to_path_buf();
    drop(layer);
    let reason = super::open::condemned_reason(&path).unwrap();
    assert!(reason.contains(&Digest::of(b"something else").to_string()), "{reason}");
    let again = test.try_open(&place, spec.clone());
    assert!(matches!(again, Err(CacheError::Condemned { .. })));
    // Another zTOC is another chance.
    spec.ztoc_digest = Digest::of(b"another");
    spec.diff_id = test.spec().diff_id;
    let layer = test.try_open(&place, spec).unwrap();
    assert_eq!(read(&layer, 0, SPAN).unwrap(), &test.content()[..SPAN]);
}

#[test]
fn who_comes_second_uses_a_private_copy_until_the_layer_is_complete() {
    let root = tempfile::tempdir().unwrap();
    let test = TestLayer::new(11, 8 * SPAN, SPAN, 0);
    // Two caches of one process contend as two processes do: locks belong to open files.
    let (first, second) = (Place::new(root.path()), Place::new(root.path()));
    let owner = test.open(&first);
    let private = test.open(&second);
    assert_eq!((owner.role(), private.role()), (Role::Owner, Role::Private));
    fill(&owner, 0..2 * SPAN as u64).unwrap();
    assert_eq!(read(&private, 0, 8 * SPAN).unwrap(), test.content());
    wait_complete(&private);
    let copy = private.claim.path().to_path_buf();
    drop(private);
    assert!(!copy.exists());

    fill(&owner, 0..8 * SPAN as u64).unwrap();
    wait_complete(&owner);
    wait_until("the seal", || owner.writer.lock().fill.is_none());
    let wants = test.blob.wants();
    let reader = test.open(&second);
    assert!(matches!(reader.role(), Role::Reader | Role::Owner));
    assert_eq!(read(&reader, 0, 8 * SPAN).unwrap(), test.content());
    assert_eq!(test.blob.wants(), wants);
    assert!(reader.complete_file().is_some());
}

#[test]
fn a_ztoc_of_another_layer_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let place = Place::new(root.path());
    let (one, other) = (TestLayer::new(12, 8 * SPAN, SPAN, 0), TestLayer::new(13, SPAN, SPAN, 0));
    let spec = LayerSpec { ztoc: other.spec().ztoc, ..one.spec() };
    let error = one.try_open(&place, spec).err().unwrap();
    assert!(matches!(error, CacheError::BadZtoc { .. }), "{error}");
}
