//! Our side of `spanfs-hold`: started when it is needed, and again should it be killed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::FlockOperation;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, Shutdown,
    SocketAddrUnix, SocketFlags, SocketType,
};
use spanfs_hold::message::{MESSAGE_LEN_MAX, Reply, Request};

use super::{Hold, Name};

/// Name of the program.
const PROGRAM: &str = "spanfs-hold";
/// It answers in microseconds, unless the machine is out of memory.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// Clients that come before it accepts.
const BACKLOG: i32 = 16;
/// Times that it is looked for, or started, before we give up.
const ATTEMPTS_MAX: u32 = 3;
/// A holder that ends again and again is left alone.
const REPLACED_MAX: u32 = 16;
/// Between the end of one and the start of the next.
const REPLACE_PAUSE: Duration = Duration::from_millis(20);

/// A holder process of our user.
pub struct Holder(Arc<Shared>);

struct Shared {
    /// Where it listens.
    socket: PathBuf,
    program: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Arc<OwnedFd>>,
    /// All that it keeps for us: the next one gets it too, should this one be killed.
    kept: BTreeMap<Name, Arc<OwnedFd>>,
    replaced: u32,
}

impl Holder {
    /// The holder that listens at `socket`, started with `program` if there is none. The socket's
    /// directory is made, for us alone.
    pub fn reach(socket: PathBuf, program: PathBuf) -> io::Result<Self> {
        if let Some(directory) = socket.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let shared = Arc::new(Shared { socket, program, state: Mutex::default() });
        shared.connect(&mut shared.state.lock())?;
        Ok(Self(shared))
    }

    /// The program: beside the running one, or in `path`, a list of directories like `PATH`.
    pub fn find_program(path: Option<&std::ffi::OsStr>) -> Option<PathBuf> {
        let beside = std::env::current_exe().ok().and_then(|it| it.canonicalize().ok());
        let beside = beside.as_deref().and_then(Path::parent).map(Path::to_owned);
        let listed = path.into_iter().flat_map(std::env::split_paths);
        beside.into_iter().chain(listed).map(|it| it.join(PROGRAM)).find(|path| path.is_file())
    }
}

impl Hold for Holder {
    fn keep(&self, name: &Name, descriptor: &Arc<OwnedFd>) -> io::Result<()> {
        let mut state = self.0.state.lock();
        let connection = self.0.connect(&mut state)?;
        state.kept.insert(name.clone(), Arc::clone(descriptor));
        keep(&connection, name, descriptor).inspect_err(|_| {
            state.kept.remove(name);
        })
    }

    fn release(&self, name: &Name) {
        let mut state = self.0.state.lock();
        state.kept.remove(name);
        if let Some(connection) = &state.connection
            && let Err(error) =
                send(connection, &Request::Release(name.clone()), None, SendFlags::DONTWAIT)
        {
            tracing::warn!("the holder goes on keeping {}: {error}", name.as_str());
        }
    }

    fn take(&self, prefix: &Name) -> io::Result<Vec<(Name, OwnedFd)>> {
        let mut state = self.0.state.lock();
        let connection = self.0.connect(&mut state)?;
        let taken = take(&connection, prefix);
        if taken.is_err() {
            state.connection = None; // Replies may be under way that nobody expects any more.
        }
        taken
    }

    fn describe(&self) -> String {
        format!("{PROGRAM} at {}", self.0.socket.display())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(connection) = &self.0.state.lock().connection {
            // Wakes the thread that watches it.
            let _gone = rustix::net::shutdown(connection, Shutdown::Both);
        }
    }
}

impl Shared {
    /// The connection; made, with the holder itself, if there is none. A new holder gets all that the
    /// one before it had of us.
    fn connect(self: &Arc<Self>, state: &mut State) -> io::Result<Arc<OwnedFd>> {
        if let Some(connection) = &state.connection {
            return Ok(Arc::clone(connection));
        }
        let mut attempt = 0;
        let connection = loop {
            attempt += 1;
            match self.connect_once(state) {
                Ok(connection) => break connection,
                Err(error) if attempt >= ATTEMPTS_MAX => return Err(error),
                // It was just about to end.
                Err(error) => tracing::debug!("the holder is tried again: {error}"),
            }
        };
        let (watched, shared) = (Arc::clone(&connection), Arc::downgrade(self));
        std::thread::Builder::new()
            .name("spanfs-hold".into())
            .stack_size(128 << 10)
            .spawn(move || watch(&watched, &shared))?;
        state.connection = Some(Arc::clone(&connection));
        Ok(connection)
    }

    fn connect_once(&self, state: &State) -> io::Result<Arc<OwnedFd>> {
        let connection = Arc::new(self.reach()?);
        for (name, descriptor) in &state.kept {
            keep(&connection, name, descriptor)?;
        }
        Ok(connection)
    }

    /// A connection to whoever listens, or to one that we start. One process at a time looks.
    fn reach(&self) -> io::Result<OwnedFd> {
        let lock = File::create(self.socket.with_extension("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        let address = SocketAddrUnix::new(self.socket.as_os_str().as_bytes())?;
        let connection = socket()?;
        match rustix::net::connect(&connection, &address) {
            Ok(()) => return Ok(connection),
            Err(Errno::NOENT) => {}
            Err(Errno::CONNREFUSED) => std::fs::remove_file(&self.socket)?,
            Err(error) => return Err(error.into()),
        }
        let listener = socket()?;
        rustix::net::bind(&listener, &address)?;
        std::fs::set_permissions(&self.socket, std::fs::Permissions::from_mode(0o600))?;
        rustix::net::listen(&listener, BACKLOG)?;
        self.start(listener)?;
        rustix::net::connect(&connection, &address)?;
        Ok(connection)
    }

    fn start(&self, listener: OwnedFd) -> io::Result<()> {
        let mut child = Command::new(&self.program)
            .arg(&self.socket)
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .env_clear()
            .spawn()
            .map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", self.program.display()))
            })?;
        // Only so that it is no zombie, should it end before us.
        let reap = move || drop(child.wait());
        let thread = std::thread::Builder::new().name("spanfs-hold-end".into());
        thread.stack_size(128 << 10).spawn(reap).map(drop)
    }
}

/// Notice the holder's end, and give all to another.
fn watch(connection: &OwnedFd, shared: &Weak<Shared>) {
    loop {
        let mut events = [PollFd::new(connection, PollFlags::RDHUP)];
        match rustix::event::poll(&mut events, None) {
            Err(Errno::INTR) => continue,
            _ => break,
        }
    }
    let Some(shared) = shared.upgrade() else { return };
    std::thread::sleep(REPLACE_PAUSE);
    let mut state = shared.state.lock();
    state.connection = None;
    state.replaced += 1;
    if state.kept.is_empty() {
        return; // Nothing was lost; the next to be kept finds another.
    }
    if state.replaced > REPLACED_MAX {
        return tracing::error!("{PROGRAM} ends again and again: mounts end with this process");
    }
    match shared.connect(&mut state) {
        Ok(_) => tracing::warn!("{PROGRAM} was gone: another keeps {} now", state.kept.len()),
        Err(error) => {
            tracing::error!("{PROGRAM} is gone, mounts end with this process: {error}");
        }
    }
}

fn socket() -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    for direction in [Timeout::Recv, Timeout::Send] {
        sockopt::set_socket_timeout(&socket, direction, Some(ANSWER_TIME_MAX))?;
    }
    Ok(socket)
}

fn keep(connection: &OwnedFd, name: &Name, descriptor: &OwnedFd) -> io::Result<()> {
    send(connection, &Request::Keep(name.clone()), Some(descriptor), SendFlags::empty())?;
    match receive(connection)? {
        (Reply::Done, _) => Ok(()),
        (Reply::Refused, _) => Err(io::Error::other("the holder has no room left")),
        _ => Err(unexpected()),
    }
}

fn take(connection: &OwnedFd, prefix: &Name) -> io::Result<Vec<(Name, OwnedFd)>> {
    send(connection, &Request::Take(prefix.clone()), None, SendFlags::empty())?;
    let mut taken = Vec::new();
    loop {
        match receive(connection)? {
            (Reply::Held(name), Some(descriptor)) => taken.push((name, descriptor)),
            (Reply::Held(name), None) => {
                let name = name.as_str();
                return Err(io::Error::other(format!("no descriptor left to take {name}")));
            }
            (Reply::End(count), _) if count as usize == taken.len() => return Ok(taken),
            _ => return Err(unexpected()),
        }
    }
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the holder speaks another protocol")
}

fn send(
    connection: &OwnedFd,
    request: &Request,
    descriptor: Option<&OwnedFd>,
    flags: SendFlags,
) -> io::Result<()> {
    super::send(connection, None, &request.encode(), descriptor, flags)
}

fn receive(connection: &OwnedFd) -> io::Result<(Reply, Option<OwnedFd>)> {
    let mut bytes = [0; MESSAGE_LEN_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let mut take = || rustix::net::recvmsg(connection, &mut parts, &mut control, flags);
    let received = retry_on_intr(&mut take)?;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let descriptor = rights.flatten().next();
    if received.bytes == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the holder ended"));
    }
    let reply = bytes.get(..received.bytes).and_then(Reply::decode).ok_or_else(unexpected)?;
    Ok((reply, descriptor))
}
