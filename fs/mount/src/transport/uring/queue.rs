//! One queue: the thread of a CPU, with the ring that brings the requests made on that CPU.
//!
//! A hit is answered where it was asked, on the same CPU, by a copy into the slot. What may take long
//! goes to a helper; a miss waits without a thread. Both come back by the inbox, because whoever
//! commits a slot gets its next request.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustix::io::Errno as Code;

use super::envelope;
use super::helpers::Helpers;
use super::inbox::{Inbox, Message};
use super::late::Late;
use super::sys::{Event, Refused, Ring, Slot, Slots};
use crate::Errno;
use crate::filesystem::Ino;
use crate::transport::dev::{Miss, Mounted, Shared, Via};
use crate::transport::protocol::answer::{Answer, answer};
use crate::transport::protocol::request::{Malformed, Operation, Request};

/// After so long on one request, replies to others do not wait any longer to be sent.
const SLOW: Duration = Duration::from_micros(50);

/// The slots of one mount here.
struct Supply {
    fresh: Slots<Arc<Mounted>>,
    registered: usize,
    /// Those whose reply is made elsewhere.
    parked: usize,
}

pub(super) struct Queue {
    supplies: HashMap<*const Mounted, Supply>,
    ring: Ring<Arc<Mounted>>,
    inbox: Arc<Inbox>,
    helpers: Arc<Helpers>,
    shared: Arc<Shared>,
    /// Slots of each mount that the kernel should have for requests to come.
    ready: usize,
    /// A request as the device would give it.
    message: Vec<u8>,
}

impl Queue {
    /// To be called, and used, by the thread that answers.
    pub(super) fn new(
        inbox: Arc<Inbox>,
        helpers: Arc<Helpers>,
        shared: Arc<Shared>,
        ready: usize,
    ) -> std::io::Result<Self> {
        let ring = Ring::new(inbox.event())?;
        let (supplies, message) = Default::default();
        Ok(Self { supplies, ring, inbox, helpers, shared, ready, message })
    }

    /// Answer until told to stop.
    pub(super) fn run(mut self) {
        let mut events = Vec::new();
        loop {
            self.shared.expire();
            if let Err(error) = self.ring.wait(self.shared.next_deadline(), &mut events) {
                tracing::error!("a FUSE ring ends: {error}");
                return;
            }
            for event in events.drain(..) {
                match event {
                    Event::Request(slot) => self.handle(slot),
                    Event::Refused(slot, refused) => self.refused(slot, refused),
                    Event::Woken => {
                        for message in self.inbox.take() {
                            match message {
                                Message::Attach(slots, told) => self.attach(slots, &told),
                                Message::Commit(slot) => self.unpark(slot),
                                Message::Stop => return,
                            }
                        }
                    }
                }
            }
        }
    }

    fn handle(&mut self, mut slot: Slot<Arc<Mounted>>) {
        let mounted = Arc::clone(slot.owner());
        envelope::message(slot.headers(), slot.payload(), &mut self.message);
        let request = match Request::parse(&self.message) {
            Ok(request) => request,
            Err(malformed) => {
                tracing::error!("{}: {malformed}", mounted.mount_point.display());
                let unique = match malformed {
                    Malformed::Body { unique, .. } => unique,
                    Malformed::Header { .. } => 0, // The kernel ends the request by itself.
                };
                envelope::seal(slot.headers_mut(), unique, Errno::Invalid.code(), 0);
                return self.ring.commit(slot);
            }
        };
        let unique = request.unique;
        if let Operation::Read { offset, len } = request.operation
            && mounted.pace.is_slow(&request.operation)
        {
            let (ino, len) = (Ino(request.node), len as usize);
            let (mount, via) = (Arc::downgrade(&mounted), self.park(slot));
            if let Some(id) = self.shared.park(Miss { mount, via, unique, ino, offset, len }) {
                self.helpers.give(self.shared.ticket(id));
            }
            return;
        }
        let start = Instant::now();
        let filesystem = &*mounted.filesystem;
        let (payload, wanted) = (slot.payload_mut(), mounted.wanted);
        let outcome =
            catch_unwind(AssertUnwindSafe(|| answer(filesystem, wanted, &request, payload)));
        let took = start.elapsed();
        mounted.pace.note(&request.operation, took);
        let (error, len) = match outcome {
            Ok(Answer::Body(len)) => (0, len),
            Ok(Answer::Code(code)) => (code, 0),
            Ok(Answer::Missing { ino, offset, len }) => {
                let (mount, via) = (Arc::downgrade(&mounted), self.park(slot));
                if let Some(id) = self.shared.park(Miss { mount, via, unique, ino, offset, len }) {
                    self.shared.fill(id);
                }
                return;
            }
            // None of them travels through a ring.
            Ok(Answer::Silence | Answer::Greeting(..) | Answer::Refusal(_)) => {
                (Code::NOSYS.raw_os_error(), 0)
            }
            Err(_panic) => {
                // Our own mistake, told by the panic; its reader must not wait for ever.
                tracing::error!("{}: {request:?} panicked", mounted.mount_point.display());
                (Errno::InputOutput.code(), 0)
            }
        };
        envelope::seal(slot.headers_mut(), unique, error, len);
        self.ring.commit(slot);
        if took > SLOW {
            self.ring.submit();
        }
    }

    /// Its reply will be made elsewhere. If the kernel has too few slots now, it gets one more: hits
    /// must not wait for misses. (A request that found no slot at all waits for the next commit: the
    /// kernel does not look for it when a slot is registered.)
    fn park(&mut self, slot: Slot<Arc<Mounted>>) -> Via {
        if let Some(supply) = self.supplies.get_mut(&Arc::as_ptr(slot.owner())) {
            supply.parked += 1;
            if supply.registered - supply.parked < self.ready
                && let Some(slot) = supply.fresh.next()
            {
                supply.registered += 1;
                self.ring.register(slot);
            }
        }
        Via::Ring(Late::new(slot, &self.inbox))
    }

    fn unpark(&mut self, slot: Slot<Arc<Mounted>>) {
        if let Some(supply) = self.supplies.get_mut(&Arc::as_ptr(slot.owner())) {
            supply.parked -= 1;
        }
        self.ring.commit(slot);
    }

    fn attach(&mut self, mut fresh: Slots<Arc<Mounted>>, told: &mpsc::Sender<()>) {
        let first: Vec<_> = fresh.by_ref().take(self.ready).collect();
        if let Some(slot) = first.first() {
            let supply = Supply { fresh, registered: first.len(), parked: 0 };
            self.supplies.insert(Arc::as_ptr(slot.owner()), supply);
        }
        for slot in first {
            self.ring.register(slot);
        }
        let _gone = told.send(()); // The mounter's deadline may have passed.
    }

    fn refused(&mut self, slot: Slot<Arc<Mounted>>, refused: Refused) {
        let mount_point = slot.owner().mount_point.display();
        match refused {
            Refused::Ended => drop(self.supplies.remove(&Arc::as_ptr(slot.owner()))),
            // The kernel takes its requests to the device again, unless others are registered.
            Refused::Register(_) => tracing::error!("{mount_point}: {refused}"),
            Refused::Commit(_) => {
                tracing::error!("{mount_point}: {refused}");
                self.ring.register(slot);
            }
        }
    }
}
