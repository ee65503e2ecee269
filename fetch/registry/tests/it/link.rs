//! The shaped link, within what a loaded machine allows: never faster, and not absurdly slower.

use std::time::{Duration, Instant};

use spanfs_registry::{Link, Registry};

use crate::client::get;

/// Time for `count` connections at once to get a blob of `len` bytes each.
fn time(link: Link, len: usize, count: usize) -> (Duration, Registry) {
    let registry = Registry::builder().link(link).start().unwrap();
    let digest = registry.put_blob("a", vec![7; len]).unwrap();
    let (addr, path) = (registry.addr(), format!("/v2/a/blobs/{digest}"));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| assert_eq!(get(addr, &path).body.len(), len));
        }
    });
    (start.elapsed(), registry)
}

fn check(elapsed: Duration, expected: Duration) {
    assert!(elapsed >= expected.mul_f64(0.9), "{elapsed:?}, at least {expected:?} expected");
    assert!(elapsed <= expected * 4, "{elapsed:?}, about {expected:?} expected");
}

#[test]
fn round_trips() {
    let link = Link { rtt: Duration::from_millis(50), ..Link::UNLIMITED };
    check(time(link, 10, 1).0, Duration::from_millis(100));
}

#[test]
fn bandwidth_of_a_connection_and_of_all() {
    let link = Link {
        rtt: Duration::ZERO,
        bytes_per_second: Some(20_000_000),
        connection_bytes_per_second: Some(10_000_000),
        ..Link::UNLIMITED
    };
    check(time(link, 3_000_000, 1).0, Duration::from_millis(300));
    let (elapsed, registry) = time(link, 3_000_000, 4);
    check(elapsed, Duration::from_millis(600));
    // They are counted behind the write that the client has read already.
    let end = Instant::now() + Duration::from_secs(2);
    while registry.bytes_sent() < 12_000_000 {
        assert!(Instant::now() < end, "{} bytes sent", registry.bytes_sent());
        std::thread::sleep(Duration::from_millis(1));
    }
    let stats = registry.stats();
    let share = stats.busy_share(Duration::ZERO..registry.elapsed());
    let expected = 0.6 / registry.elapsed().as_secs_f64();
    assert!((share - expected).abs() < 0.1, "busy {share}, expected {expected}");
}
