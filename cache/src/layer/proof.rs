//! From the last span to a layer that may be shown directly: hashed, durable, sealed.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use spanfs_fetch::Priority;
use spanfs_layer::{Digest, Hasher};

use crate::journal::Record;
use crate::layer_file::Stamp;
use crate::life::{Event, Life};
use crate::verify::Reader;

use super::{Layer, Role, Verification};

/// While somebody waits for bytes, hashing stands back; but not for ever.
const PATIENCE: Duration = Duration::from_secs(20);
/// The same while somebody reads what is there: as long as the start of a large program.
const PATIENCE_READS: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(5);
/// Nobody is reading any more when nobody has for so long.
const QUIET: Duration = Duration::from_millis(100);

/// Zeros that may follow an archive outside all spans: far more than a tar record of 10,240 bytes.
const PADDING_BLOCKS_MAX: usize = 2048;

/// Times that a whole is hashed again because the disk lost a span of it.
const LOST_COUNT_MAX: u64 = 3;

impl Layer {
    /// If all spans are in the layer file, have the whole checked.
    pub(super) fn check_complete(&self) {
        let all = self.lives.in_file() == self.lives.count();
        if all && self.diff_id.is_some() && !self.verifying.swap(true, Ordering::AcqRel) {
            self.works.verifier.submit(self.me.clone());
        }
    }

    /// On the verifying thread: hash the whole layer file, and act on the outcome.
    pub(crate) fn verify(&self, reader: &Reader) {
        let Some(diff_id) = self.diff_id.filter(|_| self.fault.get().is_none()) else { return };
        let started = Instant::now();
        let writes = self.counters.writes.load(Ordering::Acquire);
        let mut pause = || {
            let waits = || self.works.demand() > 0 && started.elapsed() < PATIENCE;
            let reads = || self.works.idle() < QUIET && started.elapsed() < PATIENCE_READS;
            while (waits() || reads()) && !self.is_closing() {
                std::thread::sleep(PAUSE);
            }
            !self.is_closing()
        };
        let hashed = self.tail().and_then(|tail| {
            let len = self.table.uncompressed_len();
            let file = self.file.as_file();
            let mut hasher = reader.hash(file, len, diff_id.algorithm(), &mut pause)?;
            hasher.update(&tail);
            Ok(hasher)
        });
        let mut again = hashed.is_ok();
        match hashed {
            Ok(hasher) if self.matches(&hasher, &diff_id) => match self.belied() {
                Ok(None) => self.accept(started),
                Ok(Some(reason)) => self.condemn(reason),
                Err(error) => {
                    again = false;
                    self.note_disk_error(format!("reading the kept zTOC again: {error}"));
                }
            },
            Ok(hasher) => {
                let (digest, found) = (self.digest, hasher.finish());
                let reason = format!(
                    "the uncompressed layer {digest} has digest {found}, its image promises {diff_id}"
                );
                self.blame(writes, reason);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.note_disk_error(format!("verifying the layer file: {error}")),
        }
        self.verifying.store(false, Ordering::Release);
        if again && !self.complete.load(Ordering::Acquire) && self.fault.get().is_none() {
            // Spans may have come while we had an eye on others.
            self.check_complete();
        }
    }

    /// True if what was hashed is the whole layer, whose padding may lie outside all spans.
    fn matches(&self, hasher: &Hasher, diff_id: &Digest) -> bool {
        let covered = self.table.spans().last().map_or(0, |span| span.compressed.end.0);
        if covered == self.table.compressed_len() {
            return hasher.clone().finish() == *diff_id;
        }
        // Spans wholly behind the archive are not fetched: they hold zeros up to a full tar record,
        // as a rule. If the guess is right the digest proves it.
        let mut hasher = hasher.clone();
        (0..=PADDING_BLOCKS_MAX).any(|blocks| {
            if blocks > 0 {
                hasher.update(&[0; 512]);
            }
            hasher.clone().finish() == *diff_id
        })
    }

    /// An earlier run may have left all spans: then one look at the whole replaces one at each.
    pub(super) fn check_left(&self) {
        let readable = |span| matches!(self.lives.of(span), Life::InFile | Life::Claimed);
        let all = (0..self.lives.count()).all(readable);
        let open = *self.verification.read() == Verification::Pending;
        if all && open && !self.verifying.swap(true, Ordering::AcqRel) {
            self.works.verifier.submit(self.me.clone());
        }
    }

    /// Wait while the whole is being checked, as long as `goes_on`.
    pub(crate) fn wait_for_check(&self, goes_on: impl Fn() -> bool) {
        while self.verifying.load(Ordering::Acquire) && goes_on() {
            std::thread::sleep(PAUSE);
        }
    }

    fn is_closing(&self) -> bool {
        // Only the verifier's own hold on the layer is left.
        self.me.strong_count() <= 1
    }

    fn accept(&self, started: Instant) {
        for span in 0..self.lives.count() {
            let _shard = self.shards.lock(span);
            if self.lives.of(span) == Life::Claimed {
                self.lives.advance(span, Event::Ask);
                self.lives.advance(span, Event::Believe);
            }
        }
        self.tell_all_later();
        *self.verification.write() = Verification::Verified;
        self.record(&Record::Verified);
        let took = started.elapsed();
        tracing::info!(layer = %self.digest, ?took, "layer verified against its diffID");
        if self.lives.in_file() == self.lives.count() {
            self.complete.store(true, Ordering::Release);
        }
        self.make_durable();
    }

    /// Bring the files of a complete layer to the disk and say so there, unless that was done: then the
    /// next start believes them without a look. Takes as long as the disk likes.
    pub fn make_durable(&self) {
        let is_open = self.writer.lock().fill.is_some();
        if is_open
            && self.complete.load(Ordering::Acquire)
            && let Err(error) = self.seal()
        {
            self.note_disk_error(format!("making the layer file durable: {error}"));
        }
    }

    /// Make the files durable and say so; then nobody needs to fill any more.
    pub(super) fn seal(&self) -> io::Result<()> {
        if self.role != Role::Owner {
            return Ok(());
        }
        self.file.sync()?;
        self.windows.settle()?;
        let ztoc = std::fs::File::open(self.claim.file(super::open::ZTOC))?;
        ztoc.sync_all()?;
        if let Ok(tail) = std::fs::File::open(self.claim.file(super::open::TAIL)) {
            tail.sync_all()?;
        }
        std::fs::File::open(self.claim.path())?.sync_all()?;
        let mut writer = self.writer.lock();
        if let Some(journal) = &mut writer.journal {
            journal.append(&Record::ZtocKept(Stamp::of(&ztoc.metadata()?)))?;
            journal.append(&Record::Sealed(self.file.stamp()?))?;
            journal.sync()?;
        }
        writer.fill = None;
        Ok(())
    }

    /// The whole is wrong: the disk's fault or the zTOC's? `writes` is the count of begins and ends of
    /// writes before it was hashed.
    fn blame(&self, writes: u64, reason: String) {
        let settled = |span| matches!(self.lives.of(span), Life::InFile | Life::Claimed);
        let written = self.counters.writes.load(Ordering::Acquire) != writes;
        if written || !(0..self.lives.count()).all(settled) {
            // A span was replaced while we read: that was no look at the whole.
            return;
        }
        let lost = self.lost_spans();
        let count = self.counters.lost.fetch_add(1, Ordering::Relaxed);
        if lost.is_empty() || count >= LOST_COUNT_MAX {
            return self.condemn(reason);
        }
        self.note_disk_error(format!("spans {lost:?} changed in the layer file; fetched again"));
        for span in lost {
            self.forget(span, Event::Lose);
            self.tell_gone(span..span + 1);
            // Nobody may read it again: without it the layer would never be complete.
            self.want(span, Priority::Background, None);
        }
    }

    /// Spans whose bytes in the layer file are not those that were recorded.
    fn lost_spans(&self) -> Vec<usize> {
        let sums = self.recorded_sums();
        let lost = |span: &usize| {
            let sum = sums.get(*span).copied().flatten();
            let kept = matches!(self.lives.of(*span), Life::InFile | Life::Claimed);
            kept && sum.is_some_and(|sum| !self.holds(*span, sum))
        };
        (0..self.lives.count()).filter(lost).collect()
    }

    /// The layer was found out: it is not served any more, and its files go.
    pub(super) fn condemn(&self, reason: String) {
        tracing::error!(layer = %self.digest, "{reason}");
        if self.fault.set(reason.clone()).is_err() {
            return;
        }
        self.complete.store(false, Ordering::Release);
        self.tell_gone(0..self.lives.count());
        *self.verification.write() = Verification::Failed(reason.clone());
        *self.writer.lock() = Default::default();
        super::open::leave_reason(&self.claim, &self.ztoc_digest, &reason);
    }
}
