//! Contents whose fills the test steers.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use spanfs_cache::{Content, ReadError, ReadReply};
use spanfs_layer::UncompressedOffset;

/// What happens to a fill.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It succeeds, later and on another thread.
    Late,
    /// It fails, later and on another thread.
    Fail,
    /// It waits until [`Steered::release`].
    Hold,
    /// It says success and brings nothing.
    Lie,
}

/// Bytes in pages that are absent until filled.
pub(crate) struct Steered {
    bytes: Vec<u8>,
    present: Mutex<Vec<bool>>,
    fate: Mutex<Fate>,
    held: Mutex<Vec<(Range<UncompressedOffset>, ReadReply)>>,
    arrived: Condvar,
    pub(crate) fills: AtomicUsize,
    /// Kept so that `complete_file` has something to lend.
    file: Option<std::fs::File>,
    /// The same bytes, for who wants no copy.
    pages: std::fs::File,
    /// How often those were lent.
    pub(crate) lent: AtomicUsize,
}

const PAGE: usize = 64 << 10;

impl Steered {
    pub(crate) fn new(mut bytes: Vec<u8>, fate: Fate) -> Arc<Self> {
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let present = vec![false; bytes.len().div_ceil(PAGE)];
        let memory = rustix::fs::memfd_create("pages", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let pages = std::fs::File::from(memory);
        std::os::unix::fs::FileExt::write_all_at(&pages, &bytes, 0).unwrap();
        Arc::new(Self {
            bytes,
            present: Mutex::new(present),
            fate: Mutex::new(fate),
            held: Mutex::default(),
            arrived: Condvar::new(),
            fills: AtomicUsize::new(0),
            file: None,
            pages,
            lent: AtomicUsize::new(0),
        })
    }

    /// All present, in a file.
    pub(crate) fn complete(bytes: Vec<u8>, path: &std::path::Path) -> Arc<Self> {
        let mut content = Arc::into_inner(Self::new(bytes, Fate::Late)).unwrap();
        content.present.get_mut().unwrap().fill(true);
        std::fs::write(path, &content.bytes).unwrap();
        content.file = Some(std::fs::File::open(path).unwrap());
        Arc::new(content)
    }

    pub(crate) fn set_fate(&self, fate: Fate) {
        *self.fate.lock().unwrap() = fate;
    }

    /// Lend a file that ends early from now on.
    pub(crate) fn cut_pages(&self, len: u64) {
        self.pages.set_len(len).unwrap();
    }

    fn is_present(&self, range: Range<usize>) -> bool {
        let present = self.present.lock().unwrap();
        range.is_empty()
            || present[range.start / PAGE..range.end.div_ceil(PAGE)].iter().all(|&it| it)
    }

    /// Wait until a fill is being held.
    pub(crate) fn wait_for_fill(&self) {
        let held = self.held.lock().unwrap();
        let limit = std::time::Duration::from_secs(20);
        let (_held, timeout) =
            self.arrived.wait_timeout_while(held, limit, |held| held.is_empty()).unwrap();
        assert!(!timeout.timed_out(), "no fill arrived");
    }

    /// Let all held fills succeed, and later ones too.
    pub(crate) fn release(&self) {
        self.set_fate(Fate::Late);
        for (range, reply) in std::mem::take(&mut *self.held.lock().unwrap()) {
            self.mark(&range);
            reply(Ok(()));
        }
    }

    fn mark(&self, range: &Range<UncompressedOffset>) {
        let pages = range.start.0 as usize / PAGE..(range.end.0 as usize).div_ceil(PAGE);
        self.present.lock().unwrap()[pages].fill(true);
    }
}

/// The content as the port wants it: a handle that a fill's thread may keep.
pub(crate) struct Handle(pub(crate) Arc<Steered>);

impl Content for Handle {
    fn len(&self) -> u64 {
        self.0.bytes.len() as u64
    }

    fn read_present(
        &self,
        offset: UncompressedOffset,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, ReadError> {
        let start = (offset.0 as usize).min(self.0.bytes.len());
        let end = (start + buffer.len()).min(self.0.bytes.len());
        if !self.0.is_present(start..end) {
            return Ok(None);
        }
        buffer[..end - start].copy_from_slice(&self.0.bytes[start..end]);
        Ok(Some(end - start))
    }

    fn fill(&self, range: Range<UncompressedOffset>, reply: ReadReply) {
        self.0.fills.fetch_add(1, Ordering::Relaxed);
        let content = Arc::clone(&self.0);
        let fate = *content.fate.lock().unwrap();
        if fate == Fate::Hold {
            content.held.lock().unwrap().push((range, reply));
            content.arrived.notify_all();
            return;
        }
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(2));
            match fate {
                Fate::Fail => reply(Err(ReadError::Unavailable("the test said so".into()))),
                _ => {
                    if fate == Fate::Late {
                        content.mark(&range);
                    }
                    reply(Ok(()));
                }
            }
        });
    }

    fn present_file(&self, range: Range<UncompressedOffset>) -> Option<BorrowedFd<'_>> {
        let is_present = self.0.is_present(range.start.0 as usize..range.end.0 as usize);
        is_present.then(|| {
            self.0.lent.fetch_add(1, Ordering::Relaxed);
            self.0.pages.as_fd()
        })
    }

    fn complete_file(&self) -> Option<BorrowedFd<'_>> {
        self.0.file.as_ref().map(AsFd::as_fd)
    }
}

/// Bytes that look the same every time and differ everywhere.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
