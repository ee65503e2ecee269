//! io_uring with operations that own what the kernel works on.
//!
//! Invariant behind every unsafe block here: from its submission to its completion an operation
//! lies in `slots`, which alone owns its buffer and a reference to its file. Nothing touches the
//! buffer meanwhile; nobody can take it out; `Drop` leaks what the kernel does not give back.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};
use rustix::net::{RecvFlags, SendFlags, SocketAddrAny};

/// What to do, with all that it needs.
#[derive(Debug)]
pub(crate) enum Op {
    /// Connect a socket.
    Connect { socket: Arc<OwnedFd>, address: Box<SocketAddrAny> },
    /// Send the buffer from `from` on.
    Send { socket: Arc<OwnedFd>, buffer: Vec<u8>, from: usize },
    /// Receive at most `len` bytes at `from`; with `all` complete only with all of them, at the end
    /// of the stream, or when cancelled.
    Receive { socket: Arc<OwnedFd>, buffer: BytesMut, from: usize, len: usize, all: bool },
    /// Wait for an eventfd.
    Wake { event: Arc<OwnedFd>, count: Box<[u8; 8]> },
}

/// Names a submitted operation; meaningless after its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpId(u64);

/// An operation that is over, with what it owned.
#[derive(Debug)]
pub(crate) struct Completion {
    /// What the submitter called it.
    pub(crate) token: u64,
    pub(crate) op: Op,
    pub(crate) result: io::Result<usize>,
}

/// Life of an operation.
enum Slot {
    Free,
    /// The kernel works on it.
    Submitted {
        token: u64,
        op: Op,
    },
}

/// A ring, used by the thread that made it.
pub(crate) struct Ring {
    ring: IoUring,
    slots: Vec<Slot>,
    /// Rises with each submission, so that an `OpId` never names a later operation in its slot.
    serial: u64,
    serials: Vec<u64>,
}

/// Completions of cancel requests: nobody waits for them.
const NOBODY: u64 = u64::MAX;

const ENTRIES: u32 = 64;

/// How long `Drop` waits for the kernel to give operations back.
const DROP_WAIT: Duration = Duration::from_secs(1);

impl Ring {
    /// Make a ring, or say why this kernel or sandbox won't let us.
    pub(crate) fn new() -> Result<Self, String> {
        // The measured set-up: completions are handled when this thread waits, by this thread.
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .build(ENTRIES)
            .map_err(|error| format!("io_uring_setup: {error}"))?;
        if !ring.params().is_feature_ext_arg() {
            return Err("io_uring cannot wait with a timeout here".to_owned());
        }
        let mut probe = Probe::new();
        ring.submitter()
            .register_probe(&mut probe)
            .map_err(|error| format!("io_uring_register(probe): {error}"))?;
        let needed = [
            ("connect", opcode::Connect::CODE),
            ("send", opcode::Send::CODE),
            ("recv", opcode::Recv::CODE),
            ("read", opcode::Read::CODE),
            ("cancel", opcode::AsyncCancel::CODE),
        ];
        for (name, code) in needed {
            if !probe.is_supported(code) {
                return Err(format!("io_uring has no operation {name} here"));
            }
        }
        Ok(Self { ring, slots: Vec::new(), serial: 0, serials: Vec::new() })
    }

    /// Hand an operation to the kernel; its completion carries `token`.
    pub(crate) fn submit(&mut self, token: u64, op: Op) -> OpId {
        let index = match self.slots.iter().position(|slot| matches!(slot, Slot::Free)) {
            Some(index) => index,
            None => {
                self.slots.push(Slot::Free);
                self.serials.push(0);
                self.slots.len() - 1
            }
        };
        self.serial += 1;
        let id = OpId(self.serial << 16 | index as u64);
        let mut entry = None;
        if let (Some(slot), Some(serial)) = (self.slots.get_mut(index), self.serials.get_mut(index))
        {
            *serial = self.serial;
            *slot = Slot::Submitted { token, op };
            if let Slot::Submitted { op, .. } = slot {
                entry = Some(op.entry().user_data(id.0));
            }
        }
        if let Some(entry) = entry {
            self.push(&entry);
        }
        id
    }

    /// Ask for an early end of an operation; its completion says how far it came.
    pub(crate) fn cancel(&mut self, id: OpId) {
        let index = (id.0 & 0xffff) as usize;
        let current = self.serials.get(index) == Some(&(id.0 >> 16));
        if current && matches!(self.slots.get(index), Some(Slot::Submitted { .. })) {
            self.push(&opcode::AsyncCancel::new(id.0).build().user_data(NOBODY));
        }
    }

    /// Submit what is queued and wait for at least one completion, or the timeout.
    pub(crate) fn wait(&mut self, timeout: Duration, out: &mut Vec<Completion>) -> io::Result<()> {
        let timespec = Timespec::from(timeout);
        let args = SubmitArgs::new().timespec(&timespec);
        match self.ring.submitter().submit_with_args(1, &args) {
            Ok(_) => {}
            // ETIME: nothing came. EBUSY: completions must be taken first, as happens now.
            Err(error) if matches!(error.raw_os_error(), Some(ETIME | EBUSY)) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        for entry in self.ring.completion() {
            if entry.user_data() == NOBODY {
                continue;
            }
            let index = (entry.user_data() & 0xffff) as usize;
            let Some(slot) = self.slots.get_mut(index) else { continue };
            let Slot::Submitted { token, op } = std::mem::replace(slot, Slot::Free) else {
                unreachable!("the kernel completes operation {index} twice");
            };
            let result = match usize::try_from(entry.result()) {
                Ok(count) => Ok(count),
                Err(_) => Err(error_of(entry.result())),
            };
            out.push(Completion { token, op, result });
        }
        Ok(())
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: buffers and files of the entry belong to an operation in `slots`, where they
            // stay until the completion is taken (module invariant); a cancel entry has neither.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // The queue is full: submitting empties it, and fails only if the kernel wants its
            // completions taken first, which it does not with as few operations as we have.
            if let Err(error) = self.ring.submit() {
                assert!(
                    error.kind() == io::ErrorKind::Interrupted,
                    "io_uring takes no submissions: {error}"
                );
            }
        }
    }

    fn submitted_count(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot, Slot::Submitted { .. })).count()
    }
}

/// Linux: timer expired.
const ETIME: i32 = 62;
/// Linux: device or resource busy.
const EBUSY: i32 = 16;
/// Linux: operation cancelled.
const ECANCELED: i32 = 125;

fn error_of(result: i32) -> io::Error {
    match result.saturating_neg() {
        ECANCELED => io::Error::from(io::ErrorKind::Interrupted),
        errno => io::Error::from_raw_os_error(errno),
    }
}

impl Op {
    /// The submission for an operation that lies in its slot already.
    fn entry(&mut self) -> squeue::Entry {
        let length = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        match self {
            Self::Connect { socket, address } => {
                let len = address.addr_len();
                opcode::Connect::new(Fd(socket.as_raw_fd()), address.as_ptr().cast(), len).build()
            }
            Self::Send { socket, buffer, from } => {
                let bytes = buffer.get(*from..).unwrap_or_default();
                let flags = SendFlags::NOSIGNAL.bits().cast_signed();
                opcode::Send::new(Fd(socket.as_raw_fd()), bytes.as_ptr(), length(bytes.len()))
                    .flags(flags)
                    .build()
            }
            Self::Receive { socket, buffer, from, len, all } => {
                let end = buffer.len().min(from.saturating_add(*len));
                let bytes = buffer.get_mut(*from..end).unwrap_or_default();
                let flags = if *all { RecvFlags::WAITALL } else { RecvFlags::empty() };
                opcode::Recv::new(Fd(socket.as_raw_fd()), bytes.as_mut_ptr(), length(bytes.len()))
                    .flags(flags.bits().cast_signed())
                    .build()
            }
            Self::Wake { event, count } => {
                opcode::Read::new(Fd(event.as_raw_fd()), count.as_mut_ptr(), 8).build()
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let end = Instant::now() + DROP_WAIT;
        let ids: Vec<OpId> = (self.serials.iter().enumerate())
            .map(|(index, serial)| OpId(serial << 16 | index as u64))
            .collect();
        ids.into_iter().for_each(|id| self.cancel(id));
        let mut completions = Vec::new();
        while self.submitted_count() > 0 && Instant::now() < end {
            if self.wait(Duration::from_millis(50), &mut completions).is_err() {
                break;
            }
        }
        if self.submitted_count() > 0 {
            // The kernel may still write there: better lost than reused.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn receive(socket: &Arc<OwnedFd>, len: usize, all: bool) -> Op {
        let buffer = BytesMut::zeroed(len);
        Op::Receive { socket: Arc::clone(socket), buffer, from: 0, len, all }
    }

    fn one(ring: &mut Ring) -> Completion {
        let mut out = Vec::new();
        for _ in 0..100 {
            ring.wait(Duration::from_millis(100), &mut out).unwrap();
            if let Some(completion) = out.pop() {
                assert!(out.is_empty());
                return completion;
            }
        }
        panic!("no completion within 10 s");
    }

    fn ring_or_skip() -> Option<Ring> {
        match Ring::new() {
            Ok(ring) => Some(ring),
            Err(reason) => {
                assert!(std::env::var_os("SPANFS_TEST_STRICT").is_none(), "no io_uring: {reason}");
                eprintln!("skipped: {reason}");
                None
            }
        }
    }

    /// The stall check relies on this: bytes that came before a cancel are not lost.
    #[test]
    fn cancelled_receive_tells_what_came() {
        let Some(mut ring) = ring_or_skip() else { return };
        let (mut here, there) = UnixStream::pair().unwrap();
        let socket = Arc::new(OwnedFd::from(there));
        let id = ring.submit(7, receive(&socket, 100, true));
        here.write_all(b"abc").unwrap();
        let mut out = Vec::new();
        ring.wait(Duration::from_millis(50), &mut out).unwrap();
        assert!(out.is_empty(), "a receive of all must wait");
        ring.cancel(id);
        let completion = one(&mut ring);
        assert_eq!((completion.token, completion.result.unwrap()), (7, 3));
        let Op::Receive { buffer, .. } = completion.op else { panic!() };
        assert_eq!(&buffer[..3], b"abc");
        // With nothing there it is an interruption.
        let id = ring.submit(8, receive(&socket, 100, true));
        ring.wait(Duration::from_millis(10), &mut out).unwrap();
        ring.cancel(id);
        assert_eq!(one(&mut ring).result.unwrap_err().kind(), io::ErrorKind::Interrupted);
        // A stale id cancels nothing.
        ring.submit(9, receive(&socket, 1, false));
        ring.cancel(id);
        here.write_all(b"d").unwrap();
        assert_eq!(one(&mut ring).result.unwrap(), 1);
    }

    #[test]
    fn drop_waits_for_the_kernel() {
        let Some(mut ring) = ring_or_skip() else { return };
        let (_here, there) = UnixStream::pair().unwrap();
        let socket = Arc::new(OwnedFd::from(there));
        ring.submit(1, receive(&socket, 1 << 20, true));
        ring.wait(Duration::from_millis(10), &mut Vec::new()).unwrap();
        drop(ring);
        assert_eq!(Arc::strong_count(&socket), 1, "the operation's file was not given back");
    }
}
