mod crash;
mod disk;
mod file;
mod golden;
mod known;
mod mirror;
mod program;

use spanfs_fetch::{Class, Ticket, Want};
use spanfs_layer::UncompressedOffset;
use spanfs_layer::ztoc::View;

use super::*;
use crate::build::{LayerBuilder, SPAN_SIZE};
use crate::testing::{Fault, Random, TestBlob, fill, read, wait_until};
use crate::{CacheOptions, Verification};

/// Never stopped, watched by nobody; chunks small enough that every layer has some.
fn spec(blob: Arc<dyn Blob>, diff_id: Option<Digest>) -> WholeSpec<'static> {
    static NEVER: AtomicBool = AtomicBool::new(false);
    let stream = StreamOptions { chunk_bytes: 10_000, chunks_max: 4, ..WholeSpec::stream() };
    let build = BuildOptions { span_size: 16 << 10, ..BuildOptions::default() };
    WholeSpec {
        blob,
        diff_id,
        local: None,
        build,
        known: None,
        stream,
        stop: &NEVER,
        progress: &|_| {},
        buffer: Buffer::Memory,
        unpacks: &[],
        keep: None,
        ztoc: true,
        durable: Durable::Yes,
        program: None,
    }
}

fn cache(root: &Path) -> Cache {
    Cache::open(CacheOptions::new(root.to_path_buf(), 2)).unwrap()
}

/// A tar of one file of random bytes.
fn tar_of(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed + 1);
    let mut header = [0_u8; 512];
    header[..4].copy_from_slice(b"file");
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{len:011o}\0").as_bytes());
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend((0..len).map(|_| random.next() as u8));
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

/// All that a content holds.
fn bytes_of(content: &dyn Content) -> Vec<u8> {
    let mut bytes = vec![0xee; content.len() as usize];
    let count = content.read_present(UncompressedOffset(0), &mut bytes).unwrap();
    assert_eq!(count, Some(bytes.len()), "every byte is there");
    bytes
}

/// The content is this tar, cut or filled up to whole sectors.
fn assert_content(whole: &Whole, tar: &[u8]) {
    let bytes = bytes_of(&*whole.content());
    let (found, padding) = bytes.split_at(bytes.len().min(tar.len()));
    assert!(found == &tar[..found.len()] && padding.iter().all(|byte| *byte == 0));
    assert!(whole.content().complete_file().is_some());
    if let WholeToc::Lazy { layer, ztoc } = &whole.toc {
        assert_eq!(Digest::of(ztoc), *layer.ztoc_digest());
        let status = layer.status();
        assert_eq!(status.spans_present, status.span_count);
        assert_eq!(status.verification, Verification::Verified);
    }
}

/// Its entries in archive order.
fn records(whole: &Whole) -> Vec<Record> {
    match &whole.toc {
        WholeToc::Lazy { ztoc, .. } => View::new(ztoc).unwrap().records().unwrap(),
        WholeToc::Never { records, .. } => records.to_vec(),
    }
}

/// Nothing is there but locks: other tests start programs, which may hold on to a directory.
fn assert_nothing_left(root: &Path) {
    let entries = |path: &Path| -> Vec<_> {
        let entries = std::fs::read_dir(path).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let folders = ["layers/sha256", "layers/sha512", "private"];
    let files = folders.into_iter().flat_map(|folder| entries(&root.join(folder)));
    let files: Vec<_> = files.flat_map(|directory| entries(&directory)).collect();
    let is_lock =
        |file: &std::path::PathBuf| ["use", "fill", "pass"].iter().any(|it| file.ends_with(it));
    assert!(files.iter().all(is_lock), "{files:?}");
}

/// A blob under a wrong name.
struct Renamed(Arc<TestBlob>, Digest);

impl Blob for Renamed {
    fn digest(&self) -> &Digest {
        &self.1
    }

    fn size(&self) -> u64 {
        self.0.size()
    }

    fn want(&self, want: Want) -> Ticket {
        self.0.want(want)
    }
}

#[test]
fn a_layer_comes_in_one_pass_and_is_found_again() {
    let root = tempfile::tempdir().unwrap();
    let tar = tar_of(1, 300_000);
    let blob = TestBlob::new(tar.clone());
    let diff_id = Digest::of(&tar);
    let seen = parking_lot::Mutex::new(Vec::new());
    let progress = |done| seen.lock().push(done);
    {
        let cache = cache(root.path());
        let spec = WholeSpec { progress: &progress, ..spec(blob.clone(), Some(diff_id)) };
        let whole = cache.whole(spec).unwrap();
        assert_eq!((whole.origin, records(&whole).len()), (Origin::Blob, 1));
        assert_content(&whole, &tar);
        // Whoever opens it by that zTOC shares it.
        let WholeToc::Lazy { layer, ztoc } = &whole.toc else { panic!("it has a zTOC") };
        let ztoc_digest = *layer.ztoc_digest();
        let spec =
            LayerSpec { diff_id: None, blob: blob.clone(), ztoc_digest, ztoc: Arc::clone(ztoc) };
        assert!(Arc::ptr_eq(layer, &cache.layer(spec).unwrap()));
    }
    assert_eq!(blob.wants(), tar.len().div_ceil(10_000), "each byte is fetched once");
    assert!(seen.lock().is_sorted() && seen.lock().last() == Some(&(tar.len() as u64)));
    blob.fail(|_| Fault::Unreachable);
    for promised in [Some(diff_id), None] {
        let whole = cache(root.path()).whole(spec(blob.clone(), promised)).unwrap();
        assert_eq!((whole.origin, whole.diff_id), (Origin::Disk, diff_id));
        assert_content(&whole, &tar);
    }
    let other = Some(Digest::of(b"other"));
    let error = cache(root.path()).whole(spec(blob.clone(), other)).err().unwrap();
    assert!(matches!(error, CacheError::Condemned { .. }), "{error}");
    assert_eq!(blob.wants(), tar.len().div_ceil(10_000));
}

#[test]
fn what_breaks_a_promise_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let tar = tar_of(2, 100_000);
    let (right, wrong) = (Digest::of(&tar), Digest::of(b"wrong"));
    let blob = TestBlob::new(tar);
    let check = |blob: Arc<dyn Blob>, diff_id, expected: &str| {
        let cache = cache(root.path());
        let error = cache.whole(spec(blob, diff_id)).err().unwrap();
        assert_eq!(error.class(), Class::Corrupt);
        let text = error.to_string();
        assert!(text.contains(expected), "{text}");
        for digest in [right, wrong] {
            assert!(text.contains(&digest.to_string()), "{text}");
        }
        assert_nothing_left(root.path());
    };
    check(blob.clone(), Some(wrong), "its tar has digest");
    check(Arc::new(Renamed(blob.clone(), wrong)), Some(right), "its blob has digest");
    check(Arc::new(Renamed(blob, wrong)), None, "its blob has digest");
}

#[test]
fn promises_in_sha512_are_checked_too() {
    let root = tempfile::tempdir().unwrap();
    let tar = tar_of(12, 50_000);
    let mut hasher = spanfs_layer::Hasher::new(spanfs_layer::Algorithm::Sha512);
    hasher.update(&tar);
    let right = hasher.finish();
    let wrong = spanfs_layer::Hasher::new(spanfs_layer::Algorithm::Sha512).finish();
    let named = |digest| Arc::new(Renamed(TestBlob::new(tar.clone()), digest));
    let cache = cache(root.path());
    assert!(cache.whole(spec(named(wrong), None)).is_err());
    assert!(cache.whole(spec(named(right), Some(wrong))).is_err());
    let whole = cache.whole(spec(named(right), Some(right))).unwrap();
    assert_eq!(whole.diff_id, right);
    assert_content(&whole, &tar);
}

/// Given out before the disk has it, a layer is all there; a power cut may take any of it, and what it
/// takes comes again.
#[test]
fn a_power_cut_before_the_seal_costs_what_it_takes() {
    let tar = tar_of(6, 300_000);
    let promised = Some(Digest::of(&tar));
    for (is_sealed, is_damaged) in [(false, true), (false, false), (true, false)] {
        let root = tempfile::tempdir().unwrap();
        let blob = TestBlob::new(tar.clone());
        let path = {
            let spec = WholeSpec { durable: Durable::No, ..spec(blob.clone(), promised) };
            let whole = cache(root.path()).whole(spec).unwrap();
            assert_content(&whole, &tar);
            let WholeToc::Lazy { layer, .. } = &whole.toc else { panic!("it has a zTOC") };
            if is_sealed {
                layer.make_durable();
            }
            layer.layer_path()
        };
        let wants = blob.wants();
        if is_damaged {
            // What had not come to the disk reads as zeros.
            let file = File::options().write(true).open(&path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &[0; 20_000], 100_000).unwrap();
        }
        let cache = cache(root.path());
        let whole = cache.whole(spec(blob.clone(), promised)).unwrap();
        assert_eq!(whole.origin, Origin::Disk);
        let WholeToc::Lazy { layer, .. } = &whole.toc else { panic!("it has a zTOC") };
        assert!(read(layer, 0, tar.len()).unwrap() == tar);
        if is_damaged {
            wait_until("verification", || layer.complete_file().is_some());
        }
        assert_content(&whole, &tar);
        let again = blob.wants() - wants;
        assert!(if is_damaged { (1..5).contains(&again) } else { again == 0 }, "{again}");
    }
}

#[test]
fn one_does_it_and_the_others_get_the_result() {
    let root = tempfile::tempdir().unwrap();
    let tar = tar_of(3, 400_000);
    let blob = TestBlob::with_delay(tar.clone(), Duration::from_millis(2));
    let one = cache(root.path());
    let other = cache(root.path());
    let origins: Vec<_> = std::thread::scope(|scope| {
        let run = |cache| {
            let (blob, tar) = (blob.clone(), &tar);
            scope.spawn(move || {
                let whole = Cache::whole(cache, spec(blob, Some(Digest::of(tar)))).unwrap();
                assert_content(&whole, tar);
                whole.origin
            })
        };
        let threads = [&one, &one, &other, &other].map(run);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(origins.iter().filter(|origin| **origin == Origin::Blob).count(), 1);
    assert_eq!(blob.wants(), tar.len().div_ceil(10_000));
}

#[test]
fn a_stop_ends_it_within_a_second() {
    let root = tempfile::tempdir().unwrap();
    let blob = TestBlob::new(tar_of(4, 400_000));
    blob.fail(|range| if range.start < 100_000 { Fault::None } else { Fault::Stall });
    let cache = cache(root.path());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let getting = scope.spawn(|| {
            let spec = WholeSpec { stop: &stop, ..spec(blob.clone(), None) };
            cache.whole(spec).err().unwrap()
        });
        wait_until("the first chunks", || blob.wants() >= 13);
        // Who waits for it can be stopped as well.
        let waiting = scope.spawn(|| {
            let spec = WholeSpec { stop: &stop, ..spec(blob.clone(), None) };
            cache.whole(spec).err().unwrap()
        });
        std::thread::sleep(Duration::from_millis(100));
        assert!(!getting.is_finished() && !waiting.is_finished());
        let stopped = Instant::now();
        stop.store(true, Ordering::Relaxed);
        for thread in [getting, waiting] {
            let error = thread.join().unwrap();
            assert!(matches!(error, CacheError::Stopped { .. }), "{error}");
        }
        assert!(stopped.elapsed() < Duration::from_secs(1));
    });
    assert_nothing_left(root.path());
}

#[test]
fn waiting_for_a_dead_source_or_a_stuck_neighbour_has_an_end() {
    let root = tempfile::tempdir().unwrap();
    let blob = TestBlob::new(tar_of(5, 100_000));
    blob.fail(|_| Fault::Stall);
    let cache = cache(root.path());
    let quick = || {
        let spec = spec(blob.clone(), None);
        let stream = StreamOptions { patience: Duration::from_millis(100), ..spec.stream };
        WholeSpec { stream, ..spec }
    };
    let error = cache.whole(quick()).err().unwrap();
    assert!(matches!(&error, CacheError::Unavailable { .. }) && error.class() == Class::Retry);
    assert_nothing_left(root.path());
    let claim = Claim::open(&cache.directory().layer(blob.digest())).unwrap();
    let _pass = claim.try_pass().unwrap().unwrap();
    let error = cache.whole(quick()).err().unwrap();
    assert!(matches!(error, CacheError::InUse { .. }), "{error}");
}

#[test]
fn a_source_that_fails_now_and_then_is_asked_again() {
    let root = tempfile::tempdir().unwrap();
    let tar = tar_of(6, 300_000);
    let blob = TestBlob::new(tar.clone());
    let mut random = Random(9);
    blob.fail(move |_| if random.below(5) == 0 { Fault::Unreachable } else { Fault::None });
    let whole = (0..20).find_map(|_| cache(root.path()).whole(spec(blob.clone(), None)).ok());
    assert_content(&whole.expect("one in twenty tries"), &tar);
    // A flipped byte is no reason to ask again: the blob as a whole is wrong.
    let blob = TestBlob::new(tar_of(7, 300_000));
    blob.fail(|range| if range.start == 50_000 { Fault::Flip } else { Fault::None });
    let error = cache(root.path()).whole(spec(blob, None)).err().unwrap();
    assert_eq!(error.class(), Class::Corrupt, "{error}");
}

/// The same blob cut by somebody else: a zTOC that we did not build.
fn foreign(blob: &Arc<TestBlob>) -> LayerSpec {
    let options = BuildOptions { build_tool: "other".into(), ..BuildOptions::default() };
    let options = BuildOptions { span_size: SPAN_SIZE.min(20_000), ..options };
    let mut builder = LayerBuilder::new(options, |_, _: &[u8]| Ok(())).unwrap();
    builder.feed(&blob.bytes).unwrap();
    let built = builder.finish().unwrap();
    let Toc::Lazy(ztoc) = built.toc else { panic!("it has a zTOC") };
    let ztoc: Arc<[u8]> = ztoc.encode().into();
    let ztoc_digest = Digest::of(&ztoc);
    LayerSpec { diff_id: Some(built.diff_id), blob: blob.clone(), ztoc_digest, ztoc }
}

#[test]
fn who_shows_the_layer_by_another_ztoc_is_not_disturbed() {
    let root = tempfile::tempdir().unwrap();
    let tar = tar_of(8, 200_000);
    let blob = TestBlob::new(tar.clone());
    let cache = cache(root.path());
    let theirs = cache.layer(foreign(&blob)).unwrap();
    fill(&theirs, 0..theirs.len()).unwrap();
    wait_until("the seal", || theirs.complete_file().is_some());
    // Its zTOC is not ours, so it does not count as found.
    let whole = loop {
        let whole = cache.whole(spec(blob.clone(), None)).unwrap();
        assert_eq!(whole.origin, Origin::Blob);
        let WholeToc::Lazy { layer, .. } = &whole.toc else { panic!("it has a zTOC") };
        // A private copy if the seal was still under way.
        if layer.role() == Role::Owner {
            break whole;
        }
    };
    assert_content(&whole, &tar);
    assert!(read(&theirs, 0, tar.len()).unwrap() == tar);
    drop(theirs);
    // And the other way round.
    let theirs = cache.layer(foreign(&blob)).unwrap();
    assert_content(&whole, &tar);
    assert!(read(&theirs, 0, tar.len()).unwrap() == tar);
    assert_content(&whole, &tar);
}

#[test]
fn while_somebody_fills_the_layer_we_take_a_private_copy() {
    let root = tempfile::tempdir().unwrap();
    let tar = tar_of(9, 200_000);
    let blob = TestBlob::new(tar.clone());
    let (one, other) = (cache(root.path()), cache(root.path()));
    let lazy = one.layer(foreign(&blob)).unwrap();
    let whole = other.whole(spec(blob.clone(), Some(Digest::of(&tar)))).unwrap();
    let WholeToc::Lazy { layer, .. } = &whole.toc else { panic!("it has a zTOC") };
    assert_eq!(layer.role(), Role::Private);
    assert_content(&whole, &tar);
    assert!(read(&lazy, 0, tar.len()).unwrap() == tar);
    let private = layer.layer_path();
    drop(whole);
    assert!(!private.exists());
    // What fails privately goes as well.
    let wrong = Some(Digest::of(b"wrong"));
    assert!(other.whole(spec(blob.clone(), wrong)).is_err());
    let private = std::fs::read_dir(root.path().join("private")).unwrap();
    let files = private.flat_map(|it| std::fs::read_dir(it.unwrap().path()).unwrap());
    assert!(files.map(|file| file.unwrap()).all(|file| file.file_name() != PART));
    assert!(read(&lazy, 0, tar.len()).unwrap() == tar);
}
