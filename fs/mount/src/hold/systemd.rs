//! systemd's descriptor store (sd_pid_notify_with_fds(3)): no process of ours is needed.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::{Hold, Name};

/// systemd reads a few messages ahead; one that does not read at all must not stop us.
const SEND_TIME_MAX: Duration = Duration::from_secs(2);

/// The store of the unit that we run as.
pub struct FdStore {
    socket: OwnedFd,
    address: SocketAddrUnix,
    /// What an earlier process stored; each is given out once, as they are duplicates already.
    inherited: Mutex<Vec<(Name, OwnedFd)>>,
}

impl FdStore {
    /// `socket` is `NOTIFY_SOCKET`; `inherited` came with our start (see [`super::inherited`]).
    pub fn new(socket: &OsStr, inherited: Vec<(Name, OwnedFd)>) -> io::Result<Self> {
        let address = match socket.as_bytes() {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
            path => SocketAddrUnix::new(path)?,
        };
        let (family, kind) = (AddressFamily::UNIX, SocketType::DGRAM);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_timeout(&socket, Timeout::Send, Some(SEND_TIME_MAX))?;
        Ok(Self { socket, address, inherited: Mutex::new(inherited) })
    }

    fn tell(&self, text: &str, descriptor: Option<&OwnedFd>, flags: SendFlags) -> io::Result<()> {
        super::send(&self.socket, Some(&self.address), text.as_bytes(), descriptor, flags)
    }
}

impl Hold for FdStore {
    fn keep(&self, name: &Name, descriptor: &Arc<OwnedFd>) -> io::Result<()> {
        let text = format!("FDSTORE=1\nFDNAME={}", name.as_str());
        self.tell(&text, Some(descriptor), SendFlags::empty())
    }

    fn release(&self, name: &Name) {
        let text = format!("FDSTOREREMOVE=1\nFDNAME={}", name.as_str());
        if let Err(error) = self.tell(&text, None, SendFlags::DONTWAIT) {
            tracing::warn!("systemd goes on keeping {}: {error}", name.as_str());
        }
    }

    fn take(&self, prefix: &Name) -> io::Result<Vec<(Name, OwnedFd)>> {
        let is_wanted =
            |(name, _): &mut (Name, OwnedFd)| name.as_str().starts_with(prefix.as_str());
        Ok(self.inherited.lock().extract_if(.., is_wanted).collect())
    }

    fn describe(&self) -> String {
        "systemd's descriptor store".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;
    use std::os::unix::net::UnixDatagram;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

    use super::*;

    /// What systemd would get: text and descriptor.
    fn told(supervisor: &UnixDatagram) -> (String, Option<OwnedFd>) {
        let mut bytes = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [io::IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let len = rustix::net::recvmsg(supervisor, &mut parts, &mut control, flags).unwrap().bytes;
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        (String::from_utf8(bytes[..len].to_vec()).unwrap(), descriptor)
    }

    #[test]
    fn systemd_is_told_in_its_words() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).unwrap();
        let name = Name::new("spanfs.1-0.fuse-0").unwrap();
        let (kept, _) = rustix::pipe::pipe().unwrap();
        let store = FdStore::new(path.as_os_str(), Vec::new()).unwrap();
        store.keep(&name, &Arc::new(kept)).unwrap();
        let (text, descriptor) = told(&supervisor);
        assert_eq!(text, "FDSTORE=1\nFDNAME=spanfs.1-0.fuse-0");
        store.release(&name);
        assert_eq!(told(&supervisor).0, "FDSTOREREMOVE=1\nFDNAME=spanfs.1-0.fuse-0");

        let other = Name::new("other").unwrap();
        let (unrelated, _) = rustix::pipe::pipe().unwrap();
        let inherited = vec![(name.clone(), descriptor.unwrap()), (other, unrelated)];
        let successor = FdStore::new(path.as_os_str(), inherited).unwrap();
        let taken = successor.take(&Name::new("spanfs.").unwrap()).unwrap();
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].0, name);
    }
}
