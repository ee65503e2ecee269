//! A whole blob into a file, chunks in any order, resumable after a crash.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{SendTimeoutError, Sender};
use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;

use super::journal::{Journal, Subject, checksum};
use super::stream::{Chunk, Stream, StreamOptions};
use crate::blob::{Blob, FetchError, Fetched};

/// Shape of a download.
#[derive(Clone, Debug)]
pub struct DownloadOptions {
    /// Chunks and how many at once. Another chunk length than before starts the download anew.
    pub stream: StreamOptions,
    /// Bytes written between two moments at which progress becomes durable.
    pub sync_bytes: u64,
    /// Failed wants in a row before the download fails; the engine has retried each already.
    pub failures_max: u32,
    /// How long the consumer may leave a chunk waiting.
    pub consumer_patience: Duration,
}

impl Default for DownloadOptions {
    fn default() -> Self {
        Self {
            stream: StreamOptions::default(),
            // What a crash costs at most: a fraction of a second of transfer.
            sync_bytes: 64 << 20,
            failures_max: 3,
            consumer_patience: Duration::from_secs(300),
        }
    }
}

/// Why a blob does not get into its file.
#[derive(Debug, thiserror::Error)]
pub enum BufferError {
    /// The file system has no room.
    #[error("no space for the {size} bytes of {}", path.display())]
    NoSpace {
        /// File.
        path: PathBuf,
        /// Length of the blob.
        size: u64,
    },
    /// Another process or thread fills the same file.
    #[error("{} is being downloaded by somebody else", path.display())]
    Busy {
        /// File.
        path: PathBuf,
    },
    /// The disk refused.
    #[error("{action} {}", path.display())]
    Disk {
        /// What was attempted.
        action: &'static str,
        /// File.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The network refused.
    #[error("downloading into {}", path.display())]
    Fetch {
        /// File.
        path: PathBuf,
        /// Cause.
        #[source]
        source: Box<FetchError>,
    },
    /// The consumer of the chunks is gone, or took none for too long.
    #[error("nobody takes the chunks of {}", path.display())]
    Consumer {
        /// File.
        path: PathBuf,
    },
}

/// A file that a blob is downloaded into. Dropped before its end, it keeps what is recorded.
#[derive(Debug)]
pub struct Download {
    path: PathBuf,
    file: Arc<File>,
    journal: Journal,
    subject: Subject,
    options: DownloadOptions,
    /// Chunks in the file by index, with their checksums.
    present: BTreeMap<u64, u64>,
    /// In the file and not yet recorded.
    unrecorded: Vec<(u64, u64)>,
    unrecorded_bytes: u64,
}

impl Download {
    /// Open or resume the download of a blob into `path`; its journal is `path` with `.journal`.
    ///
    /// # Errors
    /// If the file system has no room for all of it, refuses, or another download has the file.
    pub fn open(
        path: &Path,
        blob: &dyn Blob,
        options: DownloadOptions,
    ) -> Result<Self, BufferError> {
        let size = blob.size();
        let chunk_bytes = options.stream.chunk_bytes.max(1);
        let subject = Subject { digest: *blob.digest(), size, chunk_bytes };
        let disk = |action| move |source| disk_error(path, size, action, source);
        let file = open_file(path).map_err(disk("opening"))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(BufferError::Busy { path: path.into() }),
            Err(errno) => return Err(disk("locking")(errno.into())),
        }
        let found = file.metadata().map_err(disk("reading"))?.len();
        reserve(&file, size).map_err(disk("reserving space for"))?;
        let journal_path = journal_path(path);
        let journal = open_file(&journal_path)
            // A journal beside a file that is not its own would declare holes to be data.
            .and_then(|file| if found == size { Ok(file) } else { file.set_len(0).map(|()| file) })
            .and_then(|file| Journal::open(file, &subject))
            .map_err(|source| disk_error(&journal_path, size, "reading", source))?;
        let (journal, chunks) = journal;
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            journal,
            subject,
            options,
            present: chunks.into_iter().collect(),
            unrecorded: Vec::new(),
            unrecorded_bytes: 0,
        })
    }

    /// Bytes that need not be fetched.
    pub fn present_bytes(&self) -> u64 {
        let lens = self.present.keys().map(|&index| self.range(index));
        lens.map(|range| range.end - range.start).sum()
    }

    /// Fetch what is missing, and hand all chunks to the consumer in order: those that are there
    /// already from the file, after their checksum was compared. The file keeps everything.
    ///
    /// # Errors
    /// The download can be run again after each; what is recorded is not fetched again.
    pub fn run(
        &mut self,
        blob: &Arc<dyn Blob>,
        consumer: Option<&Sender<Chunk>>,
    ) -> Result<(), BufferError> {
        let indices = 0..self.subject.chunks_count();
        let missing = |index: &u64| !self.present.contains_key(index);
        let wanted: Vec<_> =
            indices.clone().filter(missing).map(|index| self.range(index)).collect();
        let mut stream = Stream::of_chunks(Arc::clone(blob), wanted, self.options.stream.clone());
        let result = indices.into_iter().try_for_each(|index| {
            let chunk = match self.present.get(&index).copied() {
                Some(sum) => self.read_chunk(blob, index, sum, consumer.is_some())?,
                None => Some(self.fetch_chunk(&mut stream, index)?),
            };
            match (chunk, consumer) {
                (Some(chunk), Some(consumer)) => self.hand_over(chunk, consumer),
                (Some(chunk), None) => {
                    blob.recycle(chunk.fetched.bytes);
                    Ok(())
                }
                (None, _) => Ok(()),
            }
        });
        // What came before a failure is worth keeping; the failure itself is what is reported.
        let recorded = self.record();
        result.and(recorded)
    }

    /// The complete file, durable; its journal is removed.
    ///
    /// # Errors
    /// If the disk refuses, or chunks are missing.
    pub fn finish(mut self) -> Result<File, BufferError> {
        self.record()?;
        let missing = self.subject.chunks_count() - self.present.len() as u64;
        if missing > 0 {
            let source = io::Error::other(format!("{missing} chunks are missing"));
            return Err(disk_error(&self.path, self.subject.size, "finishing", source));
        }
        let journal = journal_path(&self.path);
        std::fs::remove_file(&journal)
            .map_err(|source| disk_error(&journal, self.subject.size, "removing", source))?;
        let file = self.file.try_clone();
        file.map_err(|source| disk_error(&self.path, self.subject.size, "finishing", source))
    }

    fn range(&self, index: u64) -> Range<u64> {
        let start = index.saturating_mul(self.subject.chunk_bytes);
        start..self.subject.size.min(start.saturating_add(self.subject.chunk_bytes))
    }

    /// Next chunk from the network, written to its place.
    fn fetch_chunk(&mut self, stream: &mut Stream, index: u64) -> Result<Chunk, BufferError> {
        let mut failures = 0;
        let chunk = loop {
            match stream.next_in_order() {
                Some(Ok(chunk)) => break chunk,
                Some(Err(source)) => {
                    failures += 1;
                    if failures >= self.options.failures_max {
                        let source = Box::new(source);
                        return Err(BufferError::Fetch { path: self.path.clone(), source });
                    }
                }
                None => unreachable!("chunk {index} is missing and not streamed"),
            }
        };
        assert_eq!(chunk.offset, self.range(index).start, "chunks are out of order");
        self.write(index, &chunk)?;
        Ok(chunk)
    }

    /// A chunk of an earlier run; `None` if nobody is to read it. One whose bytes are not what was
    /// recorded is fetched again.
    fn read_chunk(
        &mut self,
        blob: &Arc<dyn Blob>,
        index: u64,
        sum: u64,
        needed: bool,
    ) -> Result<Option<Chunk>, BufferError> {
        if !needed {
            return Ok(None);
        }
        let range = self.range(index);
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
        self.file
            .read_exact_at(&mut bytes, range.start)
            .map_err(|source| disk_error(&self.path, self.subject.size, "reading", source))?;
        if checksum(&bytes, index) == sum {
            let fetched = Fetched { bytes, headroom: 0 };
            return Ok(Some(Chunk { offset: range.start, fetched }));
        }
        tracing::warn!(path = %self.path.display(), index, "chunk is damaged: fetching it again");
        let options = self.options.stream.clone();
        let mut again = Stream::of_chunks(Arc::clone(blob), vec![range], options);
        self.fetch_chunk(&mut again, index).map(Some)
    }

    fn hand_over(&self, chunk: Chunk, consumer: &Sender<Chunk>) -> Result<(), BufferError> {
        match consumer.send_timeout(chunk, self.options.consumer_patience) {
            Ok(()) => Ok(()),
            Err(SendTimeoutError::Timeout(_) | SendTimeoutError::Disconnected(_)) => {
                Err(BufferError::Consumer { path: self.path.clone() })
            }
        }
    }

    fn write(&mut self, index: u64, chunk: &Chunk) -> Result<(), BufferError> {
        let data = chunk.fetched.data();
        self.file
            .write_all_at(data, chunk.offset)
            .map_err(|source| disk_error(&self.path, self.subject.size, "writing", source))?;
        self.unrecorded.push((index, checksum(data, index)));
        self.unrecorded_bytes += data.len() as u64;
        if self.unrecorded_bytes >= self.options.sync_bytes { self.record() } else { Ok(()) }
    }

    /// Make progress durable: the data first, then the word that it is there.
    fn record(&mut self) -> Result<(), BufferError> {
        if self.unrecorded.is_empty() {
            return Ok(());
        }
        let recorded = self.file.sync_data().and_then(|()| self.journal.append(&self.unrecorded));
        recorded.map_err(|source| disk_error(&self.path, self.subject.size, "syncing", source))?;
        self.present.extend(self.unrecorded.drain(..));
        self.unrecorded_bytes = 0;
        Ok(())
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

fn journal_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".journal");
    name.into()
}

/// Set the file's length and, where the file system can, its blocks aside.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    file.set_len(size)?;
    if size == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Ok(()) => Ok(()),
        // Then a full disk shows at a write.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn disk_error(path: &Path, size: u64, action: &'static str, source: io::Error) -> BufferError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            BufferError::NoSpace { path, size }
        }
        _ => BufferError::Disk { action, path, source },
    }
}

#[cfg(test)]
mod tests;
