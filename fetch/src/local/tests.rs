use std::io::Write;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::*;

type Answer = Result<Fetched, FetchError>;

fn blob(content: &[u8], offset: u64, size: u64, threads: usize) -> Arc<dyn Blob> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    let pool = ReadPool::start(threads).unwrap();
    pool.blob(Arc::new(file), offset, Digest::of(content), size)
}

fn want(blob: &Arc<dyn Blob>, range: Range<u64>, priority: Priority) -> (Ticket, Receiver<Answer>) {
    let (sender, receiver) = channel();
    let reply = Box::new(move |answer| sender.send(answer).unwrap());
    (blob.want(Want { range, priority, headroom: 3, reply }), receiver)
}

fn answer(receiver: &Receiver<Answer>) -> Answer {
    receiver.recv_timeout(Duration::from_secs(5)).unwrap()
}

#[test]
fn ranges_come_from_behind_the_offset() {
    let blob = blob(b"..0123456789", 2, 10, 2);
    for range in [0..10, 3..4, 9..10] {
        let found = answer(&want(&blob, range.clone(), Priority::OnDemand).1).unwrap();
        let expected = &b"0123456789"[range.start as usize..range.end as usize];
        assert_eq!((found.data(), found.headroom), (expected, 3));
    }
}

#[test]
fn a_short_file_is_corrupt() {
    let blob = blob(b"0123", 0, 10, 1);
    let error = answer(&want(&blob, 2..6, Priority::OnDemand).1).unwrap_err();
    assert!(error.to_string().contains("shorter than its descriptor"), "{error}");
    assert_eq!(error.class(), crate::Class::Corrupt);
}

#[test]
fn urgency_promotion_and_cancelling() {
    let blob = blob(b"0123456789", 0, 10, 1);
    // Hold the only thread in a reply, so that the order of the others is decided by priority.
    let (go, gate) = channel::<()>();
    let (started, entered) = channel();
    let reply = Box::new(move |_| {
        started.send(()).unwrap();
        gate.recv().unwrap();
    });
    blob.want(Want { range: 0..1, priority: Priority::OnDemand, headroom: 0, reply });
    entered.recv_timeout(Duration::from_secs(5)).unwrap();
    let (sender, order) = channel();
    let ask = |at: u64, priority| {
        let sender = sender.clone();
        let reply = Box::new(move |answer: Answer| {
            sender.send((at, answer.is_ok())).unwrap();
        });
        blob.want(Want { range: at..at + 1, priority, headroom: 0, reply })
    };
    let background = ask(1, Priority::Background);
    ask(2, Priority::Prefetch);
    ask(3, Priority::OnDemand);
    let cancelled = ask(4, Priority::Prefetch);
    ask(5, Priority::Prefetch);
    background.promote(Priority::OnDemand);
    background.promote(Priority::Background);
    cancelled.cancel();
    go.send(()).unwrap();
    let found: Vec<_> =
        (0..5).map(|_| order.recv_timeout(Duration::from_secs(5)).unwrap()).collect();
    assert_eq!(found, [(3, true), (1, true), (2, true), (4, false), (5, true)]);
    assert!(order.recv_timeout(Duration::from_millis(50)).is_err(), "each is answered once");
}

#[test]
fn the_threads_end_with_the_last_blob_after_all_answers() {
    let blob = blob(&[7; 100], 0, 100, 3);
    let receivers: Vec<_> =
        (0..100).map(|at| want(&blob, at..at + 1, Priority::Background).1).collect();
    drop(blob);
    for receiver in receivers {
        assert_eq!(receiver.try_recv().unwrap().unwrap().data(), [7]);
    }
}
