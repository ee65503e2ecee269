//! The loop: one thread, one poll(2), a table of descriptors.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags,
};
use rustix::process::Resource;

use crate::message::{MESSAGE_LEN_MAX, Name, Reply, Request};

/// One serves, one may be its successor, and somebody may look.
const CLIENTS_MAX: usize = 8;
/// 4,096 mounts with three descriptors each, and as many again.
const KEPT_MAX: usize = 24_576;
/// Descriptors that are not kept ones.
const OWN_MAX: u64 = 64;
/// A client that does not read its replies is let go.
const SEND_TIME_MAX: Duration = Duration::from_secs(5);
/// Nobody asks for us, and nothing is kept: we end. The first client needs a moment to come.
const IDLE_TIME_MAX: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// No more descriptors for another client: others go on meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Keep what clients of `listener` give, until there is nothing left to keep and nobody to keep it for.
/// Only processes of our own user are clients.
pub fn serve(listener: &OwnedFd) -> io::Result<()> {
    let mut holder = Holder { kept: BTreeMap::new(), kept_max: raise_limit() };
    let mut clients: Vec<OwnedFd> = Vec::new();
    loop {
        let mut ready: Vec<PollFd<'_>> = Vec::with_capacity(1 + clients.len());
        ready.push(PollFd::new(listener, PollFlags::IN));
        ready.extend(clients.iter().map(|client| PollFd::new(client, PollFlags::IN)));
        let is_idle = clients.is_empty() && holder.kept.is_empty();
        match rustix::event::poll(&mut ready, is_idle.then_some(&IDLE_TIME_MAX)) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let is_ready: Vec<bool> = ready.iter().map(|it| !it.revents().is_empty()).collect();
        let mut was_ready = is_ready.iter().skip(1).copied();
        clients
            .retain(|client| !was_ready.next().unwrap_or(false) || holder.answer(client).is_ok());
        if is_ready.first() == Some(&true) && clients.len() < CLIENTS_MAX {
            match accept(listener) {
                Ok(client) => clients.extend(client),
                Err(_) => std::thread::sleep(ACCEPT_PAUSE),
            }
        }
        if clients.is_empty() && holder.kept.is_empty() && is_ready.first() != Some(&true) {
            return Ok(()); // The last one went, and left nothing.
        }
    }
}

/// Descriptors that we may keep.
fn raise_limit() -> usize {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Refused, it stays as it is, and that is looked at next.
    let _refused = rustix::process::setrlimit(Resource::Nofile, limit);
    let limit = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    KEPT_MAX.min(usize::try_from(limit.saturating_sub(OWN_MAX)).unwrap_or(KEPT_MAX))
}

/// The next client; none if it is another user's.
fn accept(listener: &OwnedFd) -> rustix::io::Result<Option<OwnedFd>> {
    let client = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?;
    sockopt::set_socket_timeout(&client, Timeout::Send, Some(SEND_TIME_MAX))?;
    let peer = sockopt::socket_peercred(&client)?;
    Ok((peer.uid == rustix::process::geteuid()).then_some(client))
}

struct Holder {
    kept: BTreeMap<Name, OwnedFd>,
    kept_max: usize,
}

impl Holder {
    /// Answer one request; an error means that the client goes.
    fn answer(&mut self, client: &OwnedFd) -> io::Result<()> {
        let (request, descriptor) = receive(client)?;
        match (request, descriptor) {
            (Some(Request::Keep(name)), Some(descriptor)) => {
                let has_room = self.kept.len() < self.kept_max || self.kept.contains_key(&name);
                if has_room {
                    self.kept.insert(name, descriptor);
                }
                send(client, &if has_room { Reply::Done } else { Reply::Refused }, None)
            }
            (Some(Request::Release(name)), _) => {
                self.kept.remove(&name);
                Ok(())
            }
            (Some(Request::Take(prefix)), _) => {
                let mut count = 0;
                for (name, descriptor) in &self.kept {
                    if name.as_str().starts_with(prefix.as_str()) {
                        send(client, &Reply::Held(name.clone()), Some(descriptor.as_fd()))?;
                        count += 1;
                    }
                }
                send(client, &Reply::End(count), None)
            }
            _ => send(client, &Reply::Refused, None),
        }
    }
}

/// A message with its descriptor. Descriptors too many are closed, and leave no request.
fn receive(client: &OwnedFd) -> io::Result<(Option<Request>, Option<OwnedFd>)> {
    let mut bytes = [0; MESSAGE_LEN_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        client,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let cut = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
    let is_whole = !received.flags.intersects(cut) && descriptors.len() <= 1;
    let request = bytes.get(..received.bytes).filter(|_| is_whole).and_then(Request::decode);
    Ok((request, descriptors.pop()))
}

fn send(client: &OwnedFd, reply: &Reply, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = reply.encode();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(&descriptors));
        assert!(fits, "room for one descriptor was made");
    }
    rustix::net::sendmsg(client, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
