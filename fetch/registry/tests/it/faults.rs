//! Each fault, as a client sees it.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use spanfs_registry::{Fault, Faults, Nth, Registry, Rule};

use crate::client::{Reply, send};

const LEN: usize = 600_000;

/// First answer to a GET of the blob, with its fault; then one without, which must be sound.
fn faulty(fault: Fault) -> std::io::Result<Reply> {
    let registry = Registry::builder().start().unwrap();
    let content: Vec<u8> = (0..LEN).map(|n| (n / 3) as u8).collect();
    let digest = registry.put_blob("a", content.clone()).unwrap();
    registry.set_faults(Faults::script([Rule::get("/blobs/", Nth::First(1), fault)]));
    let path = format!("/v2/a/blobs/{digest}");
    let ask = || send(registry.addr(), "GET", &path, &[("Range", "bytes=1-599999")], b"");
    let first = ask();
    let second = ask().unwrap();
    assert!(second.status == 206 && second.body == content[1..], "the fault must pass");
    assert_eq!(registry.stats().faults, 1);
    first
}

#[test]
fn statuses() {
    for status in [401, 403, 404, 500, 503] {
        let reply = faulty(Fault::Status(status)).unwrap();
        assert_eq!(reply.status, status);
        assert_eq!(reply.header("www-authenticate").is_empty(), status != 401);
    }
    let reply = faulty(Fault::TooManyRequests { retry_after: Duration::from_secs(3) }).unwrap();
    assert_eq!((reply.status, reply.header("retry-after")), (429, "3"));
    let reply = faulty(Fault::RedirectLoop).unwrap();
    assert_eq!(reply.status, 307);
    assert!(reply.header("location").starts_with("/v2/a/blobs/sha256:"));
}

#[test]
fn bodies_that_end_early() {
    let check = |fault, len, kind| {
        let reply = faulty(fault).unwrap();
        assert_eq!(reply.header("content-length"), "599999");
        assert_eq!((reply.body.len(), reply.broken), (len, Some(kind)));
    };
    check(Fault::Close { after: 1000 }, 1000, ErrorKind::UnexpectedEof);
    check(Fault::Close { after: 400_000 }, 400_000, ErrorKind::UnexpectedEof);
    check(Fault::Close { after: 0 }, 0, ErrorKind::UnexpectedEof);
    check(Fault::Stall { after: 1000 }, 1000, ErrorKind::WouldBlock);
    let reply = faulty(Fault::Truncate { len: 1000 }).unwrap();
    assert_eq!((reply.body.len(), reply.broken), (1000, None));
    let reply = faulty(Fault::Reset { after: 1000 }).unwrap();
    assert_eq!(reply.broken, Some(ErrorKind::ConnectionReset));
}

#[test]
fn no_answer_at_all() {
    let reset = faulty(Fault::Reset { after: 0 }).err().expect("no answer");
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    let stalled = faulty(Fault::Stall { after: 0 }).err().expect("no answer");
    assert_eq!(stalled.kind(), ErrorKind::WouldBlock);
}

#[test]
fn answers_that_lie() {
    let reply = faulty(Fault::Flip { at: 300_000 }).unwrap();
    let wrong: Vec<usize> =
        (0..LEN - 1).filter(|n| reply.body[*n] != ((n + 1) / 3) as u8).collect();
    assert_eq!(wrong, [300_000]);
    let reply = faulty(Fault::WholeForRange).unwrap();
    assert_eq!((reply.status, reply.body.len()), (200, LEN));
    let reply = faulty(Fault::WrongContentRange).unwrap();
    assert_eq!(reply.header("content-range"), "bytes 2-600000/600000");
}

#[test]
fn slow_answers() {
    let start = Instant::now();
    let drip = Fault::Drip { bytes: 100_000, every: Duration::from_millis(20) };
    let reply = faulty(drip).unwrap();
    assert_eq!((reply.body.len(), reply.broken), (LEN - 1, None));
    assert!(start.elapsed() >= Duration::from_millis(120), "{:?}", start.elapsed());
    let start = Instant::now();
    assert_eq!(faulty(Fault::Late { by: Duration::from_millis(100) }).unwrap().status, 206);
    assert!(start.elapsed() >= Duration::from_millis(100));
}
