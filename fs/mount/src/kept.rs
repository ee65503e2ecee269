//! What is kept of one mount for whoever serves it after us.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::hold::{Holding, Name};
use crate::record::{Line, Record, SessionRecord};
use crate::transport::{Live, Session};

/// A mount's record, and its descriptors in the hands of a holder. With the last of those who need it
/// (the mount, as long as it is in the directory tree, and its sessions) all of it goes.
pub(crate) struct Kept {
    record: Record,
    holding: Option<Holding>,
    /// False once something could not be kept.
    is_whole: AtomicBool,
    names: Mutex<Vec<Name>>,
    /// All mounts are left to a successor.
    left: Arc<AtomicBool>,
}

impl Kept {
    pub(crate) fn new(
        record: Record,
        holding: Option<Holding>,
        left: Arc<AtomicBool>,
    ) -> Arc<Self> {
        let (is_whole, names) = (AtomicBool::new(true), Mutex::default());
        Arc::new(Self { record, holding, is_whole, names, left })
    }

    /// Note what happened.
    pub(crate) fn note(&self, line: &Line<'_>) {
        if let Err(error) = self.record.note(line) {
            self.is_not_whole(&format!("{line:?} is not recorded: {error}"));
        }
    }

    /// Have a new session's descriptors kept until its end. It is part of the mount until then.
    pub(crate) fn add(self: &Arc<Self>, number: usize, session: &mut Session) {
        let kept = Arc::clone(self);
        let Some(live) = session.live.take() else {
            self.is_whole.store(false, Ordering::Relaxed);
            return session.end.then(move || drop(kept));
        };
        let mut names = Vec::new();
        for (role, descriptor) in live.parts() {
            match self.keep(&format!("{role}-{number}"), descriptor) {
                Ok(name) => names.extend(name),
                Err(error) => self.is_not_whole(&format!("its {role} is not kept: {error}")),
            }
        }
        self.note(&Line::Session(SessionRecord {
            transport: session.transport,
            connection: session.connection,
            mount_point: session.mount_point.clone(),
        }));
        self.let_go_with(session, names);
    }

    /// The same for the session of a predecessor, whose descriptors are kept under these names.
    pub(crate) fn resume(self: &Arc<Self>, session: &Session, live: &Live, names: Vec<Name>) {
        for (name, (_, descriptor)) in names.iter().zip(live.parts()) {
            self.keep_on(name, descriptor);
        }
        self.let_go_with(session, names);
    }

    fn let_go_with(self: &Arc<Self>, session: &Session, names: Vec<Name>) {
        let kept = Arc::clone(self);
        // A connection is over when nobody has its descriptor, so the holder must not.
        session.end.then(move || kept.release(&names));
    }

    /// Its holder has it already, but must get it from us should it be replaced.
    fn keep_on(&self, name: &Name, descriptor: &Arc<OwnedFd>) {
        let kept = self.holding.as_ref().map_or(Ok(()), |it| it.hold.keep(name, descriptor));
        if let Err(error) = kept {
            self.is_not_whole(&format!("{} is not kept: {error}", name.as_str()));
        }
    }

    /// The mount is made: from now on a successor can take it over.
    pub(crate) fn complete(&self, has_sessions: bool) {
        if !self.is_whole.load(Ordering::Relaxed) {
            return;
        }
        self.note(&Line::Complete);
        if has_sessions {
            match self.keep("record", self.record.file()) {
                Ok(name) => self.names.lock().extend(name),
                Err(error) => self.is_not_whole(&format!("its record is not kept: {error}")),
            }
        }
    }

    /// The record of a predecessor is kept under these names.
    pub(crate) fn resume_record(&self, names: Vec<Name>) {
        names.iter().for_each(|name| self.keep_on(name, self.record.file()));
        self.names.lock().extend(names);
    }

    /// Leave the record, whatever happens: the mount is not gone.
    pub(crate) fn abandon(&self) {
        self.record.abandon();
    }

    /// A successor has it.
    pub(crate) fn is_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    fn keep(&self, role: &str, descriptor: &Arc<OwnedFd>) -> io::Result<Option<Name>> {
        let Some(holding) = &self.holding else { return Ok(None) };
        let name = holding.name(self.record.name(), role)?;
        holding.hold.keep(&name, descriptor)?;
        Ok(Some(name))
    }

    fn release(&self, names: &[Name]) {
        if let Some(holding) = self.holding.as_ref().filter(|_| !self.is_left()) {
            names.iter().for_each(|name| holding.hold.release(name));
        }
    }

    fn is_not_whole(&self, why: &str) {
        if self.is_whole.swap(false, Ordering::Relaxed) && self.holding.is_some() {
            tracing::warn!("mount {} ends with this process: {why}", self.record.name());
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.is_left() {
            return self.record.abandon();
        }
        let names = std::mem::take(self.names.get_mut());
        self.release(&names);
    }
}
