//! What other threads tell the thread of a ring.

use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use super::sys::{Slot, Slots};
use crate::transport::dev::Mounted;

/// One thing to do.
pub(super) enum Message {
    /// Register slots of a new mount, and say so.
    Attach(Slots<Arc<Mounted>>, mpsc::Sender<()>),
    /// Commit a slot whose reply was made elsewhere.
    Commit(Slot<Arc<Mounted>>),
    /// End.
    Stop,
}

/// Messages to one thread, which an eventfd wakes. Bounded by what there is to tell: each slot is in
/// one place at a time, and few mounts are made at once.
pub(super) struct Inbox {
    messages: Mutex<Vec<Message>>,
    event: Arc<OwnedFd>,
}

impl Inbox {
    pub(super) fn new() -> rustix::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { messages: Mutex::default(), event: Arc::new(event) })
    }

    /// Readable when there are messages.
    pub(super) fn event(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.event)
    }

    pub(super) fn send(&self, message: Message) {
        let mut messages = self.messages.lock();
        messages.push(message);
        if messages.len() > 1 {
            return; // The first of them woke it.
        }
        drop(messages);
        if let Err(error) = rustix::io::write(&self.event, &1u64.to_ne_bytes()) {
            tracing::error!("a FUSE ring can't be woken: {error}");
        }
    }

    pub(super) fn take(&self) -> Vec<Message> {
        // Before the messages: what comes in between wakes once more for nothing.
        let _empty = rustix::io::read(&self.event, &mut [0; 8]);
        std::mem::take(&mut *self.messages.lock())
    }
}
