//! Contents whose fills the test steers.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};

use spanfs_cache::{Content, Follower, ReadError, ReadReply};
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
    /// A layer file that fills, if there is one.
    standing: Option<Standing>,
    /// Whoever comes to us gets an error.
    pub(crate) refuses: AtomicBool,
}

/// A layer file with what came of every other stretch, and holes elsewhere: whoever reads past the content
/// what he must not finds zeros.
struct Standing {
    file: std::fs::File,
    followers: Mutex<Vec<Weak<dyn Follower>>>,
}

pub(crate) const PAGE: usize = 64 << 10;

/// Pages that come to stand or not together: more than a chunk of an index has.
const STRETCH: usize = 24;

fn bytes_of(pages: Range<usize>) -> Range<UncompressedOffset> {
    UncompressedOffset((pages.start * PAGE) as u64)..UncompressedOffset((pages.end * PAGE) as u64)
}

impl Steered {
    pub(crate) fn new(mut bytes: Vec<u8>, fate: Fate) -> Arc<Self> {
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let present = vec![false; bytes.len().div_ceil(PAGE)];
        let memory = rustix::fs::memfd_create("pages", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let pages = std::fs::File::from(memory);
        pages.write_all_at(&bytes, 0).unwrap();
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
            standing: None,
            refuses: AtomicBool::new(false),
        })
    }

    /// Every other stretch comes to stand in a layer file at `path`, which may be there from before.
    pub(crate) fn standing(bytes: Vec<u8>, fate: Fate, path: &std::path::Path) -> Arc<Self> {
        let mut content = Arc::into_inner(Self::new(bytes, fate)).unwrap();
        let mut options = std::fs::File::options();
        let file = options.read(true).write(true).create(true).truncate(false).open(path).unwrap();
        file.set_len(content.bytes.len() as u64).unwrap();
        content.standing = Some(Standing { file, followers: Mutex::default() });
        Arc::new(content)
    }

    /// Whether a page is one of those that come to stand in the layer file.
    fn comes_to_stand(page: usize) -> bool {
        (page / STRETCH).is_multiple_of(2)
    }

    /// Those that are there.
    pub(crate) fn all_standing(&self) -> Vec<usize> {
        let present = self.present.lock().unwrap();
        (0..present.len()).filter(|page| present[*page] && Self::comes_to_stand(*page)).collect()
    }

    /// Bytes of some pages come.
    pub(crate) fn bring(&self, pages: Range<usize>) {
        self.mark(&bytes_of(pages));
    }

    /// They go again, and are missed where they stood.
    pub(crate) fn lose(&self, pages: Range<usize>) {
        self.present.lock().unwrap()[pages.clone()].fill(false);
        self.tell(|it| it.handle_gone(bytes_of(pages.clone())));
    }

    fn tell(&self, event: impl Fn(&dyn Follower)) {
        let followers = self.standing.as_ref().map(|it| it.followers.lock().unwrap().clone());
        followers.iter().flatten().filter_map(Weak::upgrade).for_each(|it| event(&*it));
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
        let end = (range.end.0 as usize).div_ceil(PAGE).min(self.bytes.len().div_ceil(PAGE));
        let pages = range.start.0 as usize / PAGE..end;
        let standing = self.standing.iter();
        for (standing, page) in standing.flat_map(|it| pages.clone().map(move |page| (it, page))) {
            if Self::comes_to_stand(page) {
                let bytes = &self.bytes[page * PAGE..self.bytes.len().min((page + 1) * PAGE)];
                standing.file.write_all_at(bytes, (page * PAGE) as u64).unwrap();
            }
        }
        self.present.lock().unwrap()[pages].fill(true);
        self.tell(|it| it.handle_stands(range.clone()));
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
        if self.0.refuses.load(Ordering::Relaxed) {
            return Err(ReadError::Storage("the test refuses".into()));
        }
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
        let lends = is_present && !self.0.refuses.load(Ordering::Relaxed);
        lends.then(|| {
            self.0.lent.fetch_add(1, Ordering::Relaxed);
            self.0.pages.as_fd()
        })
    }

    fn complete_file(&self) -> Option<BorrowedFd<'_>> {
        self.0.file.as_ref().map(AsFd::as_fd)
    }

    fn layer_file(&self) -> Option<BorrowedFd<'_>> {
        self.0.standing.as_ref().map(|it| it.file.as_fd())
    }

    fn stands(&self, range: Range<UncompressedOffset>) -> bool {
        let (start, end) = (range.start.0 as usize, range.end.0 as usize);
        let mut pages = start / PAGE..end.div_ceil(PAGE);
        self.0.is_present(start..end) && pages.all(Steered::comes_to_stand)
    }

    fn follow(&self, follower: Weak<dyn Follower>) {
        let Some(standing) = &self.0.standing else { return };
        standing.followers.lock().unwrap().push(follower);
        let all = UncompressedOffset(0)..UncompressedOffset(self.0.bytes.len() as u64);
        self.0.tell(|it| it.handle_stands(all.clone()));
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
