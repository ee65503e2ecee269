//! One mount as the threads see it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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
pub(crate) struct Mounted {
    pub(crate) device: Arc<OwnedFd>,
    pub(crate) filesystem: Arc<dyn Filesystem>,
    /// Flags of INIT that are taken when they are offered.
    pub(crate) wanted: u64,
    /// For the log.
    pub(crate) mount_point: PathBuf,
    pub(crate) end: Arc<End>,
    pub(crate) pace: Pace,
    /// Told once the kernel was greeted, with the flags that are in force.
    pub(crate) greeting: Mutex<Option<mpsc::SyncSender<Result<u64, TooOld>>>>,
    pub(crate) _place: Option<Place>,
}

impl Mounted {
    pub(crate) fn greeted(&self, outcome: Result<u64, TooOld>) {
        if let Some(sender) = self.greeting.lock().take() {
            let _gone = sender.send(outcome); // The mounter's deadline may have passed.
        }
    }

    /// What became of a reply.
    pub(crate) fn note(&self, unique: u64, outcome: rustix::io::Result<()>) {
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

impl AsFd for Mounted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.end.come();
    }
}

/// How long reads take here: as long as a copy, or as long as a disk.
#[derive(Default)]
pub(crate) struct Pace {
    /// The last small read was as fast as memory; not so before the first.
    was_fast: AtomicBool,
}

/// Longer reads are worth the wake-up of a second thread.
const READ_LEN_SMALL: u32 = 64 << 10;
/// What a small read from memory does not take.
const READ_SLOW: Duration = Duration::from_micros(200);

impl Pace {
    /// True if others should not wait for this one.
    pub(crate) fn is_slow(&self, operation: &Operation<'_>) -> bool {
        match *operation {
            Operation::Read { len, .. } => {
                len > READ_LEN_SMALL || !self.was_fast.load(Ordering::Relaxed)
            }
            _ => false,
        }
    }

    /// One took so long.
    pub(crate) fn note(&self, operation: &Operation<'_>, took: Duration) {
        if matches!(*operation, Operation::Read { len, .. } if len <= READ_LEN_SMALL) {
            let is_fast = took < READ_SLOW;
            if self.was_fast.load(Ordering::Relaxed) != is_fast {
                self.was_fast.store(is_fast, Ordering::Relaxed);
            }
        }
    }
}
