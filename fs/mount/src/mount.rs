//! A mount of ours, from its first part to its end.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::hold::Name;
use crate::kept::Kept;
use crate::mounter::{MountError, state};
use crate::record::{Line, remove_staging};
use crate::shortcuts::Shortcuts;
use crate::transport::{Live, Privilege, Session};
use crate::unmount;

/// How one layer of a mount is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shown {
    /// EROFS on the complete layer file: nothing depends on us any more.
    ErofsDirect,
    /// EROFS over the one-file FUSE mount.
    ErofsOverFuse,
    /// A FUSE filesystem of inodes.
    Inodes,
}

/// Reads of a layer that no longer come to us.
#[derive(Clone)]
pub struct PastUs(Arc<Shortcuts>);

impl PastUs {
    /// Their part of all bytes of files, in percent, rounded down: at 100 the layer needs nobody. Reads the
    /// layer's index. `None` if that fails.
    pub fn percent(&self) -> Option<u8> {
        let (led, all) = self.0.led().ok()?;
        u8::try_from((led * 100).checked_div(all)?).ok()
    }
}

/// What to do with a mount that is still in use when the time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// It is out of the directory tree, and is served until its last user goes.
    Leave,
    /// Its connections are aborted: whoever still reads gets an error.
    Abort,
}

/// How an unmount ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing is left.
    Gone,
    /// Some of it is still in use, and served.
    InUse,
}

/// Why an unmount failed.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// The operating system refused.
    #[error("cannot unmount {0}")]
    Refused(PathBuf, #[source] io::Error),
    /// umount2(2) did not return; a thread still waits for it.
    #[error("unmounting {0} takes longer than {1:?}")]
    Stuck(PathBuf, Duration),
}

/// One mount with all its parts. Dropping it unmounts, lazily, unless it was left to a successor.
pub struct Mount {
    privilege: Privilege,
    /// The order in which they were mounted.
    mount_points: Vec<PathBuf>,
    sessions: Vec<Session>,
    shown: Vec<Shown>,
    /// Those of layers that have some, by their places in `shown`.
    shortcuts: BTreeMap<usize, Arc<Shortcuts>>,
    staging: PathBuf,
    /// What a successor needs; none once nothing is left in the directory tree.
    kept: Option<Arc<Kept>>,
}

/// A detach touches no server, so it takes no time unless a filesystem below is broken.
const DROP_DEADLINE: Duration = Duration::from_secs(5);
/// Aborted requests fail at once; what remains is the kernel letting go.
const ABORT_DEADLINE: Duration = Duration::from_secs(5);

impl Mount {
    pub(crate) fn begin(privilege: Privilege, staging: PathBuf, kept: Arc<Kept>) -> Self {
        Self::resumed(privilege, staging, kept, Vec::new())
    }

    /// One that a predecessor has made; its sessions are to be added.
    pub(crate) fn resumed(
        privilege: Privilege,
        staging: PathBuf,
        kept: Arc<Kept>,
        mount_points: Vec<PathBuf>,
    ) -> Self {
        let (sessions, shown, kept) = (Vec::new(), Vec::new(), Some(kept));
        let shortcuts = BTreeMap::new();
        Self { privilege, mount_points, sessions, shown, shortcuts, staging, kept }
    }

    /// How each layer is shown, the lowest first.
    pub fn layers(&self) -> &[Shown] {
        &self.shown
    }

    /// What the kernel reads of a layer without us although it is [`Shown::ErofsOverFuse`]; `None` where
    /// there can be no such.
    pub fn past_us(&self, layer: usize) -> Option<PastUs> {
        self.shortcuts.get(&layer).cloned().map(PastUs)
    }

    /// Unmount within about `at_most`: detached at once, then waited for.
    pub fn unmount(mut self, at_most: Duration, busy: Busy) -> Result<Ended, UnmountError> {
        let until = Instant::now() + at_most;
        self.detach_all(at_most)?;
        if self.wait_until(until) {
            return Ok(Ended::Gone);
        }
        if busy == Busy::Leave {
            return Ok(Ended::InUse);
        }
        for session in self.sessions.iter().filter(|session| !session.is_over()) {
            if let Err(error) = session.connection().abort() {
                tracing::warn!("connection of {} stays: {error}", session.mount_point().display());
            }
        }
        let gone = self.wait_until(Instant::now() + ABORT_DEADLINE);
        Ok(if gone { Ended::Gone } else { Ended::InUse })
    }

    fn wait_until(&self, until: Instant) -> bool {
        let wait =
            |session: &Session| session.wait(until.saturating_duration_since(Instant::now()));
        // All are waited for: one that is busy must not hide that others have ended.
        self.sessions.iter().filter(|session| !wait(session)).count() == 0
    }

    /// A thread of its own does it, which may get stuck where we must not.
    fn detach_all(&mut self, at_most: Duration) -> Result<(), UnmountError> {
        let mount_points = std::mem::take(&mut self.mount_points);
        let Some(top) = mount_points.last().cloned() else {
            self.forget();
            return Ok(());
        };
        let (sender, receiver) = mpsc::channel();
        let privilege = self.privilege;
        let detach = move || {
            let refused = mount_points.into_iter().rev().filter_map(|path| {
                let error = unmount::detach(&path, privilege).err()?;
                Some(UnmountError::Refused(path, error))
            });
            // All are tried; the first refusal is told.
            let _gone = sender.send(refused.collect::<Vec<_>>().into_iter().next());
        };
        let spawned = std::thread::Builder::new().name("spanfs-unmount".into()).spawn(detach);
        let failure = match spawned.map(|_thread| receiver.recv_timeout(at_most)) {
            Ok(Ok(None)) => {
                self.forget();
                return Ok(());
            }
            Ok(Ok(Some(refusal))) => refusal,
            Ok(Err(_)) => UnmountError::Stuck(top, at_most),
            Err(error) => UnmountError::Refused(top, error),
        };
        if let Some(kept) = self.kept.take() {
            kept.abandon();
        }
        Err(failure)
    }

    /// Nothing is left in the directory tree, so there is nothing to recover.
    fn forget(&mut self) {
        remove_staging(&self.staging);
        self.kept = None;
    }

    /// A mount point of ours.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf, MountError> {
        let path = self.staging.join(name);
        std::fs::create_dir(&path).map_err(|source| state("create", &path, source))?;
        Ok(path)
    }

    /// Something is about to be mounted there.
    pub(crate) fn mounted(&mut self, mount_point: PathBuf) {
        self.note(&Line::Mounted(&mount_point));
        self.mount_points.push(mount_point);
    }

    /// What is mounted there is somebody else's from now on.
    pub(crate) fn release(&mut self, mount_point: &Path) {
        self.note(&Line::Left(mount_point));
        self.mount_points.retain(|path| path != mount_point);
    }

    pub(crate) fn served(&mut self, mut session: Session) {
        if let Some(kept) = &self.kept {
            kept.add(self.sessions.len(), &mut session);
        }
        self.sessions.push(session);
    }

    /// A session of a predecessor goes on; that is what its descriptors are called.
    pub(crate) fn served_on(&mut self, session: Session, live: &Live, names: Vec<Name>) {
        if let Some(kept) = &self.kept {
            kept.resume(&session, live, names);
        }
        self.sessions.push(session);
    }

    /// One layer is shown so; `same` must be the same for a successor to serve it.
    pub(crate) fn shown(&mut self, shown: Shown, same: &str) {
        self.note(&Line::Shown(shown, same));
        self.shows(shown);
    }

    pub(crate) fn shows(&mut self, shown: Shown) {
        self.shown.push(shown);
    }

    /// The last layer that is shown has these.
    pub(crate) fn has_shortcuts(&mut self, shortcuts: Option<Arc<Shortcuts>>) {
        let last = self.shown.len().checked_sub(1);
        self.shortcuts.extend(last.zip(shortcuts));
    }

    /// All of it is there.
    pub(crate) fn complete(self) -> Self {
        if let Some(kept) = &self.kept {
            kept.complete(!self.sessions.is_empty());
        }
        self
    }

    fn note(&self, line: &Line<'_>) {
        if let Some(kept) = &self.kept {
            kept.note(line);
        }
    }

    /// Take a part out of sight: what is mounted from it carries on.
    pub(crate) fn hide(&mut self, part: &Path) {
        match unmount::detach(part, self.privilege) {
            Ok(()) => {
                self.release(part);
                let _left = std::fs::remove_dir(part); // `forget` tries again.
            }
            Err(error) => tracing::warn!("{} stays in sight: {error}", part.display()),
        }
    }

    /// The same for all in the staging directory.
    pub(crate) fn hide_parts(&mut self) {
        let mut parts = self.mount_points.clone();
        parts.retain(|path| path.starts_with(&self.staging));
        for part in parts.iter().rev() {
            self.hide(part);
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let is_ours = self.kept.as_ref().is_some_and(|kept| !kept.is_left());
        if is_ours && let Err(error) = self.detach_all(DROP_DEADLINE) {
            tracing::error!("{error}");
        }
    }
}
