//! Descriptors that outlive us, so that a successor can serve the same mounts.
//!
//! ```text
//! PREFIX.RECORD.record     the mount's record, whose lock says that it is not abandoned
//! PREFIX.RECORD.fuse-N     the FUSE connection of its session N
//! PREFIX.RECORD.ring-N     what a transport shares with the kernel or its successor, if anything
//! PREFIX.RECORD.root-N     the root of the session's mount, if its transport needs it
//! ```

mod holder;
mod systemd;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::retry_on_intr;
use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg, sendmsg_addr,
};

pub use holder::Holder;
pub use spanfs_hold::message::Name;
pub use systemd::FdStore;

use crate::sys;

/// Keeps named descriptors past our end.
pub trait Hold: Send + Sync {
    /// Keep one, instead of what had the name before. When this returns, it is safe.
    fn keep(&self, name: &Name, descriptor: &Arc<OwnedFd>) -> io::Result<()>;

    /// Let one go, without waiting for an answer; what can't be released now is found useless by a
    /// successor.
    fn release(&self, name: &Name);

    /// All that an earlier process, or this one, gave under names that begin so. They stay kept.
    fn take(&self, prefix: &Name) -> io::Result<Vec<(Name, OwnedFd)>>;

    /// What it is, for people.
    fn describe(&self) -> String;
}

/// What all names of ours begin with, so that systemd's store may hold descriptors of others too.
pub const PREFIX: &str = "spanfs.";

/// Descriptors of ours that systemd's store passed to this process; `variable` reads the environment.
/// Once; call it before anything is opened that closes again.
pub fn inherited(variable: impl Fn(&str) -> Option<String>) -> Vec<(Name, OwnedFd)> {
    let is_ours = |pid: String| pid.parse() == Ok(std::process::id());
    if !variable("LISTEN_PID").is_some_and(is_ours) {
        return Vec::new();
    }
    let count = variable("LISTEN_FDS").and_then(|count| count.parse().ok()).unwrap_or(0);
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let inherited = sys::inherited(count, &names, PREFIX).into_iter();
    inherited.filter_map(|(name, descriptor)| Some((Name::new(&name)?, descriptor))).collect()
}

/// A holder, and what our names in it begin with.
#[derive(Clone)]
pub struct Holding {
    /// Keeps our descriptors.
    pub hold: Arc<dyn Hold>,
    /// Nobody else's names begin so.
    pub prefix: Name,
}

impl std::fmt::Debug for Holding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} by {}", self.prefix.as_str(), self.hold.describe())
    }
}

impl Holding {
    /// Name of one descriptor of a mount.
    pub(crate) fn name(&self, record: &str, role: &str) -> io::Result<Name> {
        let text = format!("{}.{record}.{role}", self.prefix.as_str());
        Name::new(&text).ok_or_else(|| io::Error::other(format!("{text:?} is no name")))
    }

    /// All of ours, as (record, role, descriptor).
    pub(crate) fn take(&self) -> io::Result<Vec<(String, String, OwnedFd)>> {
        let own = format!("{}.", self.prefix.as_str());
        let prefix = Name::new(&own).ok_or(io::ErrorKind::InvalidInput)?;
        let mut taken = Vec::new();
        for (name, descriptor) in self.hold.take(&prefix)? {
            let parts = name.as_str().strip_prefix(&own).and_then(|rest| rest.split_once('.'));
            match parts {
                Some((record, role)) => {
                    taken.push((record.to_owned(), role.to_owned(), descriptor))
                }
                None => self.hold.release(&name), // None of ours has such a name.
            }
        }
        Ok(taken)
    }
}

/// Send one message, and a descriptor beside it: to `address`, or where the socket is connected.
fn send(
    socket: &OwnedFd,
    address: Option<&SocketAddrUnix>,
    bytes: &[u8],
    descriptor: Option<&OwnedFd>,
    flags: SendFlags,
) -> io::Result<()> {
    let descriptors: Vec<_> = descriptor.iter().map(|it| it.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(&descriptors));
        assert!(fits, "room for one descriptor was made");
    }
    let (flags, parts) = (flags | SendFlags::NOSIGNAL, [IoSlice::new(bytes)]);
    // With a deadline on the socket, a process that was stopped and goes on is interrupted.
    retry_on_intr(|| match address {
        Some(address) => sendmsg_addr(socket, address, &parts, &mut control, flags),
        None => sendmsg(socket, &parts, &mut control, flags),
    })?;
    Ok(())
}
