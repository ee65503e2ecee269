//! A mount being served, until its end.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::connection::Connection;
use super::options::{Privilege, Transport};

/// How a session ended, once it has.
#[derive(Default)]
pub(super) struct End {
    over: Mutex<bool>,
    signal: Condvar,
}

impl End {
    /// It is over. May be said more than once.
    pub(super) fn come(&self) {
        *self.over.lock() = true;
        self.signal.notify_all();
    }

    pub(super) fn is_come(&self) -> bool {
        *self.over.lock()
    }
}

/// A mount being served. It goes on when this value is dropped; it ends with its last user.
pub struct Session {
    pub(super) mount_point: PathBuf,
    pub(super) privilege: Privilege,
    pub(super) transport: Transport,
    pub(super) connection: Connection,
    pub(super) end: std::sync::Arc<End>,
}

impl Session {
    /// Where it is mounted, canonical.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Its FUSE connection.
    pub fn connection(&self) -> Connection {
        self.connection
    }

    /// What serves it.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Take it out of the directory tree. Files open in it, and mounts made of them, live on.
    pub fn detach(&self) -> io::Result<()> {
        crate::unmount::detach(&self.mount_point, self.privilege)
    }

    pub(super) fn detach_or_log(&self) {
        if let Err(error) = self.detach() {
            tracing::error!("{} stays mounted: {error}", self.mount_point.display());
        }
    }

    /// True once the kernel has let it go.
    pub fn is_over(&self) -> bool {
        self.end.is_come()
    }

    /// Wait until the last user is gone; false if that takes longer.
    pub fn wait(&self, at_most: Duration) -> bool {
        let mut over = self.end.over.lock();
        let until = Instant::now() + at_most;
        while !*over {
            if self.end.signal.wait_until(&mut over, until).timed_out() {
                return *over;
            }
        }
        true
    }
}
