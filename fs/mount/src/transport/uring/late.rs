//! A slot whose reply is made later, on another thread than its ring's.

use std::sync::Arc;

use parking_lot::Mutex;

use super::envelope;
use super::inbox::{Inbox, Message};
use super::sys::Slot;
use crate::transport::dev::Mounted;

/// Answered once, by whoever comes first: those who bring the bytes, or the deadline.
pub(crate) struct Late {
    slot: Mutex<Option<Slot<Arc<Mounted>>>>,
    home: Arc<Inbox>,
}

impl Late {
    pub(super) fn new(slot: Slot<Arc<Mounted>>, home: &Arc<Inbox>) -> Arc<Self> {
        Arc::new(Self { slot: Mutex::new(Some(slot)), home: Arc::clone(home) })
    }

    /// Make the reply's body in place; `None` if there is an answer already.
    pub(crate) fn with_payload<T>(&self, make: impl FnOnce(&mut [u8]) -> T) -> Option<T> {
        self.slot.lock().as_mut().map(|slot| make(slot.payload_mut()))
    }

    /// Reply with an errno, or 0 and `len` bytes of the payload.
    pub(crate) fn reply(&self, unique: u64, error: i32, len: usize) {
        let Some(mut slot) = self.slot.lock().take() else { return };
        envelope::seal(slot.headers_mut(), unique, error, len);
        self.home.send(Message::Commit(slot));
    }
}
