use std::sync::atomic::Ordering;

use crossbeam_channel::bounded;

use super::*;
use crate::blob::{FetchErrorDetail, Ticket, Want};
use crate::memory_blob::{MemoryBlob, Nothing};
use spanfs_layer::Digest;

const LEN: usize = 10_050;

fn content() -> Vec<u8> {
    (0..LEN).map(|at| (at / 7) as u8).collect()
}

fn options() -> DownloadOptions {
    let stream = StreamOptions { chunk_bytes: 100, chunks_max: 4, ..StreamOptions::default() };
    DownloadOptions { stream, sync_bytes: 1000, ..DownloadOptions::default() }
}

/// Run a download with a consumer that takes everything; returns what it took.
fn consume(download: &mut Download, blob: &Arc<dyn Blob>) -> (Result<(), BufferError>, Vec<u8>) {
    let (sender, receiver) = bounded::<Chunk>(2);
    std::thread::scope(|scope| {
        let consumer = scope.spawn(move || {
            let mut found = Vec::new();
            for chunk in receiver {
                assert_eq!(chunk.offset, found.len() as u64);
                found.extend_from_slice(chunk.fetched.data());
            }
            found
        });
        let result = download.run(blob, Some(&sender));
        drop(sender);
        (result, consumer.join().unwrap())
    })
}

#[test]
fn file_and_consumer_get_everything() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    let blob: Arc<dyn Blob> = MemoryBlob::new(content());
    let mut download = Download::open(&path, &*blob, options()).unwrap();
    let (result, found) = consume(&mut download, &blob);
    result.unwrap();
    assert_eq!(found, content());
    download.finish().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content());
    assert!(!journal_path(&path).exists());
}

/// A blob whose bytes from 5,000 on cannot be had.
struct Half(Arc<MemoryBlob>);

impl Blob for Half {
    fn digest(&self) -> &Digest {
        self.0.digest()
    }

    fn size(&self) -> u64 {
        self.0.size()
    }

    fn want(&self, want: Want) -> Ticket {
        if want.range.start < 5000 {
            return self.0.want(want);
        }
        let (digest, message) = (*self.digest(), "gone".to_owned());
        let detail = FetchErrorDetail { digest, range: want.range, message };
        (want.reply)(Err(FetchError::Unreachable(detail)));
        Ticket::new(Arc::new(Nothing))
    }
}

#[test]
fn resumes_after_a_failure_and_repairs_damage() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    let inner = MemoryBlob::new(content());
    let half: Arc<dyn Blob> = Arc::new(Half(Arc::clone(&inner)));
    let mut download = Download::open(&path, &*half, options()).unwrap();
    let (result, _) = consume(&mut download, &half);
    let error = result.unwrap_err();
    assert!(matches!(error, BufferError::Fetch { .. }), "{error}");
    drop(download);

    let blob: Arc<dyn Blob> = inner.clone();
    let before = inner.wants_count.load(Ordering::SeqCst) as u64;
    let mut download = Download::open(&path, &*blob, options()).unwrap();
    let present = download.present_bytes();
    assert_eq!(present, 5000);
    // A page that rotted while nobody looked.
    download.file.write_all_at(b"rot", 5).unwrap();
    let (result, found) = consume(&mut download, &blob);
    result.unwrap();
    assert_eq!(found, content());
    let wanted = inner.wants_count.load(Ordering::SeqCst) as u64 - before;
    assert_eq!(wanted, (LEN as u64).div_ceil(100) - present / 100 + 1);
    download.finish().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content());
}

#[test]
fn without_consumer_nothing_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    let blob: Arc<dyn Blob> = MemoryBlob::new(content());
    let mut download = Download::open(&path, &*blob, options()).unwrap();
    download.run(&blob, None).unwrap();
    download.run(&blob, None).unwrap();
    drop(download);
    let download = Download::open(&path, &*blob, options()).unwrap();
    assert_eq!(download.present_bytes(), LEN as u64);
    download.finish().unwrap();
}

#[test]
fn one_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    let blob: Arc<dyn Blob> = MemoryBlob::new(content());
    let first = Download::open(&path, &*blob, options()).unwrap();
    let error = Download::open(&path, &*blob, options()).unwrap_err();
    assert!(matches!(error, BufferError::Busy { .. }), "{error}");
    drop(first);
    Download::open(&path, &*blob, options()).unwrap();
}

#[test]
fn lost_consumer_and_early_finish_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    let blob: Arc<dyn Blob> = MemoryBlob::new(content());
    let mut download = Download::open(&path, &*blob, options()).unwrap();
    let (sender, receiver) = bounded(1);
    drop(receiver);
    let error = download.run(&blob, Some(&sender)).unwrap_err();
    assert!(matches!(error, BufferError::Consumer { .. }), "{error}");
    assert!(matches!(download.finish().unwrap_err(), BufferError::Disk { .. }));
}

#[test]
fn empty_blob() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    let blob: Arc<dyn Blob> = MemoryBlob::new(Vec::new());
    let mut download = Download::open(&path, &*blob, options()).unwrap();
    download.run(&blob, None).unwrap();
    assert_eq!(download.finish().unwrap().metadata().unwrap().len(), 0);
}
