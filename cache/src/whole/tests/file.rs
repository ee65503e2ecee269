//! Blobs that come through a file: kept, resumed, and gone where they are of no more use.

use spanfs_fetch::buffer::Slots;

use super::*;

fn through_file(blob: Arc<dyn Blob>, diff_id: Option<Digest>) -> WholeSpec<'static> {
    WholeSpec { buffer: Buffer::File, ..spec(blob, diff_id) }
}

fn blob_path(root: &Path, blob: &TestBlob) -> std::path::PathBuf {
    let directory = crate::cache::directory::Directory::open(root).unwrap();
    directory.layer(blob.digest()).join(BLOB)
}

#[test]
fn whoever_keeps_blobs_gets_the_right_one_and_no_copy_stays() {
    let root = tempfile::tempdir().unwrap();
    let tar = tar_of(21, 300_000);
    let blob = TestBlob::new(tar.clone());
    let elsewhere = root.path().join("elsewhere");
    let keep = |path: &Path| std::fs::hard_link(path, &elsewhere).unwrap();
    let cache = cache(root.path());
    let spec = through_file(blob.clone(), Some(Digest::of(&tar)));
    let whole = cache.whole(WholeSpec { keep: Some(&keep), ..spec }).unwrap();
    assert_content(&whole, &tar);
    assert!(std::fs::read(&elsewhere).unwrap() == tar);
    assert!(!blob_path(root.path(), &blob).exists());
    assert_eq!(blob.wants(), tar.len().div_ceil(10_000), "each byte is fetched once");
}

#[test]
fn what_breaks_a_promise_is_not_kept() {
    let root = tempfile::tempdir().unwrap();
    let blob = TestBlob::new(tar_of(22, 100_000));
    let keep = |_: &Path| panic!("nobody vouches for it");
    let wrong = Some(Digest::of(b"wrong"));
    let spec = through_file(blob.clone(), wrong);
    let error = cache(root.path()).whole(WholeSpec { keep: Some(&keep), ..spec }).err().unwrap();
    assert!(matches!(error, CacheError::Condemned { .. }), "{error}");
    assert_nothing_left(root.path());
}

#[test]
fn an_interrupted_download_goes_on_in_the_next_process() {
    let root = tempfile::tempdir().unwrap();
    let tar = tar_of(23, 400_000);
    let blob = TestBlob::new(tar.clone());
    blob.fail(|range| if range.start < 200_000 { Fault::None } else { Fault::Stall });
    let stop = AtomicBool::new(false);
    {
        let cache = cache(root.path());
        std::thread::scope(|scope| {
            let getting = scope.spawn(|| {
                let spec = WholeSpec { stop: &stop, ..through_file(blob.clone(), None) };
                cache.whole(spec).err().unwrap()
            });
            // Four are under way at once: all that can come has come.
            wait_until("the first chunks", || blob.wants() >= 24);
            let stopped = Instant::now();
            stop.store(true, Ordering::Relaxed);
            let error = getting.join().unwrap();
            assert!(matches!(error, CacheError::Stopped { .. }), "{error}");
            assert!(stopped.elapsed() < Duration::from_secs(1));
        });
        assert!(cache.is_expected(blob.digest()));
    }
    blob.fail(|_| Fault::None);
    let before = blob.wants();
    let cache = cache(root.path());
    let whole = cache.whole(through_file(blob.clone(), Some(Digest::of(&tar)))).unwrap();
    assert_content(&whole, &tar);
    let again = blob.wants() - before;
    assert!(again <= tar.len().div_ceil(10_000) - 20, "{again} chunks were fetched again");
    assert!(!cache.is_expected(blob.digest()));
}

#[test]
fn a_download_that_nobody_came_back_for_goes_at_the_next_start() {
    let root = tempfile::tempdir().unwrap();
    let blob = TestBlob::new(tar_of(24, 400_000));
    blob.fail(|range| if range.start < 200_000 { Fault::None } else { Fault::Unreachable });
    let error = cache(root.path()).whole(through_file(blob.clone(), None)).err().unwrap();
    assert_eq!(error.class(), Class::Retry, "{error}");
    let path = blob_path(root.path(), &blob);
    drop(cache(root.path()));
    assert!(path.exists(), "somebody may come back");
    let journal = std::fs::File::options().write(true).open(Download::journal_path(&path)).unwrap();
    journal.set_modified(std::time::SystemTime::now() - Duration::from_secs(7200)).unwrap();
    drop(cache(root.path()));
    assert_nothing_left(root.path());
}

#[test]
fn a_layer_downloads_while_another_is_decoded() {
    let root = tempfile::tempdir().unwrap();
    let tar = tar_of(25, 300_000);
    let blob = TestBlob::new(tar.clone());
    let cache = cache(root.path());
    let slots = Slots::new(1);
    let limits = [slots.line_up(0)];
    let turn = slots.try_take().unwrap();
    std::thread::scope(|scope| {
        let getting = scope.spawn(|| {
            cache.whole(WholeSpec { unpacks: &limits, ..through_file(blob.clone(), None) }).unwrap()
        });
        wait_until("all of the blob", || blob.wants() == tar.len().div_ceil(10_000));
        std::thread::sleep(Duration::from_millis(100));
        let part = blob_path(root.path(), &blob).with_file_name(PART);
        assert_eq!(std::fs::metadata(part).unwrap().len(), 0, "it is not its turn");
        drop(turn);
        assert_content(&getting.join().unwrap(), &tar);
    });
    // Who waits for his turn in vain is told, not kept.
    let turn = slots.try_take().unwrap();
    let dead = TestBlob::new(tar_of(26, 100_000));
    dead.fail(|_| Fault::Unreachable);
    let spec = WholeSpec { unpacks: &limits, ..through_file(dead, None) };
    let error = cache.whole(spec).err().unwrap();
    assert!(matches!(error, CacheError::Unavailable { .. }), "{error}");
    drop(turn);
}

#[test]
fn a_full_disk_leaves_nothing() {
    let tar = tar_of(27, 200_000);
    let Some(disk) = crate::testing::Tmpfs::new(c"size=160k") else { return };
    let error = cache(disk.path()).whole(through_file(TestBlob::new(tar), None)).err().unwrap();
    let CacheError::Storage { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
    assert_nothing_left(disk.path());
}
