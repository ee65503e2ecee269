//! The loop against a stand-in for the kernel: a socket that keeps messages apart.

use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::transport::dev::mounted::Pace;
use crate::transport::protocol::abi::opcode;
use crate::transport::protocol::answer::tests::{BAD, LATE_BAD, SLOW, Toy};
use crate::transport::protocol::init::WANTED;
use crate::transport::protocol::request::tests::{init_body, message, window_body};
use crate::transport::session::End;

struct Kernel {
    socket: OwnedFd,
    shared: Arc<Shared>,
    toy: Arc<Toy>,
    end: Arc<End>,
}

impl Kernel {
    fn start(options: &ServerOptions) -> Self {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, device) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let shared = Shared::new(options).unwrap();
        for _ in 0..2 {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.run());
        }
        let toy = Arc::new(Toy::default());
        let end = Arc::new(End::default());
        let mounted = Mounted {
            device: Arc::new(device),
            filesystem: Arc::clone(&toy) as Arc<dyn crate::filesystem::Filesystem>,
            wanted: WANTED,
            mount_point: "/stand-in".into(),
            end: Arc::clone(&end),
            pace: Pace::default(),
            greeting: Mutex::default(),
            _place: None,
        };
        shared.add(Arc::new(mounted)).unwrap();
        Self { socket, shared, toy, end }
    }

    fn send(&self, bytes: &[u8]) {
        assert_eq!(rustix::io::write(&self.socket, bytes), Ok(bytes.len()));
    }

    /// The next reply: unique, error and body.
    fn reply(&self) -> (u64, i32, Vec<u8>) {
        let mut bytes = vec![0; 2 << 20];
        let limit = Instant::now() + Duration::from_secs(20);
        let len = loop {
            match rustix::io::read(&self.socket, &mut bytes[..]) {
                Ok(len) => break len,
                Err(Code::AGAIN) => assert!(Instant::now() < limit, "no reply came"),
                Err(error) => panic!("{error}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(word(0) as usize, len, "length in the header");
        let unique = u64::from_ne_bytes(bytes[8..16].try_into().unwrap());
        (unique, -word(4).cast_signed(), bytes[16..len].to_vec())
    }

    fn ask(&self, opcode: u32, unique: u64, node: u64, body: &[u8]) -> (u64, i32, Vec<u8>) {
        self.send(&message(opcode, unique, node, body));
        self.reply()
    }

    fn wait_for_fills(&self, count: usize) {
        let limit = Instant::now() + Duration::from_secs(20);
        while self.toy.fills.lock().len() < count {
            assert!(Instant::now() < limit, "no fill came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn take_fill(&self) -> crate::filesystem::FillReply {
        self.wait_for_fills(1);
        self.toy.fills.lock().remove(0)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// Each takes 16 bytes behind headers of 40 and 8.
const FORGOTTEN_AT_ONCE: usize = (REQUEST_LEN_MAX - 48) / 16;
const EIO: i32 = 5;
const EINVAL: i32 = 22;
const ENOSYS: i32 = 38;

#[test]
fn nonsense_is_answered_as_far_as_it_can_be_and_the_rest_goes_on() {
    let kernel = Kernel::start(&ServerOptions::default());
    let (unique, code, body) = kernel.ask(opcode::INIT, 1, 0, &init_body(7, 45, u64::MAX));
    assert_eq!((unique, code, body.len()), (1, 0, 64));
    for len in [1, 39] {
        kernel.send(&message(opcode::STATFS, 2, 1, &[])[..len]);
    }
    assert_eq!(kernel.ask(opcode::LOOKUP, 3, 1, b"no zero").1, EINVAL);
    let mut cut = message(opcode::STATFS, 4, 1, &[0; 8]);
    cut.truncate(44);
    kernel.send(&cut);
    assert_eq!(kernel.reply(), (4, EINVAL, Vec::new()));
    assert_eq!(kernel.ask(9999, 5, 1, &[]), (5, ENOSYS, Vec::new()));
    // An interrupt, by the number of the read that it is about, its lowest bit set.
    assert_eq!(kernel.ask(36, 7, 1, &6u64.to_ne_bytes()), (7, ENOSYS, Vec::new()));
    for unique in 100..10_100 {
        kernel.send_when_room(&message(opcode::FORGET, unique, 2, &[0; 8]));
    }
    // In the largest lots that the kernel sends: as much as we have room for.
    let lot = [0; 8 + FORGOTTEN_AT_ONCE * 16];
    for _ in 0..3 {
        kernel.send_when_room(&message(opcode::BATCH_FORGET, 0, 0, &lot));
    }
    assert_eq!(kernel.ask(opcode::STATFS, 8, 1, &[]).2.len(), 80);
}

impl Kernel {
    fn send_when_room(&self, bytes: &[u8]) {
        while let Err(error) = rustix::io::write(&self.socket, bytes) {
            assert_eq!(error, Code::AGAIN);
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_panic_of_ours_is_an_error_for_one_reader() {
    let kernel = Kernel::start(&ServerOptions::default());
    for unique in 1..5 {
        assert_eq!(kernel.ask(opcode::GETATTR, unique, BAD, &[0; 16]).1, EIO);
        assert_eq!(kernel.ask(opcode::GETATTR, unique, 1, &[0; 16]).1, 0);
        let read = kernel.ask(opcode::READ, unique, BAD, &window_body(0, 1));
        assert_eq!(read, (unique, EIO, Vec::new()), "its fill panicked");
    }
    kernel.send(&message(opcode::READ, 9, LATE_BAD, &window_body(0, 1)));
    let fill = kernel.take_fill();
    kernel.toy.is_present.store(true, Ordering::Relaxed);
    assert!(catch_unwind(AssertUnwindSafe(|| fill(Ok(())))).is_err());
    assert_eq!(kernel.reply(), (9, EIO, Vec::new()));
    assert!(kernel.shared.misses.next_deadline().is_none());
}

#[test]
fn a_miss_is_answered_once_by_whoever_brings_the_bytes() {
    let kernel = Kernel::start(&ServerOptions::default());
    kernel.send(&message(opcode::READ, 10, 2, &window_body(0, 4096)));
    kernel.wait_for_fills(1);
    assert_eq!(kernel.ask(opcode::STATFS, 11, 1, &[]).0, 11, "others are answered meanwhile");
    let fill = kernel.take_fill();
    kernel.toy.is_present.store(true, Ordering::Relaxed);
    fill(Ok(()));
    assert_eq!(kernel.reply(), (10, 0, vec![7; 4096]));
    assert!(kernel.shared.misses.next_deadline().is_none());
}

#[test]
fn a_slow_read_lets_others_pass() {
    let kernel = Kernel::start(&ServerOptions::default());
    kernel.toy.is_present.store(true, Ordering::Relaxed);
    for unique in [1, 3] {
        kernel.send(&message(opcode::READ, unique, SLOW, &window_body(0, 1)));
        assert_eq!(kernel.ask(opcode::STATFS, unique + 1, 1, &[]).0, unique + 1);
        assert_eq!(kernel.reply().0, unique);
    }
}

#[test]
fn fills_that_fail_lie_or_are_dropped_are_errors() {
    let kernel = Kernel::start(&ServerOptions::default());
    kernel.send(&message(opcode::READ, 20, 2, &window_body(0, 4096)));
    kernel.take_fill()(Err(Errno::NotFound));
    assert_eq!(kernel.reply(), (20, Errno::NotFound.code(), Vec::new()));
    kernel.send(&message(opcode::READ, 21, 2, &window_body(0, 4096)));
    drop(kernel.take_fill());
    assert_eq!(kernel.reply(), (21, EIO, Vec::new()));
    kernel.send(&message(opcode::READ, 22, 2, &window_body(0, 4096)));
    for _ in 0..FILL_COUNT_MAX {
        kernel.take_fill()(Ok(()));
    }
    assert_eq!(kernel.reply(), (22, EIO, Vec::new()));
    assert!(kernel.toy.fills.lock().is_empty());
}

#[test]
fn misses_have_a_deadline_and_a_limit() {
    let read_deadline = Duration::from_millis(300);
    let options = ServerOptions { misses_max: 2, read_deadline, ..ServerOptions::default() };
    let kernel = Kernel::start(&options);
    let start = Instant::now();
    for unique in [30, 31] {
        kernel.send(&message(opcode::READ, unique, 2, &window_body(0, 4096)));
        kernel.wait_for_fills(unique as usize - 29);
    }
    assert_eq!(kernel.ask(opcode::READ, 32, 2, &window_body(0, 1)), (32, EIO, Vec::new()));
    // Deadlines a moment apart are answered by whichever thread wakes first.
    let mut replies = [kernel.reply(), kernel.reply()];
    replies.sort();
    assert!(start.elapsed() >= read_deadline);
    assert_eq!(replies, [(30, EIO, Vec::new()), (31, EIO, Vec::new())]);
    kernel.toy.is_present.store(true, Ordering::Relaxed);
    kernel.take_fill()(Ok(())); // Too late, and no harm.
    assert_eq!(kernel.ask(opcode::READ, 33, 2, &window_body(0, 1)), (33, 0, vec![7]));
}

#[test]
fn an_end_is_noticed_and_late_fills_do_no_harm() {
    let mut kernel = Kernel::start(&ServerOptions::default());
    kernel.send(&message(opcode::READ, 40, 2, &window_body(0, 4096)));
    let fill = kernel.take_fill();
    let (other, _) = rustix::pipe::pipe().unwrap();
    kernel.socket = other; // The kernel's side closes.
    let limit = Instant::now() + Duration::from_secs(20);
    while !kernel.end.is_come() {
        assert!(Instant::now() < limit, "the end went unnoticed");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(kernel.shared.misses.next_deadline().is_none());
    fill(Ok(()));
}
