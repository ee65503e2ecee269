//! Blobs that lie in local files: a few threads read them, the most urgent first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use spanfs_layer::Digest;

use crate::blob::{
    Blob, FetchError, FetchErrorDetail, Fetched, Priority, Ticket, TicketControl, Want,
};

/// Disks serve a few requests at once; more threads only take turns.
pub const READERS_DEFAULT: usize = 4;
/// Wants that wait for a thread; callers bound their bytes in flight far below it.
const WAITING_MAX: usize = 65_536;

/// Threads that read files. They end with the last clone and the last blob that uses them.
#[derive(Clone)]
pub struct ReadPool(Arc<Threads>);

struct Threads {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Default)]
struct Queue {
    /// A job stands here once for each priority it ever had; the first to be popped takes it.
    heap: BinaryHeap<(Priority, Reverse<u64>, Slot)>,
    sequence_next: u64,
    closed: bool,
}

/// Orders as equal to all others: the heap orders by priority and age alone.
struct Slot(Arc<Mutex<Option<Job>>>);

impl PartialEq for Slot {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Slot {}
impl PartialOrd for Slot {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Slot {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

struct Job {
    want: Want,
    file: Arc<File>,
    offset: u64,
    digest: Digest,
    cancelled: bool,
}

impl ReadPool {
    /// Start `threads` threads, at least one. Fails if the system has no more.
    pub fn start(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut pool = Threads { shared: shared.clone(), handles: Vec::new() };
        for _ in 0..threads.max(1) {
            let shared = shared.clone();
            let builder = std::thread::Builder::new().name("local-read".to_owned());
            pool.handles.push(builder.spawn(move || shared.work())?);
        }
        Ok(Self(Arc::new(pool)))
    }

    /// A range of a file as a blob.
    pub fn blob(&self, file: Arc<File>, offset: u64, digest: Digest, size: u64) -> Arc<dyn Blob> {
        Arc::new(FileBlob { file, offset, digest, size, pool: self.clone() })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.filled.notify_all();
        let me = std::thread::current().id();
        for handle in self.handles.drain(..) {
            // A reply may hold the last blob: then this runs on one of the threads themselves.
            if handle.thread().id() != me {
                let _ = handle.join();
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, priority: Priority, slot: Slot) -> bool {
        let mut queue = self.lock();
        if queue.heap.len() >= WAITING_MAX {
            return false;
        }
        let sequence = queue.sequence_next;
        queue.sequence_next += 1;
        queue.heap.push((priority, Reverse(sequence), slot));
        drop(queue);
        self.filled.notify_one();
        true
    }

    fn work(&self) {
        loop {
            let mut queue = self.lock();
            let slot = loop {
                if let Some((_, _, slot)) = queue.heap.pop() {
                    break slot;
                }
                if queue.closed {
                    return;
                }
                queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            };
            drop(queue);
            let job = slot.0.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(job) = job {
                job.run();
            }
        }
    }
}

impl Job {
    fn run(self) {
        let result = match self.cancelled {
            true => Err(FetchError::Cancelled),
            false => self.read(),
        };
        (self.want.reply)(result);
    }

    fn read(&self) -> Result<Fetched, FetchError> {
        let Range { start, end } = self.want.range;
        let headroom = self.want.headroom;
        let detail =
            |message: String| FetchErrorDetail { digest: self.digest, range: start..end, message };
        let len = usize::try_from(end - start).ok().and_then(|len| len.checked_add(headroom));
        let len = len.ok_or_else(|| FetchError::Refused(detail("too long".to_owned())))?;
        let mut bytes = vec![0; len];
        let room = bytes.get_mut(headroom..).unwrap_or_default();
        match self.file.read_exact_at(room, self.offset + start) {
            Ok(()) => Ok(Fetched { bytes, headroom }),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(
                FetchError::Corrupt(detail("the file is shorter than its descriptor".to_owned())),
            ),
            Err(error) => Err(FetchError::Unreachable(detail(error.to_string()))),
        }
    }
}

struct FileBlob {
    file: Arc<File>,
    offset: u64,
    digest: Digest,
    size: u64,
    pool: ReadPool,
}

impl Blob for FileBlob {
    fn digest(&self) -> &Digest {
        &self.digest
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn want(&self, want: Want) -> Ticket {
        let valid = want.range.start < want.range.end && want.range.end <= self.size;
        assert!(valid, "range {:?} of a blob of {} bytes", want.range, self.size);
        let priority = want.priority;
        let job = Job {
            want,
            file: self.file.clone(),
            offset: self.offset,
            digest: self.digest,
            cancelled: false,
        };
        let slot = Arc::new(Mutex::new(Some(job)));
        let shared = self.pool.0.shared.clone();
        if !shared.push(priority, Slot(slot.clone())) {
            let job = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(job) = job {
                let message = format!("more than {WAITING_MAX} reads are waiting");
                let detail =
                    FetchErrorDetail { digest: job.digest, range: job.want.range, message };
                (job.want.reply)(Err(FetchError::Unreachable(detail)));
            }
        }
        Ticket::new(Arc::new(Hold { slot, shared, priority: Mutex::new(priority) }))
    }
}

struct Hold {
    slot: Arc<Mutex<Option<Job>>>,
    shared: Arc<Shared>,
    priority: Mutex<Priority>,
}

impl TicketControl for Hold {
    fn promote(&self, priority: Priority) {
        let mut held = self.priority.lock().unwrap_or_else(PoisonError::into_inner);
        // A queue that is full keeps the job where it stands: late, not lost.
        if priority > *held && self.shared.push(priority, Slot(self.slot.clone())) {
            *held = priority;
        }
    }

    fn cancel(&self) {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(job) = slot.as_mut() {
            job.cancelled = true;
        }
    }
}

#[cfg(test)]
mod tests;
