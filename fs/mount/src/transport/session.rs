//! A mount being served, until its end.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::connection::Connection;
use super::live::Live;
use super::options::{Privilege, Transport};

/// How a session ended, once it has.
#[derive(Default)]
pub(crate) struct End {
    state: Mutex<State>,
    signal: Condvar,
}

#[derive(Default)]
struct State {
    is_over: bool,
    /// What is to be done before anybody is told.
    then: Option<Box<dyn FnOnce() + Send>>,
}

impl End {
    /// It is over. May be said more than once.
    pub(super) fn come(&self) {
        let mut state = self.state.lock();
        while let Some(then) = state.then.take() {
            drop(state);
            then();
            state = self.state.lock();
        }
        state.is_over = true;
        self.signal.notify_all();
    }

    pub(super) fn is_come(&self) -> bool {
        self.state.lock().is_over
    }

    /// Do that at the end, now if it has come. Once for each session.
    pub(crate) fn then(&self, then: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock();
        if !state.is_over {
            state.then = Some(Box::new(then));
            return;
        }
        drop(state);
        then();
    }
}

/// A mount being served. It goes on when this value is dropped; it ends with its last user.
pub struct Session {
    pub(crate) mount_point: PathBuf,
    pub(super) privilege: Privilege,
    pub(crate) transport: Transport,
    pub(crate) connection: Connection,
    /// What a successor needs; none if its transport, or the kernel, allows none.
    pub(crate) live: Option<Live>,
    pub(crate) end: std::sync::Arc<End>,
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
        let mut state = self.end.state.lock();
        let until = Instant::now() + at_most;
        while !state.is_over {
            if self.end.signal.wait_until(&mut state, until).timed_out() {
                return state.is_over;
            }
        }
        true
    }
}
