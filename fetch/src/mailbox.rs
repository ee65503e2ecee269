//! The way from any thread to the engine's own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use spanfs_layer::Digest;

use crate::blob::{Priority, Want};
use crate::plan::{BlobId, WantId};
use crate::target::{Locate, LocateError, Target};

/// What callers ask of the engine's thread.
pub(crate) enum Command {
    Open {
        blob: BlobId,
        digest: Digest,
        size: u64,
        locate: Arc<dyn Locate>,
        whole: Arc<AtomicBool>,
    },
    Want {
        id: WantId,
        blob: BlobId,
        want: Want,
    },
    Promote {
        id: WantId,
        priority: Priority,
    },
    Cancel {
        id: WantId,
    },
    Distrust {
        blob: BlobId,
    },
    Located {
        blob: BlobId,
        generation: u64,
        result: Result<Target, LocateError>,
    },
    /// Much of the blob will be wanted soon.
    Prepare {
        blob: BlobId,
    },
    /// Where it would be wanted from.
    Prepared {
        target: Arc<Target>,
    },
    Close {
        blob: BlobId,
    },
}

/// Commands on their way. Bounded by what callers hold: the plan refuses wants beyond its limit, and
/// the engine's thread empties it at each turn.
pub(crate) struct Mailbox {
    inner: Mutex<Inner>,
    id_next: AtomicU64,
    /// Wakes the engine's thread; called when the first command goes into an empty box.
    wake: Box<dyn Fn() + Send + Sync>,
}

struct Inner {
    commands: Vec<Command>,
    open: bool,
}

impl Mailbox {
    pub(crate) fn new(wake: Box<dyn Fn() + Send + Sync>) -> Self {
        let inner = Mutex::new(Inner { commands: Vec::new(), open: true });
        Self { inner, id_next: AtomicU64::new(1), wake }
    }

    /// An identity nobody else has.
    pub(crate) fn id(&self) -> u64 {
        self.id_next.fetch_add(1, Ordering::Relaxed)
    }

    /// Post a command; after the engine's end a want is cancelled at once.
    pub(crate) fn send(&self, command: Command) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if !inner.open {
            drop(inner);
            if let Command::Want { want, .. } = command {
                (want.reply)(Err(crate::blob::FetchError::Cancelled));
            }
            return;
        }
        inner.commands.push(command);
        let first = inner.commands.len() == 1;
        drop(inner);
        if first {
            (self.wake)();
        }
    }

    /// Everything posted so far.
    pub(crate) fn take(&self) -> Vec<Command> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut inner.commands)
    }

    /// Ask the engine's thread to end.
    pub(crate) fn close(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).open = false;
        (self.wake)();
    }

    pub(crate) fn is_open(&self) -> bool {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).open
    }
}
