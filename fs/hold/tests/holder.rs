//! The program as its clients meet it: started with a socket, told messages, asked, killed off.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use spanfs_hold::message::{Name, Reply, Request};

const PATIENCE: Duration = Duration::from_secs(20);
/// Resident with a thousand mounts, pages of the C library and all.
const RSS_KIB_MAX: usize = 2048;

/// Ended with the test, also when it fails.
struct Holder {
    child: Child,
    socket: std::path::PathBuf,
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

fn seqpacket() -> OwnedFd {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap()
}

impl Holder {
    fn start(directory: &Path) -> Self {
        let socket = directory.join("hold.sock");
        let listener = seqpacket();
        let address = SocketAddrUnix::new(socket.as_os_str().as_bytes()).unwrap();
        rustix::net::bind(&listener, &address).unwrap();
        rustix::net::listen(&listener, 16).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_spanfs-hold"))
            .arg(&socket)
            .stdin(Stdio::from(listener))
            .spawn()
            .unwrap();
        Self { child, socket }
    }

    fn connect(&self) -> Client {
        let client = seqpacket();
        let address = SocketAddrUnix::new(self.socket.as_os_str().as_bytes()).unwrap();
        rustix::net::connect(&client, &address).unwrap();
        use rustix::net::sockopt::{Timeout, set_socket_timeout};
        set_socket_timeout(&client, Timeout::Recv, Some(PATIENCE)).unwrap();
        Client(client)
    }

    fn wait_for_end(&mut self) {
        let until = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "it goes on for nobody");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn rss_kib(&self) -> usize {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let rollup = std::fs::read_to_string(path).unwrap();
        let rss = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }

    fn fd_count(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

struct Client(OwnedFd);

impl Client {
    fn send(&self, bytes: &[u8], descriptors: &[&OwnedFd]) {
        let descriptors: Vec<_> = descriptors.iter().map(|it| it.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        }
        let flags = SendFlags::NOSIGNAL;
        rustix::net::sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, flags).unwrap();
    }

    fn receive(&self) -> (Reply, Option<OwnedFd>) {
        let mut bytes = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let len = rustix::net::recvmsg(&self.0, &mut parts, &mut control, flags).unwrap().bytes;
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        (Reply::decode(&bytes[..len]).unwrap(), descriptor)
    }

    fn keep(&self, name: &str, descriptor: &OwnedFd) -> Reply {
        self.send(&Request::Keep(Name::new(name).unwrap()).encode(), &[descriptor]);
        self.receive().0
    }

    fn take(&self, prefix: &str) -> Vec<(String, OwnedFd)> {
        self.send(&Request::Take(Name::new(prefix).unwrap()).encode(), &[]);
        let mut taken = Vec::new();
        loop {
            match self.receive() {
                (Reply::Held(name), Some(descriptor)) => {
                    taken.push((name.as_str().to_owned(), descriptor));
                }
                (Reply::End(count), None) => {
                    assert_eq!(count as usize, taken.len());
                    return taken;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn what_one_gives_the_next_gets() {
    let directory = tempfile::tempdir().unwrap();
    let mut holder = Holder::start(directory.path());
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let first = holder.connect();
    assert_eq!(first.keep("a.1", &writer), Reply::Done);
    assert_eq!(first.keep("b.1", &reader), Reply::Done);
    drop((first, writer));
    let second = holder.connect();
    let taken = second.take("a.");
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].0, "a.1");
    std::fs::File::from(taken.into_iter().next().unwrap().1).write_all(b"alive").unwrap();
    second.send(&Request::Release(Name::new("a.1").unwrap()).encode(), &[]);
    assert_eq!(second.take("b.").len(), 1);
    // Released, and closed by us: nobody has the writing end, so the pipe ends.
    let mut text = String::new();
    std::fs::File::from(reader).read_to_string(&mut text).unwrap();
    assert_eq!(text, "alive");
    second.send(&Request::Release(Name::new("b.1").unwrap()).encode(), &[]);
    drop(second);
    holder.wait_for_end();
    assert!(!holder.socket.exists(), "its socket stays");
}

#[test]
fn nonsense_costs_nothing_but_an_answer() {
    let directory = tempfile::tempdir().unwrap();
    let holder = Holder::start(directory.path());
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let client = holder.connect();
    assert_eq!(client.keep("kept", &reader), Reply::Done);
    let before = holder.fd_count();
    let keep = Request::Keep(Name::new("more").unwrap()).encode();
    let long = vec![b'x'; 5000];
    for (bytes, descriptors) in [
        (&keep[..], vec![]),                   // Nothing to keep.
        (&keep[..], vec![&reader, &writer]),   // Too much.
        (&keep[..], vec![&reader; 8]),         // More than it has room for.
        (b"\x02ka".as_slice(), vec![&reader]), // Another version.
        (b"\x01?".as_slice(), vec![&reader]),  // Another kind.
        (b"\x01k\xff\xfe".as_slice(), vec![&reader]),
        (&long[..], vec![&reader]),
    ] {
        client.send(bytes, &descriptors);
        assert_eq!(client.receive().0, Reply::Refused, "{:?}", &bytes[..bytes.len().min(20)]);
    }
    assert_eq!(client.take("kept").len(), 1);
    assert_eq!(holder.fd_count(), before, "descriptors leak");
    let mut state = 1u64;
    for _ in 0..2000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut bytes = state.to_be_bytes().repeat(4);
        bytes.truncate(1 + (state >> 59) as usize);
        bytes[0] = if state & 1 == 0 { 1 } else { bytes[0] };
        let is_silent = matches!(Request::decode(&bytes), Some(Request::Release(_)));
        client.send(&bytes, &[]);
        if !is_silent {
            client.receive();
        }
    }
    assert_eq!(client.take("kept").len(), 1);
}

#[test]
fn a_thousand_mounts_fit_into_its_memory() {
    let directory = tempfile::tempdir().unwrap();
    let holder = Holder::start(directory.path());
    let client = holder.connect();
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    for mount in 0..1000 {
        assert_eq!(client.keep(&format!("spanfs.12345-{mount}.fuse-0"), &reader), Reply::Done);
        assert_eq!(client.keep(&format!("spanfs.12345-{mount}.record"), &reader), Reply::Done);
    }
    let resident = holder.rss_kib();
    assert!(resident < RSS_KIB_MAX, "{resident} KiB resident");
}

#[test]
fn full_it_refuses_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let holder = Holder::start(directory.path());
    let client = holder.connect();
    let pid = rustix::process::Pid::from_child(&holder.child);
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    assert_eq!(client.keep("first", &reader), Reply::Done);
    // Less than it counted on when it began.
    let tight = rustix::process::Rlimit { current: Some(10), maximum: Some(10) };
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Nofile, tight).unwrap();
    let replies: Vec<_> = (0..20).map(|it| client.keep(&format!("n{it}"), &reader)).collect();
    assert!(replies.contains(&Reply::Done) && replies.contains(&Reply::Refused), "{replies:?}");
    let kept = replies.iter().filter(|reply| **reply == Reply::Done).count();
    assert_eq!(client.take("n").len(), kept);
}

#[test]
fn it_outlives_the_process_that_started_it_and_its_session() {
    let directory = tempfile::tempdir().unwrap();
    let holder = Holder::start(directory.path());
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    assert_eq!(holder.connect().keep("kept", &reader), Reply::Done);
    // Its own session and group, as what a terminal sends goes to those. Ours may lie outside of our pid namespace,
    // where the kernel calls it 0, so it is not asked for.
    let pid = rustix::process::Pid::from_child(&holder.child);
    assert_eq!(rustix::process::getsid(Some(pid)).unwrap(), pid);
    assert_eq!(rustix::process::getpgid(Some(pid)).unwrap(), pid);
    assert_eq!(holder.connect().take("kept").len(), 1);
}

#[test]
fn started_by_hand_it_says_what_it_is() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_spanfs-hold")).stdin(Stdio::null()).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("started by spanfs"), "{said}");
}
