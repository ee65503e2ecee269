//! One layer: its spans on demand, in one layer file.

mod blob;
mod fill;
mod filled;
mod follow;
mod keep;
pub(crate) mod open;
mod proof;
mod status;
mod toc;
mod waits;

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use spanfs_fetch::{Blob, Priority};
use spanfs_layer::{Digest, SpanTable, UncompressedOffset};

use crate::CacheError;
use crate::cache::claim::{self, Claim, FillLock};
use crate::gather::Gather;
use crate::journal::Journal;
use crate::layer_file::LayerFile;
use crate::life::{Event, Life, Lives};
use crate::prefetch::{Image, Observer};
use crate::windows::Windows;
use crate::works::Works;
use crate::{Content, Follower, ReadError, ReadReply};

use blob::BlobFile;
use fill::Shards;
pub(crate) use fill::Wanted;
pub(crate) use filled::{Filled, open_filled};
use follow::Followers;
pub use open::{KnownLayer, LayerSpec};
pub(crate) use open::{condemned_reason, open, open_known};
use status::Counters;
pub use status::{LayerStatus, Verification};
pub use waits::Waits;

/// A layer whose spans arrive on demand.
///
/// Whoever holds it keeps its files from eviction. Dropping the last one cancels what is under way.
pub struct Layer {
    me: Weak<Layer>,
    id: u32,
    digest: Digest,
    diff_id: Option<Digest>,
    ztoc_digest: Digest,
    blob: Arc<dyn Blob>,
    table: SpanTable,
    works: Arc<Works>,
    claim: Claim,
    role: Role,
    file: LayerFile,
    windows: Windows,
    lives: Lives,
    /// Checksums by which an earlier run's spans are believed.
    claims: Box<[Option<u32>]>,
    /// Spans that everybody interested knows to have been read.
    touched: Box<[AtomicBool]>,
    observers: RwLock<Vec<Observer>>,
    followers: Followers,
    shards: Shards,
    writer: Mutex<Writer>,
    verification: RwLock<Verification>,
    /// The verifier has it, or will.
    verifying: AtomicBool,
    /// Set once the whole may be shown directly.
    complete: AtomicBool,
    /// Where compressed bytes are kept, if somebody wants them.
    blob_file: RwLock<Option<Arc<BlobFile>>>,
    /// Set for ever once the layer was found out.
    fault: OnceLock<String>,
    counters: Counters,
}

/// What this process may do with a layer's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It fills them and keeps the journal.
    Owner,
    /// They were complete; it only reads.
    Reader,
    /// Another process fills the layer's files: these are a copy of its own, removed in the end.
    Private,
}

/// What changes when spans are kept.
#[derive(Debug, Default)]
struct Writer {
    journal: Option<Journal>,
    fill: Option<FillLock>,
    /// The disk refused a write; when to try it again.
    disk_retry_at: Option<std::time::Instant>,
    /// The disk could not give back what it took: nothing is written there any more.
    disk_failed: bool,
}

impl Layer {
    /// Digest of the compressed blob.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Digest of the zTOC that cuts it into spans.
    pub fn ztoc_digest(&self) -> &Digest {
        &self.ztoc_digest
    }

    /// That zTOC, encoded, as it stands beside the layer file: the caller checks it.
    pub fn ztoc(&self) -> io::Result<Arc<[u8]>> {
        self.windows.ztoc()
    }

    /// Wait until that zTOC stands there: from then on the layer can be opened without asking anybody.
    pub fn wait_for_ztoc(&self) -> Result<(), CacheError> {
        let path = self.claim.path();
        self.windows.settle().map_err(CacheError::storage(open::KEEPING_ZTOC, path))
    }

    /// Its spans.
    pub fn table(&self) -> &SpanTable {
        &self.table
    }

    /// What this process may do with its files.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The layer file. Show it directly only if [`Content::complete_file`] gives it.
    pub fn layer_path(&self) -> std::path::PathBuf {
        self.claim.file(open::LAYER)
    }

    /// Ask for what is missing of `range`, in order, without waiting for it.
    pub fn prefetch(&self, range: Range<UncompressedOffset>, priority: Priority) {
        for span in self.table.covering(range) {
            self.want(span, priority, None);
        }
    }

    /// Keep this span's bytes from being served or trusted again after the layer was found out.
    fn check_fault(&self) -> Result<(), ReadError> {
        match self.fault.get() {
            Some(reason) => Err(ReadError::Corrupt(reason.clone())),
            None => Ok(()),
        }
    }

    /// Tell who is interested of the first read of a span since somebody asked to know.
    fn touch(&self, span: usize, missed: bool) {
        let Some(touched) = self.touched.get(span) else { return };
        if !touched.load(Ordering::Relaxed) && !touched.swap(true, Ordering::SeqCst) {
            self.tell(|image, number| image.handle_touch((number, span), missed));
            self.tell_stands_later(span);
        }
    }

    /// Have an image told of first reads and ends of spans from now on.
    pub(crate) fn observe(&self, image: Weak<Image>, number: usize) {
        let mut observers = self.observers.write();
        observers.retain(|(image, _)| image.strong_count() > 0);
        observers.push((image, number));
        self.touched.iter().for_each(|touched| touched.store(false, Ordering::Relaxed));
    }

    fn tell(&self, event: impl Fn(&Image, usize)) {
        // Not told under the lock: an image asks for spans in return.
        let observers = self.observers.read().clone();
        for (image, number) in observers {
            if let Some(image) = image.upgrade() {
                event(&image, number);
            }
        }
    }

    /// True if nobody has a span or asked for it.
    pub(crate) fn is_absent(&self, span: usize) -> bool {
        self.fault.get().is_none() && matches!(self.lives.of(span), Life::Absent | Life::Claimed)
    }

    /// Compressed bytes of each span.
    pub(crate) fn compressed_lens(&self) -> Vec<u32> {
        let len = |span| u32::try_from(self.compressed_len(span)).unwrap_or(u32::MAX);
        (0..self.lives.count()).map(len).collect()
    }

    /// Copy from spans of which some stand in memory; `false` if one of them is gone.
    fn read_mixed(&self, at: UncompressedOffset, buffer: &mut [u8]) -> bool {
        let end = UncompressedOffset(at.0 + buffer.len() as u64);
        // Behind the last span comes padding.
        let covered = self.table.uncompressed_len().saturating_sub(at.0);
        let covered = usize::try_from(covered).unwrap_or(usize::MAX).min(buffer.len());
        buffer.get_mut(covered..).unwrap_or_default().fill(0);
        for number in self.table.covering(at..end) {
            let Some(span) = self.table.spans().get(number) else { continue };
            let start = span.uncompressed.start.max(at);
            let stop = span.uncompressed.end.min(end);
            let to = (start.0 - at.0) as usize..(stop.0 - at.0) as usize;
            let to = buffer.get_mut(to).unwrap_or_default();
            match self.lives.of(number) {
                Life::Fresh => {
                    let from = (start.0 - span.uncompressed.start.0) as usize;
                    // Gone: it was written meanwhile, as a rule.
                    let Some(span) = self.fresh(number) else { return self.read_mixed(at, buffer) };
                    let Some(bytes) = span.bytes().get(from..from + to.len()) else { return false };
                    to.copy_from_slice(bytes);
                }
                Life::InFile if self.read_file(start, to).is_ok() => {}
                Life::InMemory => {
                    let from = (start.0 - span.uncompressed.start.0) as usize;
                    let Some(bytes) = self.works.memory.span((self.id, number as u32)) else {
                        self.forget(number, Event::Evict);
                        return false;
                    };
                    let Some(bytes) = bytes.get(from..from + to.len()) else { return false };
                    to.copy_from_slice(bytes);
                }
                _ => return false,
            }
        }
        true
    }

    /// Read what is in the layer file. If the disk fails, its spans are forgotten: they are fetched
    /// again, into memory.
    fn read_file(&self, at: UncompressedOffset, to: &mut [u8]) -> io::Result<()> {
        self.file.read(at, to).inspect_err(|error| {
            self.complete.store(false, Ordering::Release);
            self.writer.lock().disk_failed = true;
            self.note_disk_error(format!("reading the layer file at {at}: {error}"));
            let end = UncompressedOffset(at.0 + to.len() as u64);
            let lost = match error.kind() {
                // Somebody cut the file: who knows what else is gone.
                io::ErrorKind::UnexpectedEof => 0..self.lives.count(),
                _ => self.table.covering(at..end),
            };
            for span in lost.clone().filter(|span| self.lives.of(*span) == Life::InFile) {
                self.forget(span, Event::Lose);
            }
            self.tell_gone(lost);
        })
    }
}

impl Content for Layer {
    fn len(&self) -> u64 {
        self.file.len()
    }

    fn read_present(
        &self,
        offset: UncompressedOffset,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, ReadError> {
        self.check_fault()?;
        self.works.note_read();
        let left = self.len().saturating_sub(offset.0);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = buffer.get_mut(..len).unwrap_or_default();
        let spans = self.table.covering(offset..UncompressedOffset(offset.0 + len as u64));
        let mut in_memory = false;
        for span in spans.clone() {
            match self.lives.of(span) {
                Life::InFile => {}
                Life::Fresh | Life::InMemory => in_memory = true,
                _ => return Ok(None),
            }
        }
        if in_memory {
            if !self.read_mixed(offset, buffer) {
                return Ok(None);
            }
        } else if self.read_file(offset, buffer).is_err() {
            return Ok(None);
        }
        spans.for_each(|span| self.touch(span, false));
        Ok(Some(len))
    }

    fn fill(&self, range: Range<UncompressedOffset>, reply: ReadReply) {
        if let Err(error) = self.check_fault() {
            return reply(Err(error));
        }
        let spans = self.table.covering(range);
        if spans.clone().all(|span| self.lives.of(span).is_readable()) {
            return reply(Ok(()));
        }
        let waiting = self.works.wait_on_demand();
        let (since, waits) = (Instant::now(), Arc::clone(&self.counters.waits));
        let reply = Box::new(move |result| {
            drop(waiting);
            waits.add(since.elapsed());
            reply(result);
        });
        // One more than the spans, so that the reply comes here even if there are none.
        let gather = Gather::new(spans.len() + 1, reply);
        for span in spans {
            let missed = self.want(span, Priority::OnDemand, Some(&gather)) != Wanted::There;
            self.touch(span, missed);
        }
        gather.done(&Ok(()));
    }

    fn present_file(&self, range: Range<UncompressedOffset>) -> Option<BorrowedFd<'_>> {
        let spans = self.table.covering(range.clone());
        let is_there = self.fault.get().is_none()
            && range.end.0 <= self.len()
            && spans.clone().all(|span| self.lives.of(span) == Life::InFile);
        is_there.then(|| {
            self.works.note_read();
            spans.for_each(|span| self.touch(span, false));
            self.file.as_fd()
        })
    }

    fn describe(&self, range: Range<UncompressedOffset>) -> String {
        const LISTED_MAX: usize = 4;
        let is_missing =
            |span: &usize| !matches!(self.lives.of(*span), Life::InFile | Life::InMemory);
        let missing = self.table.covering(range).filter(is_missing).take(LISTED_MAX);
        let words = missing.map(|span| {
            let how = match self.lives.of(span) {
                Life::Asked => "is being fetched",
                Life::Verified => "is being inflated",
                _ => "was given up",
            };
            format!("span {span} {how}")
        });
        let words: Vec<String> = words.collect();
        if words.is_empty() { "all its spans are there".to_owned() } else { words.join(", ") }
    }

    fn complete_file(&self) -> Option<BorrowedFd<'_>> {
        let shown = self.complete.load(Ordering::Acquire) && self.fault.get().is_none();
        shown.then(|| self.file.as_fd())
    }

    fn layer_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn stands(&self, range: Range<UncompressedOffset>) -> bool {
        self.all_open(range)
    }

    fn follow(&self, follower: Weak<dyn Follower>) {
        self.add_follower(follower);
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        self.works.leave(self.id);
        self.shards.cancel_all();
        (0..self.lives.count())
            .filter(|span| self.lives.of(*span) == Life::InMemory)
            .for_each(|span| self.works.memory.remove((self.id, span as u32)));
        if self.role == Role::Private
            && let Err(error) = claim::remove_directory(self.claim.path())
        {
            tracing::warn!(layer = %self.digest, %error, "private copy of a layer stays behind");
        }
    }
}

/// Counts something.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
