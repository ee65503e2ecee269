//! As a unit of systemd with a descriptor store (`FileDescriptorStoreMax=`): no holder of ours is
//! needed. A stand-in speaks systemd's side of sd_pid_notify_with_fds(3) and sd_listen_fds(3).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use spanfs_registry::Registry;

use crate::node::{Node, PATIENCE, PROGRAM};
use crate::pull::{Containerd, Rootfs, can_mount, image};
use crate::scene::{Root, check_tree, count};

/// Descriptors that the unit may store.
const STORE_MAX: usize = 64;
/// A datagram of the daemon's is a few lines.
const MESSAGE_LEN_MAX: usize = 512;
const SETTINGS: &str = "[background_fetch]\ndisable = true\n";

/// Takes descriptors from a socket, and becomes a program that has them from number 3 on. Only a fork
/// of its own can do that without handing them to what other tests start just then.
const LAUNCHER: &str = "
import fcntl, os, socket, sys
names, fds, _, _ = socket.recv_fds(socket.socket(fileno=0), 65536, 64)
fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in fds]
for number, fd in enumerate(fds, 3):
    os.dup2(fd, number)
os.closerange(3 + len(fds), 100)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names.decode().strip())
os.dup2(os.open('/dev/null', os.O_RDONLY), 0)
os.execv(sys.argv[1], sys.argv[1:])
";

type Store = Vec<(String, OwnedFd)>;

/// systemd, as far as one unit needs it.
struct Manager {
    notify: PathBuf,
    socket: UnixDatagram,
    store: Arc<Mutex<Store>>,
}

impl Manager {
    fn new(root: &Path) -> Self {
        let notify = root.join("notify");
        let socket = UnixDatagram::bind(&notify).unwrap();
        let (reading, store) = (socket.try_clone().unwrap(), Arc::<Mutex<Store>>::default());
        let kept = Arc::clone(&store);
        std::thread::spawn(move || while hear(&reading, &kept) {});
        Self { notify, socket, store }
    }

    /// Start the unit with all that is stored.
    fn start(&self, root: &Path) -> Node {
        let (ours, theirs) = UnixStream::pair().unwrap();
        {
            let store = self.store.lock().unwrap();
            let names: Vec<&str> = store.iter().map(|(name, _)| name.as_str()).collect();
            let text = format!("{}\n", names.join(":"));
            let descriptors: Vec<_> =
                store.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STORE_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
            }
            let parts = [IoSlice::new(text.as_bytes())];
            sendmsg(&ours, &parts, &mut control, SendFlags::empty()).unwrap();
        }
        let mut command = Command::new("python3");
        command
            .args(["-c", LAUNCHER, PROGRAM])
            .env("NOTIFY_SOCKET", &self.notify)
            .env("FDSTORE", STORE_MAX.to_string())
            .stdin(Stdio::from(OwnedFd::from(theirs)));
        Node::start_by(root, SETTINGS, command)
    }

    fn names(&self) -> Vec<String> {
        self.store.lock().unwrap().iter().map(|(name, _)| name.clone()).collect()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // Ends the thread that reads.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

/// Do what one datagram says; false at the end.
fn hear(socket: &UnixDatagram, store: &Mutex<Store>) -> bool {
    let mut bytes = [0; MESSAGE_LEN_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let Ok(received) = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) else {
        return false;
    };
    if received.bytes == 0 {
        return false;
    }
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    let text = std::str::from_utf8(&bytes[..received.bytes]).unwrap();
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
    let mut store = store.lock().unwrap();
    match (name, descriptor) {
        (Some(name), Some(descriptor)) if text.contains("FDSTORE=1") => {
            assert!(store.len() < STORE_MAX);
            // What is stored already is not stored twice; systemd compares the open files.
            if store.iter().all(|(known, _)| known != name) {
                store.push((name.to_owned(), descriptor));
            }
        }
        (Some(name), None) if text.contains("FDSTOREREMOVE=1") => {
            store.retain(|(known, _)| known != name);
        }
        _ => {} // READY=1 and the like.
    }
    // Descriptors that hung up, such as connections whose mounts are gone, systemd drops by itself.
    store.retain(|(_, descriptor)| {
        let mut events = [PollFd::new(descriptor, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut events, Some(&now)).unwrap();
        !events[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    });
    true
}

async fn connected(node: &mut Node) -> Containerd {
    Containerd::new(node.connect().await, "default")
}

/// Killed, then told to end: each time the next process gets the connections from the manager, and
/// readers of incomplete layers only wait.
#[tokio::test(flavor = "multi_thread")]
async fn mounts_live_on_in_the_descriptor_store() {
    if !can_mount() {
        return;
    }
    let root = Root::new();
    let registry = Registry::builder().start().unwrap();
    let image = image(&registry, "v2");
    let manager = Manager::new(root.path());
    let mut node = manager.start(root.path());
    let mut containerd = connected(&mut node).await;
    let top = containerd.pull(&image).await;
    let (key, mount) = containerd.container(&top).await;
    let rootfs = Rootfs::mount(&mount, &root.path().join("rootfs"));
    let stored = manager.names();
    assert_eq!(stored.iter().filter(|name| name.contains(".fuse-")).count(), 3, "{stored:?}");
    for signal in ["KILL", "TERM"] {
        node.signal(signal);
        drop(node.wait());
        std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        let place = rootfs.0.clone();
        let reader = std::thread::spawn(move || check_tree(&place, "v2"));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!reader.is_finished(), "{signal}: nothing is read while nobody serves");
        node = manager.start(root.path());
        containerd = connected(&mut node).await;
        reader.join().unwrap();
        assert_eq!(count(root.path(), "fuse.rawBridge"), 3, "{signal}: nothing is mounted anew");
        let mut now = manager.names();
        let mut before = stored.clone();
        now.sort();
        before.sort();
        assert_eq!(now, before, "{signal}");
    }
    let holder = root.path().join("run/hold.sock");
    assert!(!holder.exists(), "a holder of ours was started");

    drop(rootfs);
    containerd.mounts(&key).await.unwrap();
    containerd.collect_garbage().await;
    let deadline = Instant::now() + PATIENCE;
    while !manager.names().is_empty() {
        assert!(Instant::now() < deadline, "{:?} is kept for ever", manager.names());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
