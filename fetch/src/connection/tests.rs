//! The connection without a socket: however a reply is cut into receives, the same bytes come out.

use proptest::prelude::*;

use super::*;
use crate::plan::WantId;

const SIZE: u64 = 1000;

fn blob() -> Vec<u8> {
    (0..SIZE).map(|at| (at * 7 % 251) as u8).collect()
}

fn target() -> Arc<Target> {
    Arc::new(Target {
        id: 1,
        host: "h".into(),
        server_name: "h".into(),
        addresses: vec!["127.0.0.1:1".parse().unwrap()],
        request_target: "/".into(),
        headers: Vec::new(),
        tls: None,
        connect: None,
        expires: None,
    })
}

fn segment(want: u64, range: std::ops::Range<u64>) -> Segment {
    let bytes = BytesMut::zeroed((range.end - range.start) as usize);
    Segment { want: WantId(want), range, bytes, filled: 0 }
}

fn limits() -> PaceLimits {
    let window = Duration::from_secs(1);
    PaceLimits { head: window, window, bytes_min: 10 }
}

fn begin(range: std::ops::Range<u64>, whole: bool, segments: Vec<Segment>) -> Connection {
    let now = Instant::now();
    let mut connection = Connection::open(target(), limits(), now);
    let id = TransferId(1);
    let (size, segments) = (SIZE, segments.into());
    connection.begin(Job { id, target: target(), range, size, whole, segments }, now);
    connection
}

/// Play a reply to the connection in receives of the given lengths, then close. Streams are fed with
/// `feed`. Returns what was filled, by place in the blob, and how it ended.
fn play(
    connection: &mut Connection,
    reply: &[u8],
    cuts: &[usize],
    feed: Vec<Segment>,
) -> (Vec<(u64, Vec<u8>)>, Finished) {
    let (mut at, mut cuts, mut feed) = (0, cuts.iter().cycle(), feed.into_iter());
    let mut filled = Vec::new();
    for _ in 0..10_000 {
        let step = connection.next();
        let full = connection.take_filled();
        filled
            .extend(full.into_iter().map(|segment| (segment.range.start, segment.bytes.to_vec())));
        match step {
            Step::Send { buffer, from } => {
                // Half of it, to see the rest come again.
                let count = (buffer.len() - from).div_ceil(2);
                connection.sent(buffer, from, Ok(count));
            }
            Step::Receive { mut buffer, from, len, .. } => {
                let count = len.min(reply.len() - at).min(*cuts.next().unwrap());
                buffer[from..from + count].copy_from_slice(&reply[at..at + count]);
                at += count;
                connection.received(buffer, Ok(count), Instant::now());
            }
            Step::Hungry(_) => match feed.next() {
                Some(segment) => connection.supply(segment, Instant::now()),
                None => connection.stop(),
            },
            Step::Finished(finished) => return (filled, finished),
        }
    }
    panic!("the exchange never ends");
}

fn body(framing: u8, bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    match framing {
        0 => text.extend_from_slice(format!("Content-Length: {}\r\n\r\n", bytes.len()).as_bytes()),
        1 => {
            text.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            for chunk in bytes.chunks(97) {
                text.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                text.extend_from_slice(chunk);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n\r\n");
            return text;
        }
        _ => text.extend_from_slice(b"\r\n"),
    }
    text.extend_from_slice(bytes);
    text
}

proptest! {
    #[test]
    fn ranged_replies(
        framing in 0u8..3,
        start in 0..SIZE / 2,
        middle in 1..SIZE / 4,
        len in 1..SIZE / 4,
        cuts in prop::collection::vec(1usize..400, 1..6),
    ) {
        let (cut, end) = (start + middle, start + middle + len);
        let mut connection =
            begin(start..end, false, vec![segment(1, start..cut), segment(2, cut..end)]);
        let head = format!("HTTP/1.1 206 x\r\nContent-Range: bytes {start}-{}/{SIZE}\r\n", end - 1);
        let all = blob();
        let mut reply = head.into_bytes();
        reply.extend(body(framing, &all[start as usize..end as usize]));
        let (filled, finished) = play(&mut connection, &reply, &cuts, Vec::new());
        prop_assert!(finished.result.is_ok(), "{:?}", finished.result);
        prop_assert_eq!(finished.reusable, framing < 2);
        let expected = [
            (start, all[start as usize..cut as usize].to_vec()),
            (cut, all[cut as usize..end as usize].to_vec()),
        ];
        prop_assert_eq!(filled, expected);
    }

    #[test]
    fn whole_replies_skip_what_nobody_wants(
        framing in 0u8..3,
        cuts in prop::collection::vec(1usize..400, 1..6),
        edges in prop::collection::btree_set(0..SIZE, 2..9),
    ) {
        let edges: Vec<u64> = edges.into_iter().collect();
        let ranges: Vec<_> = edges.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
        let feed = ranges.iter().map(|range| segment(1, range.clone())).collect();
        let mut connection = begin(0..SIZE, true, Vec::new());
        let mut reply = b"HTTP/1.1 200 OK\r\n".to_vec();
        reply.extend(body(framing, &blob()));
        let (filled, finished) = play(&mut connection, &reply, &cuts, feed);
        prop_assert!(finished.result.is_ok(), "{:?}", finished.result);
        let part = |range: &std::ops::Range<u64>| blob()[range.start as usize..range.end as usize].to_vec();
        let expected: Vec<_> = ranges.iter().map(|range| (range.start, part(range))).collect();
        prop_assert_eq!(filled, expected);
    }

    /// A server that says anything at all gets an end, not a panic, and fills no more than was lent.
    #[test]
    fn hostile_replies(
        head in "HTTP/1\\.1 (200|206|301|416) x\r\n(Content-Length: [0-9]{1,4}\r\n|Content-Range: bytes [0-9]{1,3}-[0-9]{1,3}/1000\r\n|Transfer-Encoding: chunked\r\n){0,3}\r\n",
        tail in prop::collection::vec(any::<u8>(), 0..300),
        cuts in prop::collection::vec(1usize..100, 1..4),
    ) {
        let mut connection = begin(100..200, false, vec![segment(1, 100..200)]);
        let mut reply = head.into_bytes();
        reply.extend(tail);
        let (filled, finished) = play(&mut connection, &reply, &cuts, Vec::new());
        if finished.result.is_ok() {
            let left: usize = connection.take_segments().iter().map(Segment::left).sum();
            let got: usize = filled.iter().map(|(_, bytes)| bytes.len()).sum();
            prop_assert!(got + left <= 100 && left < 100);
        }
    }
}

#[test]
fn pace() {
    let begun = Instant::now();
    let at = |ms| begun + Duration::from_millis(ms);
    let mut pace = Pace::new(limits(), begun);
    assert_eq!(pace.check(at(999), true), None);
    pace.moved(9, at(500));
    assert!(pace.check(at(1000), true).unwrap().starts_with("9 bytes"));
    // Enough came: the window begins anew.
    pace.moved(1, at(1000));
    assert_eq!(pace.check(at(1999), true), None);
    assert!(pace.check(at(2000), true).is_some());
    // A header is not measured in bytes.
    let mut pace = Pace::new(limits(), begun);
    pace.moved(5, at(1));
    assert!(pace.check(at(1000), false).is_some());
}
