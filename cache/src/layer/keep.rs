//! A span's way from fetched bytes into the layer file, or into memory where the disk refuses it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use spanfs_fetch::{Class, FetchError, Fetched};

use crate::ReadError;
use crate::crc::Crc32;
use crate::inflate::{Decoder, InflatedSpan, VerifiedSpan};
use crate::journal::{Header, Journal, Record};
use crate::life::Event;
use crate::recover::{Found, recover};
use crate::works::Asked;

use super::{Layer, add};

/// After a refused write the disk is left alone that long: trying costs the time of a span each.
const DISK_RETRY_DELAY: Duration = Duration::from_secs(10);

impl Layer {
    /// On a decoding thread: what the source said about a span.
    pub(super) fn fetched(
        &self,
        asked: Asked,
        result: Result<Fetched, FetchError>,
        decoder: &mut Decoder,
    ) {
        let span = asked.span();
        let cancelled = matches!(&result, Err(error) if error.class() == Class::Cancelled);
        let result = match result.map_err(|error| self.fetch_error(span, &error)) {
            Ok(fetched) => match self.check(span, fetched) {
                Ok(verified) => {
                    self.keep_compressed(&verified);
                    self.inflate(span, verified, decoder)
                }
                // Another mirror, or the same source on another day, may have better ones.
                Err(_) if self.retry_corrupt(span) => {
                    self.blob.distrust();
                    return self.fetch(asked);
                }
                Err(error) => Err(error),
            },
            Err(ReadError::Corrupt(_)) if self.retry_corrupt(span) => return self.fetch(asked),
            Err(error) => Err(error),
        };
        if cancelled {
            // As when a mount ends while its background is at work.
            tracing::debug!(layer = %self.digest, span, "span no longer wanted");
        } else if let Err(error) = &result {
            tracing::warn!(layer = %self.digest, span, %error, "span not to be had");
            add(&self.counters.failures, 1);
        }
        self.settle(span, result);
        asked.close();
    }

    fn fetch_error(&self, span: usize, error: &FetchError) -> ReadError {
        let message = format!("span {span} of layer {}: {error}", self.digest);
        match error.class() {
            Class::Corrupt => ReadError::Corrupt(message),
            _ => ReadError::Unavailable(message),
        }
    }

    fn check(&self, span: usize, fetched: Fetched) -> Result<VerifiedSpan, ReadError> {
        add(&self.counters.fetched_bytes, fetched.data().len() as u64);
        VerifiedSpan::check(&self.digest, &self.table, span, fetched).map_err(|error| {
            tracing::warn!(%error, "fetched bytes refused");
            ReadError::Corrupt(error.to_string())
        })
    }

    fn inflate(
        &self,
        span: usize,
        verified: VerifiedSpan,
        decoder: &mut Decoder,
    ) -> Result<Event, ReadError> {
        self.lives.advance(span, Event::Match);
        self.check_fault()?;
        let restart = self.table.spans().get(span).map(|span| span.restart);
        let window = restart.map(|restart| self.windows.read(span, restart)).transpose();
        let window = window.map_err(|error| {
            ReadError::Storage(format!("span {span} of layer {}: {error}", self.digest))
        })?;
        let window = window.flatten();
        let mut inflated = decoder.inflate(verified, window.as_deref()).map_err(|error| {
            // The compressed bytes are right, so what was said about them is wrong.
            self.condemn(error.to_string());
            ReadError::Corrupt(error.to_string())
        })?;
        self.blob.recycle(inflated.take_spent());
        let inflated = Arc::new(inflated);
        // Readers need not wait for the disk.
        self.show(span, &inflated);
        self.keep(&inflated)
    }

    /// Into the layer file and the journal; into memory if the disk refuses.
    fn keep(&self, inflated: &InflatedSpan) -> Result<Event, ReadError> {
        let span = inflated.number();
        if self.may_write() {
            match self.write(inflated) {
                Ok(()) => return Ok(Event::KeepInFile),
                Err(error) => self.disk_refused(span, &error),
            }
        }
        let key = (self.id, span as u32);
        if self.works.memory.put(key, inflated.bytes().into()) {
            return Ok(Event::KeepInMemory);
        }
        let message = format!(
            "span {span} of layer {} fits neither its file nor the memory limit",
            self.digest
        );
        Err(ReadError::Storage(message))
    }

    fn may_write(&self) -> bool {
        let mut writer = self.writer.lock();
        let now = Instant::now();
        if writer.disk_failed || writer.disk_retry_at.is_some_and(|at| now < at) {
            return false;
        }
        writer.disk_retry_at = None;
        true
    }

    fn write(&self, inflated: &InflatedSpan) -> io::Result<()> {
        // Counted before and behind, so that the verifier notices a write that went on while it read.
        self.counters.writes.fetch_add(1, Ordering::AcqRel);
        let written = self.file.write(inflated.start(), inflated.bytes());
        let last = inflated.number() + 1 == self.lives.count();
        let written = match last {
            true => written.and_then(|()| self.write_tail(inflated.tail())),
            false => written,
        };
        self.counters.writes.fetch_add(1, Ordering::AcqRel);
        written?;
        let mut crc = Crc32::new();
        crc.update(inflated.bytes_and_tail());
        self.record(&Record::Span { span: inflated.number() as u32, crc: crc.sum() });
        Ok(())
    }

    /// A span that is not recorded is fetched again after a restart: no harm to those who read now.
    pub(super) fn record(&self, record: &Record) {
        let mut writer = self.writer.lock();
        let Some(journal) = &mut writer.journal else { return };
        if let Err(error) = journal.append(record) {
            drop(writer);
            self.note_disk_error(format!("writing the span journal: {error}"));
        }
    }

    fn disk_refused(&self, span: usize, error: &io::Error) {
        self.writer.lock().disk_retry_at = Some(Instant::now() + DISK_RETRY_DELAY);
        self.note_disk_error(format!("writing span {span} to the layer file: {error}"));
    }

    /// Shown in the status: the memory tier has taken over, or a restart will fetch again.
    pub(super) fn note_disk_error(&self, message: String) {
        tracing::warn!(layer = %self.digest, "{message}");
        *self.counters.disk_error.lock() = Some(message);
    }

    /// The end of the blob that no file needs but that the diffID covers stands in a file of its own.
    fn write_tail(&self, tail: &[u8]) -> io::Result<()> {
        std::fs::write(self.claim.file(super::open::TAIL), tail)
    }

    /// Bytes that follow the archive in the blob.
    pub(crate) fn tail(&self) -> io::Result<Vec<u8>> {
        match std::fs::read(self.claim.file(super::open::TAIL)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            result => result,
        }
    }

    /// True if the layer file holds what the journal of an earlier run says about a span.
    pub(super) fn believe(&self, span: usize) -> bool {
        let claim = self.claims.get(span).copied().flatten();
        claim.is_some_and(|sum| self.holds(span, sum))
    }

    /// True if the layer file's bytes of a span (and the tail, behind the last) have this sum.
    pub(super) fn holds(&self, span: usize, expected: u32) -> bool {
        let Some(range) = self.table.spans().get(span).map(|span| &span.uncompressed) else {
            return false;
        };
        let sum = || -> io::Result<u32> {
            let mut crc = Crc32::new();
            self.file.checksum(range.clone(), &mut crc)?;
            if span + 1 == self.lives.count() {
                crc.update(&self.tail()?);
            }
            Ok(crc.sum())
        };
        match sum() {
            Ok(found) if found == expected => true,
            Ok(_) => {
                tracing::info!(layer = %self.digest, span, "span has changed on disk");
                false
            }
            Err(error) => {
                tracing::warn!(layer = %self.digest, span, %error, "span can't be checked");
                false
            }
        }
    }

    /// The sum that the journal has of each span.
    pub(super) fn recorded_sums(&self) -> Vec<Option<u32>> {
        let path = self.claim.file(super::open::JOURNAL);
        let (count, len) = (self.lives.count(), self.file.len());
        let header = Header::new(&self.digest, &self.ztoc_digest, count as u32, len);
        // Unreadable: then nothing exonerates the zTOC's maker.
        let records = Journal::peek(&path, &header).unwrap_or_default();
        recover(&records, count, &Found::default()).claims
    }
}
