//! One mount as the threads see it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno as Code;

use crate::filesystem::Filesystem;
use crate::transport::protocol::init::TooOld;
use crate::transport::protocol::request::Operation;
use crate::transport::server::Place;
use crate::transport::session::End;

/// A connection with what answers on it. Dropping the last reference closes the device, and with
/// it, unless somebody else holds it too, the connection.
pub(super) struct Mounted {
    pub(super) device: OwnedFd,
    pub(super) filesystem: Arc<dyn Filesystem>,
    /// For the log.
    pub(super) mount_point: PathBuf,
    pub(super) end: Arc<End>,
    pub(super) pace: Pace,
    /// Told once the kernel was greeted.
    pub(super) greeting: Mutex<Option<mpsc::SyncSender<Result<(), TooOld>>>>,
    pub(super) _place: Option<Place>,
}

impl Mounted {
    pub(super) fn greeted(&self, outcome: Result<(), TooOld>) {
        if let Some(sender) = self.greeting.lock().take() {
            let _gone = sender.send(outcome); // The mounter's deadline may have passed.
        }
    }

    /// What became of a reply.
    pub(super) fn note(&self, unique: u64, outcome: rustix::io::Result<()>) {
        match outcome {
            // The last three: nobody waits for it any more, or the whole connection is gone.
            Ok(()) | Err(Code::NOENT | Code::NODEV | Code::PERM) => {}
            Err(error) => {
                let mount_point = self.mount_point.display();
                tracing::error!(unique, "reply on {mount_point} was refused: {error}");
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.end.come();
    }
}

/// How long reads take here: as long as a copy, or as long as a disk.
#[derive(Default)]
pub(super) struct Pace {
    /// The last small read was as fast as memory; not so before the first.
    was_fast: AtomicBool,
}

/// Longer reads are worth the wake-up of a second thread.
const READ_LEN_SMALL: u32 = 64 << 10;
/// What a small read from memory does not take.
const READ_SLOW: Duration = Duration::from_micros(200);

impl Pace {
    /// True if others should not wait for this one.
    pub(super) fn is_slow(&self, operation: &Operation<'_>) -> bool {
        match *operation {
            Operation::Read { len, .. } => {
                len > READ_LEN_SMALL || !self.was_fast.load(Ordering::Relaxed)
            }
            _ => false,
        }
    }

    /// One took so long.
    pub(super) fn note(&self, operation: &Operation<'_>, took: Duration) {
        if matches!(*operation, Operation::Read { len, .. } if len <= READ_LEN_SMALL) {
            let is_fast = took < READ_SLOW;
            if self.was_fast.load(Ordering::Relaxed) != is_fast {
                self.was_fast.store(is_fast, Ordering::Relaxed);
            }
        }
    }
}
