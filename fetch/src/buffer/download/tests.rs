use std::sync::atomic::{AtomicUsize, Ordering};

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
    DownloadOptions { stream, ..DownloadOptions::default() }
}

/// Run a download beside somebody who reads all of it; returns what it read.
fn consume(download: &mut Download, blob: &Arc<dyn Blob>) -> (Result<(), BufferError>, Vec<u8>) {
    let growing = download.growing();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut found = Vec::new();
            while let Some(front) = growing.wait(found.len() as u64, Duration::from_millis(1)) {
                let at = found.len();
                found.resize(front as usize, 0);
                growing.file().read_exact_at(&mut found[at..], at as u64).unwrap();
            }
            found
        });
        let result = download.run(blob, &|| false);
        (result, reader.join().unwrap())
    })
}

#[test]
fn the_file_is_read_while_it_grows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    let blob: Arc<dyn Blob> = MemoryBlob::new(content());
    let mut download = Download::open(&path, &*blob, options()).unwrap();
    let (result, found) = consume(&mut download, &blob);
    result.unwrap();
    assert_eq!(found, content());
    download.finish(Durable::Yes).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content());
    assert!(!Download::journal_path(&path).exists());
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
    let (result, found) = consume(&mut download, &half);
    let error = result.unwrap_err();
    assert!(matches!(error, BufferError::Fetch { .. }), "{error}");
    assert_eq!(found, &content()[..5000]);
    drop(download);

    let blob: Arc<dyn Blob> = inner.clone();
    let before = inner.wants_count.load(Ordering::SeqCst) as u64;
    let mut download = Download::open(&path, &*blob, options()).unwrap();
    let present = download.recorded_bytes();
    assert_eq!(present, 5000);
    // A page that rotted while nobody looked.
    download.file.write_all_at(b"rot", 5).unwrap();
    let (result, found) = consume(&mut download, &blob);
    result.unwrap();
    assert_eq!(found, content());
    let wanted = inner.wants_count.load(Ordering::SeqCst) as u64 - before;
    assert_eq!(wanted, (LEN as u64).div_ceil(100) - present / 100 + 1);
    download.finish(Durable::Yes).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content());
}

#[test]
fn a_stop_keeps_what_has_come() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    let inner = MemoryBlob::new(content());
    let blob: Arc<dyn Blob> = inner.clone();
    let looks = AtomicUsize::new(0);
    let mut download = Download::open(&path, &*blob, options()).unwrap();
    let stop = || looks.fetch_add(1, Ordering::SeqCst) >= 20;
    let error = download.run(&blob, &stop).unwrap_err();
    assert!(matches!(error, BufferError::Stopped { .. }), "{error}");
    assert!(matches!(download.finish(Durable::No).unwrap_err(), BufferError::Disk { .. }));
    let mut download = Download::open(&path, &*blob, options()).unwrap();
    assert_eq!(download.recorded_bytes(), 2000);
    download.run(&blob, &|| false).unwrap();
    download.finish(Durable::No).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content());
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
fn empty_blob() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    let blob: Arc<dyn Blob> = MemoryBlob::new(Vec::new());
    let mut download = Download::open(&path, &*blob, options()).unwrap();
    let (result, found) = consume(&mut download, &blob);
    result.unwrap();
    assert!(found.is_empty());
    assert_eq!(download.finish(Durable::No).unwrap().metadata().unwrap().len(), 0);
}
