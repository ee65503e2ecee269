use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::filesystem::{Attributes, DirectoryEntry, FillReply, Statfs};
use crate::transport::protocol::abi::opcode;
use crate::transport::protocol::init::WANTED;
use crate::transport::protocol::reply::tests::attributes;
use crate::transport::protocol::request::tests::{init_body, message, window_body};

/// A root with `names`, whose inodes 2 and up are files of [`LEN`] bytes; fills are held.
#[derive(Default)]
pub(crate) struct Toy {
    pub(crate) is_present: AtomicBool,
    pub(crate) fills: Mutex<Vec<FillReply>>,
}

pub(crate) const LEN: u64 = 5000;
/// An inode that our own code stumbles over.
pub(crate) const BAD: u64 = 666;
/// The same once its bytes are there.
pub(crate) const LATE_BAD: u64 = 667;
/// An inode whose reads take as long as a bad disk.
pub(crate) const SLOW: u64 = 668;

impl Filesystem for Toy {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Attributes>, Errno> {
        match (parent, name) {
            (Ino::ROOT, b"there") => Ok(Some(attributes())),
            (Ino::ROOT, _) => Ok(None),
            _ => Err(Errno::NotDirectory),
        }
    }

    fn attributes(&self, ino: Ino) -> Result<Attributes, Errno> {
        assert_ne!(ino.0, BAD, "a mistake of the test's own");
        (ino.0 < 10).then(attributes).ok_or(Errno::NotFound)
    }

    fn entry(&self, directory: Ino, offset: u64) -> Result<Option<DirectoryEntry<'_>>, Errno> {
        if directory != Ino::ROOT {
            return Err(Errno::NotDirectory);
        }
        let name = Cow::Owned(format!("{offset:0100}").into_bytes());
        let entry = DirectoryEntry { name, attributes: attributes(), next: offset + 1 };
        Ok((offset < 100).then_some(entry))
    }

    fn readlink(&self, ino: Ino) -> Result<Cow<'_, [u8]>, Errno> {
        match ino.0 {
            2 => Ok(b"target".into()),
            3 => Ok(vec![b'x'; 2 << 20].into()),
            _ => Err(Errno::Invalid),
        }
    }

    fn xattr(&self, _ino: Ino, name: &[u8]) -> Result<Cow<'_, [u8]>, Errno> {
        (name == b"user.a").then(|| b"value".into()).ok_or(Errno::NoAttribute)
    }

    fn xattr_names(&self, _ino: Ino) -> Result<Vec<u8>, Errno> {
        Ok(b"user.a\0".to_vec())
    }

    fn statfs(&self) -> Statfs {
        Statfs { bytes: 1, inodes: 2 }
    }

    fn open(&self, ino: Ino) -> Result<Open, Errno> {
        match ino.0 {
            2 => Ok(Open::Stateless),
            3 => Ok(Open::Direct),
            _ => Err(Errno::IsDirectory),
        }
    }

    fn read_present(
        &self,
        ino: Ino,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, Errno> {
        let is_present = self.is_present.load(Ordering::Relaxed);
        assert!(!is_present || ino.0 != LATE_BAD, "a mistake of the test's own");
        if ino.0 == SLOW {
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        let count = LEN.saturating_sub(offset).min(buffer.len() as u64) as usize;
        buffer[..count].fill(7);
        Ok(is_present.then_some(count))
    }

    fn describe(&self, ino: Ino, _offset: u64, _len: u64) -> String {
        format!("inode {}", ino.0)
    }

    fn fill(&self, ino: Ino, _offset: u64, _len: u64, reply: FillReply) {
        assert_ne!(ino.0, BAD, "a mistake of the test's own");
        self.fills.lock().push(reply);
    }
}

fn ask(toy: &Toy, opcode: u32, node: u64, body: &[u8]) -> (Answer, Vec<u8>) {
    let message = message(opcode, 1, node, body);
    let mut bytes = vec![0; READ_LEN_MAX];
    let found = answer(toy, WANTED, &Request::parse(&message).unwrap(), &mut bytes);
    let len = if let Answer::Body(len) = found { len } else { 0 };
    bytes.truncate(len);
    (found, bytes)
}

fn check(opcode: u32, node: u64, body: &[u8], expected: Answer) {
    let toy = Toy::default();
    assert_eq!(ask(&toy, opcode, node, body).0, expected, "opcode {opcode}, node {node}");
}

const ERANGE: i32 = 34;

#[test]
fn each_request_has_its_answer() {
    check(opcode::LOOKUP, 1, b"there\0", Answer::Body(128));
    check(opcode::LOOKUP, 1, b"nowhere\0", Answer::Body(128));
    check(opcode::LOOKUP, 2, b"there\0", Answer::Code(Errno::NotDirectory.code()));
    check(opcode::GETATTR, 1, &[0; 16], Answer::Body(104));
    check(opcode::GETATTR, 99, &[0; 16], Answer::Code(Errno::NotFound.code()));
    check(opcode::READLINK, 2, &[], Answer::Body(6));
    check(opcode::READLINK, 3, &[], Answer::Code(Errno::InputOutput.code()));
    check(opcode::OPEN, 2, &[0; 8], Answer::Code(NOSYS));
    check(opcode::OPEN, 3, &[0; 8], Answer::Body(16));
    check(opcode::OPEN, 4, &[0; 8], Answer::Code(Errno::IsDirectory.code()));
    check(opcode::STATFS, 1, &[], Answer::Body(80));
    check(opcode::RELEASE, 3, &[0; 24], Answer::Code(0));
    check(opcode::FORGET, 3, &[0; 8], Answer::Silence);
    for unknown in [9, 16, 25, 27, 34, 36, 46, 52, 1 << 20] {
        check(unknown, 1, &[0; 64], Answer::Code(NOSYS));
    }
    check(opcode::GETXATTR, 2, b"\0\0\0\0\0\0\0\0user.a\0", Answer::Body(8));
    check(opcode::GETXATTR, 2, b"\x05\0\0\0\0\0\0\0user.a\0", Answer::Body(5));
    check(opcode::GETXATTR, 2, b"\x04\0\0\0\0\0\0\0user.a\0", Answer::Code(ERANGE));
    let none = Answer::Code(Errno::NoAttribute.code());
    check(opcode::GETXATTR, 2, b"\x04\0\0\0\0\0\0\0user.b\0", none);
    check(opcode::LISTXATTR, 2, b"\x07\0\0\0\0\0\0\0", Answer::Body(7));
    check(opcode::LISTXATTR, 2, b"\x06\0\0\0\0\0\0\0", Answer::Code(ERANGE));
    let greeting = Answer::Greeting(64, Negotiated::Agreed(WANTED));
    check(opcode::INIT, 0, &init_body(7, 45, u64::MAX), greeting);
    assert!(matches!(
        ask(&Toy::default(), opcode::INIT, 0, &init_body(7, 9, 0)).0,
        Answer::Refusal(_)
    ));
}

#[test]
fn reads_are_answered_missing_or_refused() {
    let toy = Toy::default();
    let missing = Answer::Missing { ino: Ino(2), offset: 4096, len: 4096 };
    assert_eq!(ask(&toy, opcode::READ, 2, &window_body(4096, 4096)).0, missing);
    toy.is_present.store(true, Ordering::Relaxed);
    let (found, bytes) = ask(&toy, opcode::READ, 2, &window_body(4096, 4096));
    assert_eq!((found, &bytes[..]), (Answer::Body(904), &[7; 904][..]));
    assert_eq!(ask(&toy, opcode::READ, 2, &window_body(1 << 63, 1)).0, Answer::Body(0));
    let whole = window_body(0, READ_LEN_MAX as u32);
    assert_eq!(ask(&toy, opcode::READ, 2, &whole).0, Answer::Body(5000));
    let refused = Answer::Code(Errno::Invalid.code());
    for len in [READ_LEN_MAX as u32 + 1, u32::MAX] {
        assert_eq!(ask(&toy, opcode::READ, 2, &window_body(0, len)).0, refused);
    }
}

#[test]
fn listings_go_on_where_they_stopped() {
    let toy = Toy::default();
    for (opcode, whole) in [(opcode::READDIR, 128), (opcode::READDIRPLUS, 256)] {
        let mut at = 0;
        while at < 100 {
            let (found, bytes) = ask(&toy, opcode, 1, &window_body(at, 4096));
            assert_eq!(found, Answer::Body(bytes.len()));
            assert!(!bytes.is_empty() && bytes.len().is_multiple_of(whole) && bytes.len() <= 4096);
            at += (bytes.len() / whole) as u64;
        }
        assert_eq!(at, 100);
        assert_eq!(ask(&toy, opcode, 1, &window_body(100, 4096)).0, Answer::Body(0));
        let all = ask(&toy, opcode, 1, &window_body(0, u32::MAX)).1;
        assert_eq!(all.len(), 100 * whole);
    }
}

proptest! {
    #[test]
    fn no_request_gets_more_than_it_asked_for(
        opcode in 0u32..60,
        node in 0u64..12,
        body in prop::collection::vec(any::<u8>(), 0..80),
        is_present: bool,
    ) {
        let toy = Toy { is_present: AtomicBool::new(is_present), fills: Mutex::default() };
        let message = message(opcode, 1, node, &body);
        let mut bytes = vec![0; READ_LEN_MAX];
        if let Ok(request) = Request::parse(&message) {
            match (answer(&toy, WANTED, &request, &mut bytes), request.operation) {
                (
                    Answer::Body(found),
                    Operation::Read { len: max, .. }
                    | Operation::ReadDir { len_max: max, .. }
                    | Operation::ReadDirPlus { len_max: max, .. },
                ) => prop_assert!(found <= max as usize),
                (Answer::Body(found), _) => prop_assert!(found <= 256),
                (Answer::Code(code), _) => prop_assert!((0..4096).contains(&code)),
                _ => {}
            }
        }
    }
}
