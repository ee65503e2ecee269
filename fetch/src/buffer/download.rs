//! A whole blob into a file, chunks in any order, resumable after a crash, read while it grows.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;

use super::journal::{Journal, Subject, checksum};
use super::stream::{Chunk, Stream, StreamOptions};
use crate::blob::{Blob, Class, FetchError};

/// Shape of a download.
#[derive(Clone, Debug)]
pub struct DownloadOptions {
    /// Chunks and how many at once. Another chunk length than before starts the download anew.
    pub stream: StreamOptions,
    /// Failed wants in a row before the download fails; the engine has retried each already.
    pub failures_max: u32,
}

impl Default for DownloadOptions {
    fn default() -> Self {
        Self { stream: StreamOptions::default(), failures_max: 3 }
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
        /// What the kernel said.
        #[source]
        source: io::Error,
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
    /// Nobody wants it any more.
    #[error("downloading into {} was stopped", path.display())]
    Stopped {
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
    /// Chunks that are in the file by the journal, with their checksums.
    recorded: BTreeMap<u64, u64>,
    growing: Growing,
}

/// The file of a download for those who read it while it grows. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Growing(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    file: Arc<File>,
    front: Mutex<Front>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct Front {
    /// Bytes from the start on that are there.
    len: u64,
    /// Nobody goes on filling it.
    ended: bool,
}

/// Whether a finished file must survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// It must.
    Yes,
    /// It will not be needed then.
    No,
}

impl Growing {
    /// Bytes that can be read from the file's start on, once they are more than `at`; what there is
    /// after `wait` otherwise. `None` once the download has ended without coming so far.
    pub fn wait(&self, at: u64, wait: Duration) -> Option<u64> {
        let until = Instant::now() + wait;
        let mut front = self.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if front.len > at || (left.is_zero() && !front.ended) {
                return Some(front.len);
            }
            if front.ended {
                return None;
            }
            let waited = self.0.moved.wait_timeout(front, left);
            front = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The file. Bytes behind the front may be anything.
    pub fn file(&self) -> &File {
        &self.0.file
    }

    fn lock(&self) -> MutexGuard<'_, Front> {
        self.0.front.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn advance(&self, len: u64) {
        self.lock().len = len;
        self.0.moved.notify_all();
    }

    fn end(&self) {
        self.lock().ended = true;
        self.0.moved.notify_all();
    }
}

/// How often a wait looks whether it is still wanted.
const STOP_POLL: Duration = Duration::from_millis(50);

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
        let journal_path = Self::journal_path(path);
        let journal = open_file(&journal_path)
            // A journal beside a file that is not its own would declare holes to be data.
            .and_then(|file| if found == size { Ok(file) } else { file.set_len(0).map(|()| file) })
            .and_then(|file| Journal::open(file, &subject))
            .map_err(|source| disk_error(&journal_path, size, "reading", source))?;
        let (journal, chunks) = journal;
        let file = Arc::new(file);
        let shared =
            Shared { file: Arc::clone(&file), front: Mutex::default(), moved: Condvar::new() };
        Ok(Self {
            path: path.to_owned(),
            file,
            journal,
            subject,
            options,
            recorded: chunks.into_iter().collect(),
            growing: Growing(Arc::new(shared)),
        })
    }

    /// Where the progress of a download into `path` is recorded.
    pub fn journal_path(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(".journal");
        name.into()
    }

    /// Bytes that a later download will not fetch again.
    pub fn recorded_bytes(&self) -> u64 {
        self.recorded.keys().map(|&index| self.range(index)).map(|it| it.end - it.start).sum()
    }

    /// The file, for those who read it meanwhile.
    pub fn growing(&self) -> Growing {
        self.growing.clone()
    }

    /// Fetch what is missing. What earlier runs recorded is checked first; chunks whose bytes are not
    /// what was recorded are fetched again.
    ///
    /// # Errors
    /// The download can be run again after each; what is recorded is not fetched again.
    pub fn run(
        &mut self,
        blob: &Arc<dyn Blob>,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), BufferError> {
        let result = self.fill(blob, stop);
        self.growing.end();
        result
    }

    /// The complete file; its journal is removed.
    ///
    /// # Errors
    /// If the disk refuses, or chunks are missing.
    pub fn finish(self, durable: Durable) -> Result<Arc<File>, BufferError> {
        let size = self.subject.size;
        let failed = |action, source| disk_error(&self.path, size, action, source);
        let missing = size - self.growing.lock().len;
        if missing > 0 {
            let source = io::Error::other(format!("{missing} bytes are missing"));
            return Err(failed("finishing", source));
        }
        if durable == Durable::Yes {
            self.file.sync_all().map_err(|source| failed("syncing", source))?;
        }
        let journal = Self::journal_path(&self.path);
        std::fs::remove_file(&journal)
            .map_err(|source| disk_error(&journal, size, "removing", source))?;
        Ok(self.file)
    }

    fn range(&self, index: u64) -> Range<u64> {
        let start = index.saturating_mul(self.subject.chunk_bytes);
        start..self.subject.size.min(start.saturating_add(self.subject.chunk_bytes))
    }

    fn fill(
        &mut self,
        blob: &Arc<dyn Blob>,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), BufferError> {
        let mut front = Progress { present: BTreeMap::new(), next: 0 };
        self.check_recorded(&mut front, stop)?;
        let missing = (0..self.subject.chunks_count()).filter(|it| !front.has(*it));
        let missing: Vec<_> = missing.map(|index| self.range(index)).collect();
        let stream = Stream::of_chunks(Arc::clone(blob), missing, self.options.stream.clone());
        let Self { path, file, journal, subject, options, recorded, growing } = self;
        Filling { path, file, journal, recorded, subject, options, growing, front }
            .run(stream, stop)
    }

    /// Look at what earlier runs recorded.
    fn check_recorded(
        &mut self,
        front: &mut Progress,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), BufferError> {
        let mut bytes = Vec::new();
        for (index, sum) in std::mem::take(&mut self.recorded) {
            if stop() {
                return Err(BufferError::Stopped { path: self.path.clone() });
            }
            let range = self.range(index);
            bytes.resize(usize::try_from(range.end - range.start).unwrap_or(usize::MAX), 0);
            self.file
                .read_exact_at(&mut bytes, range.start)
                .map_err(|source| disk_error(&self.path, self.subject.size, "reading", source))?;
            if checksum(&bytes, index) != sum {
                let path = self.path.display();
                tracing::warn!(path = %path, index, "chunk is damaged: fetching it again");
                continue;
            }
            self.recorded.insert(index, sum);
            let chunk_bytes = self.subject.chunk_bytes;
            front.add(index, range.end, chunk_bytes, &self.growing);
        }
        Ok(())
    }
}

/// Which chunks are there.
struct Progress {
    /// Behind the front, with the end of each.
    present: BTreeMap<u64, u64>,
    /// Chunks in front of this one are all there.
    next: u64,
}

impl Progress {
    fn has(&self, index: u64) -> bool {
        index < self.next || self.present.contains_key(&index)
    }

    fn add(&mut self, index: u64, end: u64, chunk_bytes: u64, growing: &Growing) {
        self.present.insert(index, end);
        let mut len = None;
        while let Some(end) = self.present.remove(&self.next) {
            self.next += 1;
            len = Some(end.min(self.next.saturating_mul(chunk_bytes)));
        }
        if let Some(len) = len {
            growing.advance(len);
        }
    }
}

/// A download while it runs.
struct Filling<'a> {
    path: &'a Path,
    file: &'a File,
    journal: &'a mut Journal,
    recorded: &'a mut BTreeMap<u64, u64>,
    subject: &'a Subject,
    options: &'a DownloadOptions,
    growing: &'a Growing,
    front: Progress,
}

impl Filling<'_> {
    fn run(
        &mut self,
        mut stream: Stream,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), BufferError> {
        let mut failures = 0;
        loop {
            if stop() {
                return Err(BufferError::Stopped { path: self.path.to_owned() });
            }
            match stream.poll_as_it_comes(STOP_POLL) {
                Poll::Pending => {}
                Poll::Ready(None) => return Ok(()),
                Poll::Ready(Some(Ok(chunk))) => {
                    failures = 0;
                    self.write(&chunk)?;
                    stream.blob().recycle(chunk.fetched.bytes);
                }
                Poll::Ready(Some(Err(source))) => {
                    failures += 1;
                    if source.class() != Class::Retry || failures >= self.options.failures_max {
                        let source = Box::new(source);
                        return Err(BufferError::Fetch { path: self.path.to_owned(), source });
                    }
                    tracing::warn!(path = %self.path.display(), error = %source, "asking again");
                }
            }
        }
    }

    /// Put a chunk in its place, and record that.
    fn write(&mut self, chunk: &Chunk) -> Result<(), BufferError> {
        let (data, chunk_bytes) = (chunk.fetched.data(), self.subject.chunk_bytes);
        let (path, size) = (self.path, self.subject.size);
        let failed = |action| move |source| disk_error(path, size, action, source);
        self.file.write_all_at(data, chunk.offset).map_err(failed("writing"))?;
        let index = chunk.offset / chunk_bytes;
        let sum = checksum(data, index);
        self.journal.append(index, sum).map_err(failed("recording a part of"))?;
        self.recorded.insert(index, sum);
        self.front.add(index, chunk.offset + data.len() as u64, chunk_bytes, self.growing);
        Ok(())
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
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
            BufferError::NoSpace { path, size, source }
        }
        _ => BufferError::Disk { action, path, source },
    }
}

#[cfg(test)]
mod tests;
