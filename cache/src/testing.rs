//! Layers and blobs for tests: uncompressed spans of bytes that a seed makes, from a source that
//! fails as told.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;
use spanfs_fetch::{Blob, FetchError, FetchErrorDetail, Fetched, Ticket, TicketControl, Want};
use spanfs_layer::ztoc::Compression;
use spanfs_layer::{Digest, UncompressedOffset, Ztoc};

use crate::cache::directory::Directory;
use crate::layer::{self, Layer, LayerSpec};
use crate::works::Works;
use crate::{CacheError, Content, ReadError};

/// How a source answers one want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Unreachable,
    Flip,
    /// The reply is dropped without an answer.
    Lost,
    /// No answer before the test ends.
    Stall,
}

/// Pseudo-random numbers (xorshift64*), the same on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }
}

type Faults = Box<dyn FnMut(&Range<u64>) -> Fault + Send>;

/// A blob in memory, answered from threads of its own.
pub(crate) struct TestBlob {
    pub(crate) bytes: Arc<Vec<u8>>,
    digest: Digest,
    queue: Mutex<Vec<Sender<(Want, Fault)>>>,
    pub(crate) wanted: Mutex<Vec<Range<u64>>>,
    faults: Mutex<Faults>,
    stalled: Mutex<Vec<Want>>,
}

struct NoControl;

impl TicketControl for NoControl {
    fn promote(&self, _: spanfs_fetch::Priority) {}
    fn cancel(&self) {}
}

impl TestBlob {
    pub(crate) fn new(bytes: Vec<u8>) -> Arc<Self> {
        Self::with_delay(bytes, Duration::ZERO)
    }

    pub(crate) fn with_delay(bytes: Vec<u8>, delay: Duration) -> Arc<Self> {
        let digest = Digest::of(&bytes);
        let bytes = Arc::new(bytes);
        let queue = (0..4).map(|_| answerer(bytes.clone(), digest, delay)).collect();
        Arc::new(Self {
            bytes,
            digest,
            queue: Mutex::new(queue),
            wanted: Mutex::default(),
            faults: Mutex::new(Box::new(|_| Fault::None)),
            stalled: Mutex::default(),
        })
    }

    pub(crate) fn fail(&self, faults: impl FnMut(&Range<u64>) -> Fault + Send + 'static) {
        *self.faults.lock() = Box::new(faults);
    }

    pub(crate) fn wants(&self) -> usize {
        self.wanted.lock().len()
    }
}

fn answerer(bytes: Arc<Vec<u8>>, digest: Digest, delay: Duration) -> Sender<(Want, Fault)> {
    let (sender, wants) = channel::<(Want, Fault)>();
    std::thread::spawn(move || {
        for (want, fault) in wants {
            std::thread::sleep(delay);
            let range = want.range.start as usize..want.range.end as usize;
            let mut data = vec![0; want.headroom];
            data.extend(&bytes[range]);
            let detail = || FetchErrorDetail {
                digest,
                range: want.range.clone(),
                message: "told to fail".into(),
            };
            match fault {
                Fault::Lost | Fault::Stall => continue,
                Fault::Unreachable => (want.reply)(Err(FetchError::Unreachable(detail()))),
                Fault::Flip | Fault::None => {
                    let last = data.len() - 1;
                    data[last] ^= u8::from(fault == Fault::Flip);
                    (want.reply)(Ok(Fetched { bytes: data, headroom: want.headroom }));
                }
            }
        }
    });
    sender
}

impl Blob for TestBlob {
    fn digest(&self) -> &Digest {
        &self.digest
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn want(&self, want: Want) -> Ticket {
        let fault = (self.faults.lock())(&want.range);
        let mut wanted = self.wanted.lock();
        wanted.push(want.range.clone());
        if fault == Fault::Stall {
            self.stalled.lock().push(want);
        } else {
            let queue = self.queue.lock();
            queue[wanted.len() % queue.len()].send((want, fault)).unwrap();
        }
        Ticket::new(Arc::new(NoControl))
    }
}

/// A layer of uncompressed spans.
pub(crate) struct TestLayer {
    pub(crate) blob: Arc<TestBlob>,
    pub(crate) ztoc: Vec<u8>,
    tail_len: usize,
}

impl TestLayer {
    /// `len` bytes in spans of `span_len`, of which the last `tail_len` stand behind the archive.
    pub(crate) fn new(seed: u64, len: usize, span_len: usize, tail_len: usize) -> Self {
        let mut random = Random(seed + 1);
        let bytes = (0..len).map(|_| random.next() as u8).collect();
        Self::of(TestBlob::new(bytes), span_len, tail_len)
    }

    pub(crate) fn of(blob: Arc<TestBlob>, span_len: usize, tail_len: usize) -> Self {
        let ztoc = Ztoc {
            version: b"0.9".to_vec(),
            build_tool: b"test".to_vec(),
            compressed_size: blob.size(),
            uncompressed_size: blob.size() - tail_len as u64,
            records: Vec::new(),
            compression: Compression::Uncompressed,
            span_digests: blob.bytes.chunks(span_len).map(Digest::of).collect(),
            checkpoints: tar_checkpoints(span_len as u64, blob.size()),
        };
        Self { blob, ztoc: ztoc.encode(), tail_len }
    }

    /// The archive, without what stands behind it.
    pub(crate) fn content(&self) -> &[u8] {
        &self.blob.bytes[..self.blob.bytes.len() - self.tail_len]
    }

    pub(crate) fn spec(&self) -> LayerSpec {
        LayerSpec {
            diff_id: Some(Digest::of(&self.blob.bytes)),
            blob: self.blob.clone(),
            ztoc_digest: Digest::of(&self.ztoc),
            ztoc: self.ztoc.clone().into(),
        }
    }

    pub(crate) fn open(&self, place: &Place) -> Arc<Layer> {
        self.try_open(place, self.spec()).unwrap()
    }

    pub(crate) fn try_open(
        &self,
        place: &Place,
        spec: LayerSpec,
    ) -> Result<Arc<Layer>, CacheError> {
        layer::open(&place.works, &place.directory, spec)
    }
}

/// Restart points of a plain tar: the FlatBuffers root table of span size and size.
fn tar_checkpoints(span_len: u64, size: u64) -> Vec<u8> {
    let mut bytes = vec![0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa, 0, 0x1c, 0, 0x18, 0, 0xc, 0, 4, 0];
    bytes.extend([0xa, 0, 0, 0]);
    bytes.extend(size.to_le_bytes());
    bytes.extend(span_len.to_le_bytes());
    bytes.extend([0, 0, 0, 0, 2, 0, 0, 0]);
    bytes
}

/// Threads and a directory, as a cache has them.
pub(crate) struct Place {
    pub(crate) works: Arc<Works>,
    pub(crate) directory: Directory,
}

impl Place {
    pub(crate) fn new(root: &Path) -> Self {
        Self::with_memory(root, 1 << 20)
    }

    pub(crate) fn with_memory(root: &Path, memory_bytes: u64) -> Self {
        let works = Works::new(2, 1 << 20, memory_bytes, None).unwrap();
        Self { works, directory: Directory::open(root).unwrap() }
    }
}

/// More than any wait of a test takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Read as a front does: what is present at once, the rest after a fill.
pub(crate) fn read(layer: &Layer, at: u64, len: usize) -> Result<Vec<u8>, ReadError> {
    let mut buffer = vec![0xee; len];
    for _ in 0..100 {
        if let Some(count) = layer.read_present(UncompressedOffset(at), &mut buffer)? {
            buffer.truncate(count);
            return Ok(buffer);
        }
        fill(layer, at..at + len as u64)?;
    }
    panic!("a range of {len} bytes never stays present");
}

pub(crate) fn fill(layer: &Layer, range: Range<u64>) -> Result<(), ReadError> {
    let (sender, receiver) = channel();
    let range = UncompressedOffset(range.start)..UncompressedOffset(range.end);
    layer.fill(range, Box::new(move |result| drop(sender.send(result))));
    receiver.recv_timeout(PATIENCE).expect("a reader was left without an answer")
}

/// Wait until `done`, or fail.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A small file system, gone with this value.
pub(crate) struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// `None`, with a word, where we may not mount.
    pub(crate) fn new(size: &std::ffi::CStr) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        match rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, size) {
            Ok(()) => Some(Self(dir)),
            Err(error) => {
                assert!(std::env::var_os("SPANFS_TEST_STRICT").is_none(), "mount: {error}");
                eprintln!("skipped: a small file system can't be mounted: {error}");
                None
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}
