use super::*;
use proptest::prelude::*;

fn target(headers: &[(&str, &str)]) -> Target {
    Target {
        id: 1,
        host: "registry.example:5000".into(),
        server_name: "registry.example".into(),
        addresses: vec!["127.0.0.1:5000".parse().unwrap()],
        request_target: "/v2/a/blobs/sha256:00".into(),
        headers: headers.iter().map(|&(name, value)| (name.into(), value.into())).collect(),
        tls: None,
        connect: None,
        expires: None,
    }
}

#[test]
fn request_asks_for_inclusive_range() {
    let text = request(&target(&[("Authorization", "Bearer x")]), Some(&(10..20))).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.starts_with("GET /v2/a/blobs/sha256:00 HTTP/1.1\r\nHost: registry.example:5000\r\n")
    );
    assert!(text.contains("\r\nRange: bytes=10-19\r\n"));
    assert!(text.contains("\r\nAuthorization: Bearer x\r\n"));
    assert!(text.ends_with("\r\n\r\n"));
    let whole = String::from_utf8(request(&target(&[]), None).unwrap()).unwrap();
    assert!(!whole.contains("Range"));
}

#[test]
fn request_refuses_injection() {
    assert!(request(&target(&[("A", "b\r\nX: y")]), None).is_err());
    let mut other = target(&[]);
    other.request_target = "/ HTTP/1.1\r\nX: y".into();
    assert!(request(&other, None).is_err());
}

/// Status, framing, Content-Range and keep-alive.
type Facts = (u16, Framing, Option<(Range<u64>, Option<u64>)>, bool);

/// Parses a reply; `None` for an error.
fn check(headers: &str, expected: Option<Facts>) {
    let text = format!("HTTP/1.1 {headers}\r\n\r\n");
    let found = parse_head(text.as_bytes()).ok().map(|head| {
        let head = head.expect("complete");
        assert_eq!(head.len, text.len());
        (head.status, head.framing, head.content_range, head.keep_alive)
    });
    assert_eq!(found, expected, "{headers:?}");
}

#[test]
fn heads() {
    use Framing::*;
    check(
        "206 Partial\r\nContent-Length: 10\r\nContent-Range: bytes 5-14/100",
        Some((206, Length(10), Some((5..15, Some(100))), true)),
    );
    check(
        "206 x\r\ncontent-length: 1\r\ncontent-range: bytes 0-0/*",
        Some((206, Length(1), Some((0..1, None)), true)),
    );
    check("200 OK\r\nTransfer-Encoding: chunked", Some((200, Chunked, None, true)));
    check(
        "200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3",
        Some((200, Chunked, None, false)),
    );
    check("200 OK", Some((200, Close, None, false)));
    check("200 OK\r\nContent-Length: 3\r\nConnection: Close", Some((200, Length(3), None, false)));
    check(
        "416 x\r\nContent-Range: bytes */5\r\nContent-Length: 0",
        Some((416, Length(0), None, true)),
    );
    check("200 OK\r\nContent-Length: 3\r\nContent-Length: 3", Some((200, Length(3), None, true)));
    check("200 OK\r\nContent-Length: 3\r\nContent-Length: 4", None);
    check("200 OK\r\nContent-Length: -1", None);
    check("200 OK\r\nContent-Encoding: gzip", None);
    check("200 OK\r\nTransfer-Encoding: gzip, chunked", None);
    check("206 x\r\nContent-Range: bytes 5-4/100", None);
    check("206 x\r\nContent-Range: bytes 5-100/100", None);
    check("206 x\r\nContent-Range: bytes 0-18446744073709551615/*", None);
    check("206 x\r\nContent-Range: lines 0-1/2", None);
}

#[test]
fn head_limits() {
    let long = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(HEAD_LEN_MAX));
    assert!(parse_head(long.as_bytes()).is_err());
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX + 1));
    assert!(parse_head(many.as_bytes()).is_err());
    assert!(parse_head(b"SSH-2.0-OpenSSH\r\n").is_err());
    assert_eq!(parse_head(b"HTTP/1.1 200 OK\r\nA: b\r\n").unwrap(), None);
}

#[test]
fn retry_after_seconds_and_dates() {
    assert_eq!(parse_retry_after("7"), Some(Duration::from_secs(7)));
    assert_eq!(parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
    assert_eq!(parse_retry_after("soon"), None);
}

/// Decodes input that arrives in parts of the given lengths.
fn decode(input: &[u8], cuts: &[usize]) -> Result<(Vec<u8>, usize), Failure> {
    let (mut state, mut body, mut at, mut end) = (Chunked::Size, Vec::new(), 0, 0);
    let mut cuts = cuts.iter().cycle();
    loop {
        match state.next(&input[at..end])? {
            Piece::Framing(count) => at += count,
            Piece::Data(count) => {
                body.extend_from_slice(&input[at..at + count]);
                at += count;
            }
            Piece::End(count) => return Ok((body, at + count)),
            Piece::More if end == input.len() => return Err(Failure::bad_reply("ended early")),
            Piece::More => end = input.len().min(end + cuts.next().unwrap()),
        }
    }
}

proptest! {
    /// However it is chunked and however it arrives, the body is the same and nothing behind it is eaten.
    #[test]
    fn chunked_bodies(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..6),
        cuts in prop::collection::vec(1usize..30, 1..5),
    ) {
        let mut input = Vec::new();
        for chunk in &chunks {
            input.extend_from_slice(format!("{:x};ext=1\r\n", chunk.len()).as_bytes());
            input.extend_from_slice(chunk);
            input.extend_from_slice(b"\r\n");
        }
        input.extend_from_slice(b"0\r\nTrailer: x\r\n\r\n");
        let len = input.len();
        input.extend_from_slice(b"HTTP/1.1 next");
        prop_assert_eq!(decode(&input, &cuts).unwrap(), (chunks.concat(), len));
    }

    /// Any bytes give a head, an error or a wish for more, and never a panic.
    #[test]
    fn any_bytes(input in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_head(&input);
        let _ = decode(&input, &[7]);
    }
}

#[test]
fn bad_chunks() {
    assert!(decode(b"zz\r\n", &[9]).is_err());
    assert!(decode(b"3\r\nabcd\r\n", &[99]).is_err());
    assert!(decode(b"ffffffffffffffffff\r\n", &[99]).is_err());
    assert!(decode(&[b'1'; 5000], &[5000]).is_err());
}
