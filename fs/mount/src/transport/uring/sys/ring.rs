//! An io_uring instance whose operations are fetches of FUSE requests.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::squeue::Entry128;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use rustix::event::PollFlags;
use rustix::io::Errno as Code;

use super::memory::Slot;
use crate::transport::READ_LEN_MAX;
use crate::transport::uring::envelope::{self, HEADERS_LEN};

/// What happened on a ring.
pub(in super::super) enum Event<O> {
    /// Somebody wrote to the eventfd.
    Woken,
    /// A request lies in the slot.
    Request(Slot<O>),
    /// The kernel gave the slot back without a request.
    Refused(Slot<O>, Refused),
}

/// Why it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in super::super) enum Refused {
    #[error("the slot could not be registered: {0}")]
    Register(Code),
    #[error("the reply could not be committed: {0}")]
    Commit(Code),
    #[error("the connection has ended")]
    Ended,
}

/// What the kernel has.
enum Held<O> {
    Registered(Slot<O>),
    Committed(Slot<O>),
}

/// A ring, used by the thread that made it: requests are copied to their slots on this thread alone.
pub(in super::super) struct Ring<O> {
    // First, so that it is gone before the slots: then no request can be copied to one any more.
    ring: IoUring<Entry128>,
    wake: Arc<OwnedFd>,
    held: Vec<Option<Held<O>>>,
    free: Vec<usize>,
}

const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;
/// Completions of the eventfd's poll.
const WAKE: u64 = u64::MAX;
/// Submissions at once; more are submitted in several lots.
const SUBMISSIONS: u32 = 256;
/// Completions at once; more wait in the kernel.
const COMPLETIONS: u32 = 4096;

impl<O: AsFd> Ring<O> {
    /// A ring that `wake`, an eventfd, interrupts.
    pub(in super::super) fn new(wake: Arc<OwnedFd>) -> io::Result<Self> {
        let ring = IoUring::<Entry128>::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let mut ring = Self { ring, wake, held: Vec::new(), free: Vec::new() };
        ring.watch();
        Ok(ring)
    }

    fn watch(&mut self) {
        let readable = u32::from(PollFlags::IN.bits());
        let poll = opcode::PollAdd::new(Fd(self.wake.as_raw_fd()), readable).multi(true);
        self.push(&poll.build().user_data(WAKE).into());
    }

    /// Let the kernel put the first request into a slot.
    pub(in super::super) fn register(&mut self, slot: Slot<O>) {
        let vectors = [
            Vector { start: slot.headers_start().as_ptr(), len: HEADERS_LEN },
            Vector { start: slot.payload_start().as_ptr(), len: READ_LEN_MAX },
        ];
        let entry = opcode::UringCmd80::new(Fd(slot.as_fd().as_raw_fd()), REGISTER)
            .addr(Some(vectors.as_ptr().expose_provenance() as u64))
            .cmd(command(&slot, 0))
            .build();
        let key = self.hold(Held::Registered(slot));
        self.push(&with_len(entry, vectors.len() as u32).user_data(key));
        // The kernel reads `vectors` while it takes the submission: it is not left for later.
        self.submit();
    }

    /// Give a slot with its reply back to the kernel, for the next request.
    pub(in super::super) fn commit(&mut self, slot: Slot<O>) {
        let id = envelope::commit_id(slot.headers());
        let entry = opcode::UringCmd80::new(Fd(slot.as_fd().as_raw_fd()), COMMIT_AND_FETCH)
            .cmd(command(&slot, id))
            .build();
        let key = self.hold(Held::Committed(slot));
        self.push(&entry.user_data(key));
    }

    fn hold(&mut self, held: Held<O>) -> u64 {
        let key = self.free.pop().unwrap_or_else(|| {
            self.held.push(None);
            self.held.len() - 1
        });
        self.held[key] = Some(held);
        key as u64
    }

    fn push(&mut self, entry: &Entry128) {
        loop {
            // SAFETY: what the operation works on stays valid until its completion: a slot lies in
            // `held`, which `completed` alone empties; `register` submits before its vectors go;
            // the eventfd is a field.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            self.submit();
        }
    }

    /// Let the kernel take what was queued.
    pub(in super::super) fn submit(&mut self) {
        while let Err(error) = self.ring.submit() {
            match error.raw_os_error().map(Code::from_raw_os_error) {
                Some(Code::INTR) => {}
                // Full of completions, or short of memory: it takes them when we wait.
                Some(Code::AGAIN | Code::BUSY) => return,
                _ => {
                    tracing::error!("io_uring takes nothing any more: {error}");
                    return;
                }
            }
        }
    }

    /// Submit, wait for an event or for `until`, and add what happened to `events`.
    pub(in super::super) fn wait(
        &mut self,
        until: Option<Instant>,
        events: &mut Vec<Event<O>>,
    ) -> io::Result<()> {
        let waited = match until {
            None => self.ring.submit_and_wait(1),
            Some(until) => {
                // One millisecond more, so that the deadline has passed when we look.
                let left = until.saturating_duration_since(Instant::now());
                let timespec = Timespec::from(left + Duration::from_millis(1));
                let args = SubmitArgs::new().timespec(&timespec);
                self.ring.submitter().submit_with_args(1, &args)
            }
        };
        if let Err(error) = waited {
            match error.raw_os_error().map(Code::from_raw_os_error) {
                Some(Code::INTR | Code::TIME | Code::AGAIN | Code::BUSY) => {}
                _ => return Err(error),
            }
        }
        let mut is_watched = true;
        for completion in self.ring.completion() {
            if completion.user_data() == WAKE {
                is_watched = cqueue::more(completion.flags());
                events.push(Event::Woken);
                continue;
            }
            let key = completion.user_data() as usize;
            let Some(held) = self.held.get_mut(key).and_then(Option::take) else {
                tracing::error!("io_uring completes what was not submitted: {key}");
                continue;
            };
            self.free.push(key);
            events.push(held.completed(completion.result()));
        }
        if !is_watched {
            self.watch();
        }
        Ok(())
    }
}

impl<O> Held<O> {
    fn completed(self, result: i32) -> Event<O> {
        let failed = (result < 0).then(|| Code::from_raw_os_error(-result));
        let refused = failed.map(|code| match (code, &self) {
            (Code::NOTCONN | Code::CONNABORTED | Code::CANCELED | Code::NODEV, _) => Refused::Ended,
            (code, Self::Registered(_)) => Refused::Register(code),
            (code, Self::Committed(_)) => Refused::Commit(code),
        });
        let (Self::Registered(slot) | Self::Committed(slot)) = self;
        match refused {
            None => Event::Request(slot),
            Some(refused) => Event::Refused(slot, refused),
        }
    }
}

/// `struct fuse_uring_cmd_req`: flags, commit id, queue.
fn command<O>(slot: &Slot<O>, commit_id: u64) -> [u8; 80] {
    let mut command = [0; 80];
    command[8..16].copy_from_slice(&commit_id.to_ne_bytes());
    command[16..18].copy_from_slice(&slot.queue().to_ne_bytes());
    command
}

/// `struct iovec`.
#[repr(C)]
struct Vector {
    start: *mut u8,
    len: usize,
}

/// `len` of `struct io_uring_sqe`, which the crate has no setter for.
const SQE_LEN_AT: usize = 24;

fn with_len(entry: Entry128, len: u32) -> Entry128 {
    const { assert!(size_of::<Entry128>() == 128) };
    // SAFETY: both are 128 bytes of plain data; `Entry128` is `repr(C)`: the kernel's structure.
    let mut bytes: [u8; 128] = unsafe { std::mem::transmute(entry) };
    bytes[SQE_LEN_AT..SQE_LEN_AT + 4].copy_from_slice(&len.to_ne_bytes());
    // SAFETY: as above; any value of `len` is one.
    unsafe { std::mem::transmute(bytes) }
}
