//! The loop: a few threads, one epoll instance, the devices of all mounts.
//!
//! A device wakes one thread (`EPOLLONESHOT`), which then takes requests until there are no more and
//! only then lets it wake another: one reader that asks one thing after another has one thread to
//! itself. Two that wake for each other's requests took up to seven times as long (20,000 small
//! files, 2 busy cores). A read that takes its time lets the next thread in first.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::RwLock;
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll};
use rustix::io::Errno as Code;

use super::buffer::{Buffer, Spares, send_code};
use super::lookout::Lookout;
use super::misses::{Miss, MissId, Misses, Via};
use super::mounted::Mounted;
use super::splice::{Pipe, is_worth};
use crate::Errno;
use crate::filesystem::Ino;
use crate::transport::ServerOptions;
use crate::transport::protocol::abi;
use crate::transport::protocol::answer::{Answer, answer, read};
use crate::transport::protocol::init::Negotiated;
use crate::transport::protocol::request::{Malformed, Operation, Request};

/// Room for a request: the kernel wants [`abi::READ_BUFFER_LEN_MIN`], forgets come in greater lots.
const REQUEST_LEN_MAX: usize = 8 * abi::READ_BUFFER_LEN_MIN;
/// Requests of one mount that a thread answers before the other mounts get their turn.
const TURN_MAX: usize = 64;
/// A filled range can be gone again when we look (its layer was dropped and is being fetched anew).
const FILL_COUNT_MAX: u32 = 4;
/// Epoll's word for "end all threads"; mounts have smaller numbers.
const STOP: u64 = u64::MAX;

/// What all threads share.
pub(crate) struct Shared {
    epoll: OwnedFd,
    stop: OwnedFd,
    /// Looked at before each request: a busy mount must not keep a thread from the eventfd.
    is_stopped: AtomicBool,
    mounts: RwLock<HashMap<u64, Arc<Mounted>>>,
    next_number: AtomicU64,
    misses: Misses,
    spares: Spares,
}

impl Shared {
    pub(super) fn new(options: &ServerOptions) -> rustix::io::Result<Arc<Self>> {
        let shared = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            stop: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            is_stopped: AtomicBool::new(false),
            mounts: RwLock::default(),
            next_number: AtomicU64::new(0),
            misses: Misses::new(options.misses_max, options.read_deadline),
            spares: Spares::new(options.buffers),
        };
        let stop = epoll::EventData::new_u64(STOP);
        epoll::add(&shared.epoll, &shared.stop, stop, epoll::EventFlags::IN)?;
        Ok(Arc::new(shared))
    }

    /// Serve one more; its number is for [`Self::remove`].
    pub(super) fn add(&self, mounted: Arc<Mounted>) -> rustix::io::Result<u64> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        self.mounts.write().insert(number, Arc::clone(&mounted));
        let added = epoll::add(&self.epoll, &mounted.device, data(number), ONCE);
        if let Err(error) = added {
            self.mounts.write().remove(&number);
            return Err(error);
        }
        Ok(number)
    }

    /// Serve it no more.
    pub(super) fn remove(&self, number: u64) {
        let Some(mounted) = self.mounts.write().remove(&number) else { return };
        // It may have been taken out with its last copy elsewhere.
        let _gone = epoll::delete(&self.epoll, &mounted.device);
        self.misses.remove_of(&Arc::downgrade(&mounted));
        mounted.end.come();
    }

    /// End all threads.
    pub(super) fn stop_threads(&self) {
        self.is_stopped.store(true, Ordering::Release);
        if let Err(error) = rustix::io::write(&self.stop, &1u64.to_ne_bytes()) {
            tracing::error!("FUSE threads can't be stopped: {error}");
        }
    }

    /// End all mounts and all threads.
    pub(super) fn stop(&self) {
        self.stop_threads();
        let numbers: Vec<u64> = self.mounts.read().keys().copied().collect();
        for number in numbers {
            self.remove(number);
        }
    }

    /// What one thread does.
    pub(super) fn run(self: &Arc<Self>) {
        let (request, lookout) = (vec![0; REQUEST_LEN_MAX], Lookout::default());
        let mut hands = Hands { request, reply: Buffer::new(), pipe: None, lookout };
        // One at a time, so that a second thread wakes for a second mount.
        let mut events = Vec::with_capacity(1);
        loop {
            self.expire();
            events.clear();
            let timeout = self.next_deadline().map(until);
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Code::INTR) => {}
                Err(error) => {
                    tracing::error!("a FUSE thread ends: {error}");
                    return;
                }
            }
            for event in &events {
                let number = event.data.u64();
                if number == STOP {
                    return;
                }
                let mounted = self.mounts.read().get(&number).cloned();
                if let Some(mounted) = mounted {
                    self.take_turn(number, &mounted, &mut hands);
                }
            }
        }
    }

    fn take_turn(self: &Arc<Self>, number: u64, mounted: &Arc<Mounted>, hands: &mut Hands) {
        let mut left = TURN_MAX;
        while left > 0 {
            if self.is_stopped.load(Ordering::Acquire) {
                return;
            }
            let taken = rustix::io::read(&mounted.device, &mut hands.request[..]);
            if taken == Err(Code::AGAIN) && hands.lookout.looks_on(Instant::now) {
                std::hint::spin_loop();
                continue;
            }
            left -= 1;
            match taken {
                Ok(len @ 1..) => {
                    hands.lookout.came();
                    let is_alone = self.handle(number, mounted, hands, len);
                    hands.lookout.answered(is_alone, Instant::now);
                }
                Err(Code::AGAIN) => break,
                // The second: its reader was killed before we took it.
                Err(Code::INTR | Code::NOENT) => {}
                Ok(0) | Err(Code::NODEV) => return self.remove(number),
                Err(error) => {
                    let mount_point = mounted.mount_point.display();
                    tracing::error!("FUSE session of {mount_point} broke: {error}");
                    return self.remove(number);
                }
            }
        }
        self.let_in(number, mounted);
    }

    /// The device may wake a thread again; at once, if a request waits there.
    fn let_in(&self, number: u64, mounted: &Mounted) {
        if let Err(error) = epoll::modify(&self.epoll, &mounted.device, data(number), ONCE)
            && error != Code::NOENT
        {
            let mount_point = mounted.mount_point.display();
            tracing::error!("FUSE session of {mount_point} can't go on: {error}");
            self.remove(number);
        }
    }

    /// True if no other thread was let in.
    fn handle(
        self: &Arc<Self>,
        number: u64,
        mounted: &Arc<Mounted>,
        hands: &mut Hands,
        len: usize,
    ) -> bool {
        let Hands { request, reply, pipe, .. } = hands;
        let request = match Request::parse(&request[..len]) {
            Ok(request) => request,
            Err(malformed) => {
                refuse(mounted, &malformed);
                return true;
            }
        };
        let is_slow = mounted.pace.is_slow(&request.operation);
        if is_slow {
            self.let_in(number, mounted);
        }
        if splice(mounted, &request, pipe) {
            return !is_slow;
        }
        let start = Instant::now();
        let (filesystem, wanted) = (&*mounted.filesystem, mounted.wanted);
        let body = reply.body();
        let outcome = catch_unwind(AssertUnwindSafe(|| answer(filesystem, wanted, &request, body)));
        mounted.pace.note(&request.operation, start.elapsed());
        match outcome {
            Ok(answer) => self.reply(mounted, request.unique, answer, reply),
            Err(_panic) => {
                // Our own mistake, told by the panic; its reader must not wait for ever.
                tracing::error!("{}: {request:?} panicked", mounted.mount_point.display());
                let sent = send_code(&mounted.device, request.unique, Errno::InputOutput.code());
                mounted.note(request.unique, sent);
            }
        }
        !is_slow
    }

    /// Do what is to be done about request `unique`; a body stands in `buffer`.
    fn reply(
        self: &Arc<Self>,
        mounted: &Arc<Mounted>,
        unique: u64,
        answer: Answer,
        buffer: &mut Buffer,
    ) {
        let code = |code| mounted.note(unique, send_code(&mounted.device, unique, code));
        match answer {
            Answer::Body(len) => {
                mounted.note(unique, buffer.send(&mounted.device, unique, len));
            }
            Answer::Code(number) => code(number),
            Answer::Silence => {}
            Answer::Missing { ino, offset, len } => {
                let (mount, via) = (Arc::downgrade(mounted), Via::Device);
                if let Some(id) = self.park(Miss { mount, via, unique, ino, offset, len }) {
                    self.fill(id);
                }
            }
            Answer::Greeting(len, agreed) => {
                mounted.note(unique, buffer.send(&mounted.device, unique, len));
                if let Negotiated::Agreed(flags) = agreed {
                    mounted.greeted(Ok(flags));
                }
            }
            Answer::Refusal(too_old) => {
                code(Code::PROTO.raw_os_error());
                mounted.greeted(Err(too_old));
            }
        }
    }

    /// Note a read that is not answered at once; if too many wait already, it fails.
    pub(crate) fn park(&self, miss: Miss) -> Option<MissId> {
        let spare = miss.clone();
        let id = self.misses.add(miss);
        if id.is_none() {
            if let Some(mounted) = spare.mount.upgrade() {
                let mount_point = mounted.mount_point.display();
                tracing::error!("a read of {mount_point} fails: too many wait already");
            }
            spare.fail(Errno::InputOutput);
        }
        id
    }

    /// The right to answer it.
    pub(crate) fn ticket(self: &Arc<Self>, id: MissId) -> Ticket {
        Ticket { shared: Arc::downgrade(self), id: Some(id) }
    }

    /// When somebody will have waited too long.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.misses.next_deadline()
    }

    /// Have its bytes brought, and answer it then.
    pub(crate) fn fill(self: &Arc<Self>, id: MissId) {
        let Some((miss, count)) = self.misses.count_fill(id) else { return };
        let Some(mounted) = miss.mount.upgrade() else { return };
        let Miss { ino, offset, len, .. } = miss;
        if count > FILL_COUNT_MAX {
            let ino = ino.0;
            tracing::warn!(ino, offset, len, "range filled {FILL_COUNT_MAX} times, still absent");
            return self.fail(id, Errno::InputOutput);
        }
        let ticket = self.ticket(id);
        let reply = Box::new(move |result| ticket.arrived(result));
        let fill = || mounted.filesystem.fill(ino, offset, len as u64, reply);
        if catch_unwind(AssertUnwindSafe(fill)).is_err() {
            // Our own mistake, told by the panic; the ticket was dropped, and has answered.
            tracing::error!("{}: a fill panicked", mounted.mount_point.display());
        }
    }

    /// A fill ended, on whatever thread this is: it answers the read.
    fn arrived(self: &Arc<Self>, id: MissId, result: Result<(), Errno>) {
        if let Err(errno) = result {
            return self.fail(id, errno);
        }
        let Some(miss) = self.misses.get(id) else { return };
        let Some(mounted) = miss.mount.upgrade() else { return };
        let Miss { ref via, unique, ino, offset, len, .. } = miss;
        let start = Instant::now();
        let make = |body: &mut [u8]| read(&*mounted.filesystem, ino, offset, len, body);
        let is_ours = || self.misses.remove(id).is_some();
        let outcome = match via {
            Via::Device => self.spares.with(|buffer| {
                let found = make(buffer.body());
                if let Ok(Answer::Body(count)) = found
                    && is_ours()
                {
                    mounted.note(unique, buffer.send(&mounted.device, unique, count));
                }
                found
            }),
            Via::Ring(late) => {
                let Some(found) = late.with_payload(make) else { return };
                if let Ok(Answer::Body(count)) = found
                    && is_ours()
                {
                    late.reply(unique, 0, count);
                }
                found
            }
        };
        mounted.pace.note(&Operation::Read { offset, len: len as u32 }, start.elapsed());
        match outcome {
            Ok(Answer::Body(_)) => {}
            Ok(_) => self.fill(id),
            Err(errno) => self.fail(id, errno),
        }
    }

    fn fail(&self, id: MissId, errno: Errno) {
        if let Some(miss) = self.misses.remove(id) {
            miss.fail(errno);
        }
    }

    /// Answer those that have waited too long. Whoever notes a miss sleeps no longer than it waits.
    pub(crate) fn expire(&self) {
        while let Some(miss) = self.misses.pop_expired(Instant::now()) {
            miss.fail(Errno::InputOutput);
            if let Some(mounted) = miss.mount.upgrade() {
                let (ino, offset, len) = (miss.ino, miss.offset, miss.len as u64);
                let of = mounted.filesystem.describe(ino, offset, len);
                tracing::warn!(offset, len, "a read fails, no bytes within its deadline: {of}");
            }
        }
    }
}

impl Miss {
    fn fail(&self, errno: Errno) {
        match (&self.via, self.mount.upgrade()) {
            (Via::Ring(late), _) => late.reply(self.unique, errno.code(), 0),
            (Via::Device, Some(mounted)) => {
                mounted.note(self.unique, send_code(&mounted.device, self.unique, errno.code()));
            }
            (Via::Device, None) => {}
        }
    }
}

/// What a thread works with.
struct Hands {
    request: Vec<u8>,
    reply: Buffer,
    /// Made when it is needed for the first time.
    pipe: Option<Pipe>,
    lookout: Lookout,
}

/// Answer what is no request, as far as it can be told what it was.
fn refuse(mounted: &Mounted, malformed: &Malformed) {
    tracing::error!("{}: {malformed}", mounted.mount_point.display());
    if let Malformed::Body { unique, .. } = *malformed {
        mounted.note(unique, send_code(&mounted.device, unique, Errno::Invalid.code()));
    }
}

/// Answer a long read of what stands in a file without a buffer; false where that can't be done.
fn splice(mounted: &Mounted, request: &Request<'_>, pipe: &mut Option<Pipe>) -> bool {
    let Operation::Read { offset, len } = request.operation else { return false };
    let (ino, len) = (Ino(request.node), len as usize);
    if !is_worth(len) {
        return false;
    }
    let start = Instant::now();
    // A panic of ours is told where the read is answered in the other way.
    let located = || mounted.filesystem.located(ino, offset, len);
    let Ok(Some(located)) = catch_unwind(AssertUnwindSafe(located)) else { return false };
    // Without a descriptor for it, bytes are copied.
    let Ok(through) = pipe.take().map_or_else(Pipe::new, Ok) else { return false };
    let filled = through.fill(request.unique, located);
    mounted.pace.note(&request.operation, start.elapsed());
    match filled.and_then(|len| through.send(&mounted.device, len)) {
        Ok(()) => {
            *pipe = Some(through);
            true
        }
        // Its reader is gone, or all are: nobody is left to answer.
        Err(Code::NOENT | Code::NODEV) => true,
        Err(error) => {
            let mount_point = mounted.mount_point.display();
            tracing::debug!(offset, len, "a read of {mount_point} is copied: {error}");
            false
        }
    }
}

/// The right to answer one miss once.
pub(crate) struct Ticket {
    shared: Weak<Shared>,
    id: Option<MissId>,
}

impl Ticket {
    /// Its bytes are there, or can't be had.
    pub(crate) fn arrived(mut self, result: Result<(), Errno>) {
        if let (Some(shared), Some(id)) = (self.shared.upgrade(), self.id) {
            shared.arrived(id, result);
            self.id = None; // Not before: should that panic, `drop` answers.
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let (Some(shared), Some(id)) = (self.shared.upgrade(), self.id.take()) {
            tracing::error!("a fill was given up without a reply");
            shared.fail(id, Errno::InputOutput);
        }
    }
}

const ONCE: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::ONESHOT);

fn data(number: u64) -> epoll::EventData {
    epoll::EventData::new_u64(number)
}

fn until(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now());
    // One millisecond more, as epoll's clock counts in whole ones.
    let left = left + std::time::Duration::from_millis(1);
    Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 })
}

#[cfg(test)]
mod tests;
