//! The compressed blob of a layer that came lazily, for those who want that as well.
//!
//! ```text
//! span fetched, checked ─▶ inflated ─▶ layer file
//!                    └─▶ blob file, at its own place
//! the layer is complete ─▶ what lies outside of spans is fetched ─▶ the whole hashed ─▶ handed on
//! ```
//!
//! The blob file is sparse and has no journal: what an earlier process left in it counts by the digests
//! of the spans, and what is missing is fetched. Nothing of it is handed on before the whole has its
//! digest.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use spanfs_fetch::buffer::{Chunk, Stream, StreamOptions};
use spanfs_fetch::{Class, FetchError, FetchErrorDetail, Fetched, Priority};

use crate::CacheError;
use crate::inflate::VerifiedSpan;
use crate::verify::Reader;

use super::Layer;
use super::open::{COMPRESSED, remove_if_there};

/// Length of one request.
const CHUNK_LEN: u64 = 1 << 20;
/// Requests under way: the link belongs to others.
const CHUNKS_MAX: usize = 2;
/// Times in a row that a chunk is asked for again, after the engine gave up on it.
const RETRIES_MAX: u32 = 2;
/// Looks at the whole: another mirror may have the right bytes where the first had others.
const TRIES_MAX: u32 = 2;
/// While a reader waits for bytes, nothing is fetched or hashed; but not for ever.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

/// A blob file in the making.
#[derive(Debug)]
pub(super) struct BlobFile {
    file: File,
    /// Spans that this process wrote.
    written: Box<[AtomicBool]>,
    /// An earlier process may have left spans.
    has_old: bool,
}

impl Layer {
    /// Keep the compressed bytes of spans that come from now on, for [`Self::complete_blob`].
    pub fn keep_blob(&self) -> io::Result<()> {
        self.blob_file().map(drop)
    }

    fn blob_file(&self) -> io::Result<Arc<BlobFile>> {
        let mut kept = self.blob_file.write();
        if let Some(file) = &*kept {
            return Ok(Arc::clone(file));
        }
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(self.claim.file(COMPRESSED))?;
        let size = self.table.compressed_len();
        let has_old = file.metadata()?.len() == size;
        if !has_old {
            file.set_len(0)?;
            file.set_len(size)?;
        }
        let written = (0..self.lives.count()).map(|_| AtomicBool::new(false)).collect();
        let made = Arc::new(BlobFile { file, written, has_old });
        *kept = Some(Arc::clone(&made));
        Ok(made)
    }

    /// Nobody wants the blob any more: its file goes.
    pub fn forget_blob(&self) {
        let mut kept = self.blob_file.write();
        *kept = None;
        if let Err(error) = remove_if_there(&self.claim.file(COMPRESSED)) {
            tracing::warn!(layer = %self.digest, %error, "the layer's blob file stays");
        }
    }

    /// A span's bytes as they came. Where the disk refuses them they are fetched again in the end.
    pub(super) fn keep_compressed(&self, span: &VerifiedSpan) {
        let Some(kept) = self.blob_file.read().clone() else { return };
        let number = span.number();
        let Some(place) = self.table.spans().get(number).map(|it| it.compressed.start.0) else {
            return;
        };
        match kept.file.write_all_at(span.data(), place) {
            Ok(()) => kept.written.iter().skip(number).take(1).for_each(|written| {
                written.store(true, Ordering::Release);
            }),
            Err(error) => {
                // Room for what readers need comes first.
                self.forget_blob();
                self.note_disk_error(format!("keeping the blob, at span {number}: {error}"));
            }
        }
    }

    /// Fetch what is missing of the blob and check the whole; the file that then holds it, durable,
    /// until [`Self::forget_blob`]. Nobody waits for it: it stands back behind those who read, and keeps
    /// to the bandwidth of the background. Ends soon once `stop` is true.
    pub fn complete_blob(&self, stop: &dyn Fn() -> bool) -> Result<PathBuf, CacheError> {
        let path = self.claim.file(COMPRESSED);
        let storage = |doing| CacheError::storage(doing, &path);
        let kept = self.blob_file().map_err(storage("opening the blob file"))?;
        let mut has_written = true;
        let mut found = self.digest;
        for _ in 0..TRIES_MAX {
            for range in self.missing_of_blob(&kept, has_written, stop)? {
                self.fetch_missing(&kept, range, stop)?;
            }
            let mut pause = || self.wait_for_turn(stop).is_ok();
            let (len, algorithm) = (self.table.compressed_len(), self.digest.algorithm());
            let hashed = Reader::Plain.hash(&kept.file, len, algorithm, &mut pause);
            let hashed = hashed.map_err(|error| match error.kind() {
                io::ErrorKind::Interrupted => CacheError::Stopped { layer: self.digest },
                _ => storage("hashing the blob file")(error),
            })?;
            found = hashed.finish();
            if found == self.digest {
                kept.file.sync_data().map_err(storage("making durable the blob file"))?;
                return Ok(path);
            }
            tracing::warn!(layer = %self.digest, %found, "the blob is not what it should be");
            // The spans are looked at again, and what lies outside of them may be better elsewhere.
            has_written = false;
            self.blob.distrust();
        }
        self.forget_blob();
        let (digest, range) = (self.digest, 0..self.table.compressed_len());
        let message = format!("the whole has digest {found}");
        let source = FetchError::Corrupt(FetchErrorDetail { digest, range, message });
        Err(CacheError::Unavailable { layer: digest, source: Box::new(source) })
    }

    /// Runs of the blob that its file lacks: spans that are not there, and what lies outside of spans.
    fn missing_of_blob(
        &self,
        kept: &BlobFile,
        trust_written: bool,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Range<u64>>, CacheError> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut add = |run: Range<u64>| match runs.last_mut() {
            _ if run.is_empty() => {}
            Some(last) if last.end >= run.start => last.end = last.end.max(run.end),
            _ => runs.push(run),
        };
        let mut end = 0;
        for (number, span) in self.table.spans().iter().enumerate() {
            let place = span.compressed.start.0..span.compressed.end.0;
            add(end..place.start);
            end = end.max(place.end);
            let written = kept.written.get(number).is_some_and(|it| it.load(Ordering::Acquire));
            let is_there = match (written && trust_written, written || kept.has_old) {
                (true, _) => true,
                (false, false) => false,
                (false, true) => {
                    self.wait_for_turn(stop)?;
                    self.has_compressed(kept, number, &place)
                }
            };
            if !is_there {
                add(place);
            }
        }
        add(end..self.table.compressed_len());
        Ok(runs)
    }

    /// Whether the file has the span's bytes.
    fn has_compressed(&self, kept: &BlobFile, number: usize, place: &Range<u64>) -> bool {
        let Ok(len) = usize::try_from(place.end - place.start) else { return false };
        let mut bytes = vec![0; len];
        if kept.file.read_exact_at(&mut bytes, place.start).is_err() {
            return false;
        }
        let fetched = Fetched { bytes, headroom: 0 };
        VerifiedSpan::check(&self.digest, &self.table, number, fetched).is_ok()
    }

    fn fetch_missing(
        &self,
        kept: &BlobFile,
        range: Range<u64>,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), CacheError> {
        let options = StreamOptions {
            chunk_bytes: CHUNK_LEN,
            chunks_max: CHUNKS_MAX,
            priority: Priority::Background,
            ..StreamOptions::default()
        };
        let mut stream = Stream::new(Arc::clone(&self.blob), range, options);
        let mut retries = 0;
        loop {
            self.wait_for_turn(stop)?;
            match stream.poll_as_it_comes(PAUSE) {
                Poll::Pending => {}
                Poll::Ready(None) => return Ok(()),
                Poll::Ready(Some(Ok(Chunk { offset, fetched }))) => {
                    retries = 0;
                    let written = kept.file.write_all_at(fetched.data(), offset);
                    written.map_err(CacheError::storage(
                        "writing the blob file",
                        &self.claim.file(COMPRESSED),
                    ))?;
                    self.spend(fetched.data().len() as u64, stop)?;
                    self.blob.recycle(fetched.bytes);
                }
                Poll::Ready(Some(Err(source))) => {
                    retries += 1;
                    if source.class() != Class::Retry || retries > RETRIES_MAX {
                        let source = Box::new(source);
                        return Err(CacheError::Unavailable { layer: self.digest, source });
                    }
                    tracing::debug!(layer = %self.digest, %source, "asking again for the blob");
                }
            }
        }
    }

    /// Wait until the bandwidth allows it.
    fn spend(&self, bytes: u64, stop: &dyn Fn() -> bool) -> Result<(), CacheError> {
        while !self.works.bandwidth.lock().spend(Instant::now(), bytes) {
            self.check_wanted(stop)?;
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn wait_for_turn(&self, stop: &dyn Fn() -> bool) -> Result<(), CacheError> {
        let since = Instant::now();
        loop {
            self.check_wanted(stop)?;
            if self.works.demand() == 0 || since.elapsed() >= PATIENCE {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn check_wanted(&self, stop: &dyn Fn() -> bool) -> Result<(), CacheError> {
        let layer = self.digest;
        if let Some(reason) = self.fault.get() {
            return Err(CacheError::Condemned { layer, reason: reason.clone() });
        }
        if stop() { Err(CacheError::Stopped { layer }) } else { Ok(()) }
    }
}
