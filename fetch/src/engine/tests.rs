//! One suite for every engine, against a scripted server on loopback.

mod server;

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::blob::Fetched;
use crate::retry::{Random, RetryOptions};
use crate::target::{LocateError, Target, TargetFailure};
use server::{Answer, PROXIED, Request, Server, tls_pair};

const PATIENCE: Duration = Duration::from_secs(20);

fn content(len: usize) -> Vec<u8> {
    let mut random = Random(42);
    (0..len.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(len).collect()
}

fn digest() -> Digest {
    format!("sha256:{}", "0".repeat(64)).parse().unwrap()
}

/// Always the next of a list of targets after each failure, and a record of the failures.
struct List {
    targets: Vec<Target>,
    failures: Mutex<Vec<TargetFailure>>,
    asked: AtomicU64,
}

impl List {
    fn new(targets: Vec<Target>) -> Arc<Self> {
        Arc::new(Self { targets, failures: Mutex::default(), asked: AtomicU64::new(0) })
    }
}

impl Locate for List {
    fn locate(
        &self,
        failure: Option<TargetFailure>,
        reply: Box<dyn FnOnce(Result<Target, LocateError>) + Send>,
    ) {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut failures = self.failures.lock().unwrap();
        failures.extend(failure);
        let target = self.targets.get(failures.len().min(self.targets.len().saturating_sub(1)));
        reply(target.cloned().ok_or_else(|| LocateError::Gone("no host has it".into())));
    }
}

fn target(id: u64, address: std::net::SocketAddr) -> Target {
    Target {
        id,
        host: address.to_string(),
        server_name: "registry.test".into(),
        addresses: vec![address],
        request_target: "/v2/x/blobs/sha256:0".into(),
        headers: vec![("X-Test".into(), "yes".into())],
        tls: None,
        connect: None,
        expires: None,
    }
}

/// Impatient enough for a test.
fn options(kind: EngineKind) -> EngineOptions {
    let retry = RetryOptions {
        delay_first: Duration::from_millis(20),
        delay_max: Duration::from_millis(100),
        deadline: Duration::from_secs(4),
        ..RetryOptions::default()
    };
    EngineOptions {
        kind,
        plan: PlanOptions { retry, ..PlanOptions::default() },
        connect_timeout: Duration::from_millis(500),
        head_timeout: Duration::from_millis(600),
        stall_timeout: Duration::from_millis(600),
        ..EngineOptions::default()
    }
}

/// Engines that this machine has.
fn kinds() -> Vec<EngineKind> {
    let mut kinds = vec![EngineKind::Threads];
    match crate::sys::Ring::new() {
        Ok(_) => kinds.push(EngineKind::Ring),
        Err(reason) => {
            assert!(std::env::var_os("SPANFS_TEST_STRICT").is_none(), "no ring engine: {reason}");
            eprintln!("the ring engine is skipped: {reason}");
        }
    }
    kinds
}

struct Bench {
    engine: Engine,
    blob: Arc<dyn Blob>,
    server: Server,
    list: Arc<List>,
    content: Vec<u8>,
}

impl Bench {
    fn get(&self, range: Range<u64>) -> Result<Fetched, FetchError> {
        fetch_blocking(&*self.blob, range, Priority::OnDemand, PATIENCE)
    }

    #[track_caller]
    fn expect(&self, range: Range<u64>) {
        let fetched = self.get(range.clone()).unwrap();
        let expected = &self.content[range.start as usize..range.end as usize];
        assert!(fetched.data() == expected, "{:?}: {range:?} differs", self.engine.kind());
    }
}

/// Run a test on each engine with a blob of `len` bytes and a server that answers by the script.
fn each(
    len: usize,
    script: impl Fn(&Request) -> Answer + Send + Sync + Clone + 'static,
    test: impl Fn(&Bench),
) {
    each_with(len, |_| {}, |_| {}, None, script, test);
}

fn each_with(
    len: usize,
    adjust: impl Fn(&mut EngineOptions),
    adjust_target: impl Fn(&mut Target),
    tls: Option<Arc<rustls::ServerConfig>>,
    script: impl Fn(&Request) -> Answer + Send + Sync + Clone + 'static,
    test: impl Fn(&Bench),
) {
    for kind in kinds() {
        let content = content(len);
        let server = Server::start(content.clone(), tls.clone(), script.clone());
        let mut options = options(kind);
        adjust(&mut options);
        let engine = Engine::start(options).unwrap();
        assert_eq!(engine.kind(), kind);
        let mut first = target(1, server.address);
        adjust_target(&mut first);
        let list = List::new(vec![first]);
        let spec = BlobSpec { digest: digest(), size: len as u64 };
        let blob = engine.open(spec, Arc::clone(&list) as Arc<dyn Locate>);
        test(&Bench { engine, blob, server, list, content });
    }
}

const MIB: u64 = 1 << 20;

#[test]
fn ranges_of_all_sizes() {
    each(
        5 << 20,
        |_| Answer::Right,
        |bench| {
            for range in [0..1, 5 * MIB - 1..5 * MIB, 7..8192, 12345..4 * MIB + 1, 0..5 * MIB] {
                bench.expect(range);
            }
            let requests = bench.server.requests();
            assert!(requests.iter().all(|request| request.head.contains("X-Test: yes")));
            assert!(bench.server.connections() <= 8, "{}", bench.server.connections());
            let stats = settled(bench);
            assert_eq!(stats.failures, 0);
            assert_eq!(stats.requests, requests.len() as u64);
            assert_eq!(bench.list.asked.load(Ordering::SeqCst), 1);
        },
    );
}

/// The engine's counters once nothing is under way: they are set behind the replies.
fn settled(bench: &Bench) -> EngineStats {
    let end = Instant::now() + PATIENCE;
    loop {
        let stats = bench.engine.stats();
        if (stats.transfers, stats.inflight_bytes) == (0, 0) {
            return stats;
        }
        assert!(Instant::now() < end, "{stats:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn headroom_and_recycling() {
    each(
        2 << 20,
        |_| Answer::Right,
        |bench| {
            let mut address = None;
            for _ in 0..3 {
                let (sender, receiver) = bounded(1);
                bench.blob.want(Want {
                    range: 100..MIB,
                    priority: Priority::OnDemand,
                    headroom: 32,
                    reply: Box::new(move |result| drop(sender.send(result))),
                });
                let fetched = receiver.recv_timeout(PATIENCE).unwrap().unwrap();
                assert_eq!(fetched.bytes.len() as u64, 32 + MIB - 100);
                assert!(fetched.data() == &bench.content[100..MIB as usize]);
                let found = fetched.bytes.as_ptr() as usize;
                assert_eq!(*address.get_or_insert(found), found, "memory was not reused");
                bench.blob.recycle(fetched.bytes);
            }
        },
    );
}

#[test]
fn many_wants_at_once_overlapping() {
    each(
        8 << 20,
        |_| Answer::Right,
        |bench| {
            let (sender, receiver) = bounded(200);
            let mut random = Random(7);
            for _ in 0..200 {
                let start = random.below(8 * MIB - 1);
                let end = (start + 1 + random.below(300_000)).min(8 * MIB);
                let priority = [Priority::Background, Priority::Prefetch, Priority::OnDemand]
                    [random.below(3) as usize];
                let sender = sender.clone();
                let range = start..end;
                let reply = move |result| drop(sender.send((start..end, result)));
                bench.blob.want(Want { range, priority, headroom: 0, reply: Box::new(reply) });
            }
            for _ in 0..200 {
                let (range, result) = receiver.recv_timeout(PATIENCE).unwrap();
                let expected = &bench.content[range.start as usize..range.end as usize];
                assert!(result.unwrap().data() == expected, "{range:?} differs");
            }
            settled(bench);
        },
    );
}

#[test]
fn framings() {
    for answer in [Answer::Chunked(1000), Answer::UntilClose, Answer::Chunked(100_000)] {
        each(
            1 << 20,
            move |_| answer.clone(),
            |bench| {
                bench.expect(0..MIB);
                bench.expect(1000..700_000);
            },
        );
    }
}

#[test]
fn tls_versions() {
    for old in [false, true] {
        let (server, client) = tls_pair(old);
        each_with(
            6 << 20,
            |_| {},
            |target| target.tls = Some(Arc::clone(&client)),
            Some(server),
            |request| if request.index % 4 == 3 { Answer::Chunked(70_000) } else { Answer::Right },
            |bench| {
                bench.expect(0..6 * MIB);
                bench.expect(1..MIB + 77);
                bench.expect(5..6);
            },
        );
    }
}

/// A blob that is prepared has its connections before it is wanted; nothing is requested for that.
#[test]
fn connections_are_opened_ahead() {
    let (server, client) = tls_pair(false);
    for tls in [None, Some((server, client))] {
        each_with(
            6 << 20,
            |_| {},
            |target| target.tls = tls.as_ref().map(|(_, client)| Arc::clone(client)),
            tls.as_ref().map(|(server, _)| Arc::clone(server)),
            |_| Answer::Right,
            |bench| {
                bench.blob.prepare();
                let expected = PlanOptions::default().connections_max as u64;
                if bench.engine.kind() == EngineKind::Ring {
                    let end = Instant::now() + PATIENCE;
                    while bench.engine.stats().connections < expected && Instant::now() < end {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    assert_eq!(bench.engine.stats().requests, 0);
                    // Those that are idle are enough.
                    bench.blob.prepare();
                }
                bench.expect(0..6 * MIB);
                assert!(bench.engine.stats().connections <= expected);
            },
        );
    }
}

/// Nobody is told that they can't be: whoever wants bytes is.
#[test]
fn connections_that_cannot_be_opened_ahead_are_no_failure() {
    for kind in kinds() {
        let engine = Engine::start(options(kind)).unwrap();
        let list = List::new(vec![target(1, dead_address())]);
        let blob = engine.open(BlobSpec { digest: digest(), size: 1000 }, list);
        blob.prepare();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(engine.stats().failures, 0);
        let error = fetch_blocking(&*blob, 0..10, Priority::OnDemand, PATIENCE).unwrap_err();
        assert!(matches!(error, FetchError::Unreachable(_)), "{error}");
    }
}

#[test]
fn untrusted_certificate_is_refused() {
    let (server, _) = tls_pair(false);
    let (_, stranger) = tls_pair(false);
    each_with(
        1000,
        |_| {},
        |target| target.tls = Some(Arc::clone(&stranger)),
        Some(server),
        |_| Answer::Right,
        |bench| {
            let error = bench.get(0..10).unwrap_err();
            assert!(matches!(error, FetchError::Refused(_)), "{error}");
            assert!(bench.server.requests().is_empty());
        },
    );
}

#[test]
fn tunnel_through_a_proxy() {
    let (server, client) = tls_pair(false);
    *PROXIED.lock().unwrap() = Some(server);
    each_with(
        1 << 20,
        |_| {},
        |target| {
            target.tls = Some(Arc::clone(&client));
            target.connect = Some(("registry.test:443".into(), Some("Basic x".into())));
        },
        None,
        |_| Answer::Right,
        |bench| bench.expect(0..MIB),
    );
}

#[test]
fn server_without_ranges_is_streamed_once() {
    each(
        3 << 20,
        |request| if request.range.is_some() { Answer::Whole } else { Answer::Right },
        |bench| {
            assert!(bench.blob.has_ranges());
            let (sender, receiver) = bounded(12);
            for index in 0..12 {
                let range = index * MIB / 4..(index + 1) * MIB / 4 - 100;
                let (sender, expected) = (sender.clone(), range.clone());
                let reply = move |result| drop(sender.send((expected, result)));
                bench.blob.want(Want {
                    range,
                    priority: Priority::Prefetch,
                    headroom: 0,
                    reply: Box::new(reply),
                });
            }
            for _ in 0..12 {
                let (range, result) = receiver.recv_timeout(PATIENCE).unwrap();
                let expected = &bench.content[range.start as usize..range.end as usize];
                assert!(result.unwrap().data() == expected, "{range:?} differs");
            }
            assert!(!bench.blob.has_ranges());
            let whole = |request: &&Request| request.range.is_none();
            assert_eq!(bench.server.requests().iter().filter(whole).count(), 1);
            // Backwards costs another pass, and still gives the right bytes.
            bench.expect(10..20);
        },
    );
}

#[test]
fn small_blob_answered_whole() {
    each(
        1000,
        |_| Answer::Whole,
        |bench| {
            bench.expect(0..1000);
            assert!(bench.blob.has_ranges());
            bench.expect(10..20);
            assert!(!bench.blob.has_ranges());
        },
    );
}

#[test]
fn odd_but_usable_answers() {
    let answers = [
        Answer::Shorter(70_000),
        Answer::CutAfter(50_000),
        Answer::StallAfter(80_000),
        Answer::Close,
        Answer::Silence,
        Answer::Raw("HTTP/1.1 206 x\r\nContent-Range: bytes 0-9/10\r\n\r\n0123456789".into()),
        Answer::Raw("HTTP/1.1 206 x\r\nContent-Type: multipart/byteranges\r\n\r\n--x".into()),
        Answer::Raw("HTTP/1.1 416 x\r\nContent-Length: 0\r\n\r\n".into()),
        Answer::Raw("HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n".into()),
        Answer::Raw("HTTP/1.1 429 x\r\nRetry-After: 0\r\n\r\nslow down".into()),
        Answer::Raw("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 x\r\n\r\n".into()),
        Answer::Raw("total nonsense\r\n\r\n".into()),
        Answer::Raw(format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(20_000))),
    ];
    for answer in answers {
        // Twice odd, then right: what came is kept, the rest is asked for again.
        let script = move |request: &Request| {
            if request.index < 2 { answer.clone() } else { Answer::Right }
        };
        each(600_000, script, |bench| bench.expect(1000..500_000));
    }
}

#[test]
fn resumes_where_it_stopped() {
    each(
        300_000,
        |request| if request.index == 0 { Answer::CutAfter(100_000) } else { Answer::Right },
        |bench| {
            bench.expect(0..200_000);
            let ranges: Vec<_> = bench.server.requests().iter().map(|r| r.range.clone()).collect();
            assert_eq!(ranges, [Some(0..200_000), Some(100_000..200_000)]);
        },
    );
}

#[test]
fn slow_loris_is_left() {
    each(
        300_000,
        |request| match request.index {
            0 => Answer::Drip(1, Duration::from_millis(20)),
            _ => Answer::Right,
        },
        |bench| {
            let begun = Instant::now();
            bench.expect(0..200_000);
            assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        },
    );
}

#[test]
fn connection_that_lags_far_behind_the_others_is_left() {
    each(
        1_000_000,
        // 20 kB/s: no stall by itself, but nothing beside what the others bring
        |request| match request.index {
            0 => Answer::Drip(400, Duration::from_millis(20)),
            _ => Answer::Right,
        },
        |bench| {
            let begun = Instant::now();
            bench.expect(0..1_000_000);
            assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        },
    );
}

#[test]
fn keep_alive_that_died_is_no_failure() {
    each(
        100_000,
        |_| Answer::Right,
        |bench| {
            bench.expect(0..1000);
            bench.server.hang_up();
            bench.expect(1000..2000);
            assert_eq!(bench.engine.stats().failures, 0);
            assert_eq!(bench.list.asked.load(Ordering::SeqCst), 1);
        },
    );
}

/// A status that never changes ends in an error of the right class, soon.
fn check_refusal(reply: &'static str, expected: crate::blob::Class, tries_max: usize) {
    each(
        1000,
        move |_| Answer::Raw(format!("HTTP/1.1 {reply}\r\n\r\n")),
        |bench| {
            let begun = Instant::now();
            let error = bench.get(0..100).unwrap_err();
            assert_eq!(error.class(), expected, "{error}");
            assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
            let count = bench.server.requests().len();
            assert!(count <= tries_max, "{count} requests for {reply}");
        },
    );
}

#[test]
fn refusals() {
    use crate::blob::Class;
    check_refusal("401 x\r\nWWW-Authenticate: Bearer realm=\"x\"", Class::Refused, 4);
    check_refusal("403 x", Class::Refused, 4);
    check_refusal("404 x", Class::Gone, 4);
    check_refusal("307 x\r\nLocation: /", Class::Refused, 4);
    check_refusal("200 OK\r\nContent-Length: 5", Class::Corrupt, 6);
    check_refusal("206 x\r\nContent-Range: bytes 5-9/10", Class::Corrupt, 4);
    check_refusal("206 x\r\nContent-Range: bytes 0-99/5000", Class::Corrupt, 4);
    check_refusal("503 x", Class::Retry, 60);
}

#[test]
fn locator_hears_what_happened() {
    each(
        1000,
        |request| match request.index {
            0 => Answer::Raw(
                "HTTP/1.1 401 x\r\nWWW-Authenticate: Bearer realm=\"a\"\r\n\r\ndenied".into(),
            ),
            1 => {
                Answer::Raw("HTTP/1.1 307 x\r\nLocation: https://blobs.test/?sig=1\r\n\r\n".into())
            }
            _ => Answer::Right,
        },
        |bench| {
            bench.expect(0..1000);
            let failures = bench.list.failures.lock().unwrap();
            assert_eq!(
                failures.iter().map(|f| f.status).collect::<Vec<_>>(),
                [Some(401), Some(307)]
            );
            assert_eq!(failures[0].challenge.as_deref(), Some("Bearer realm=\"a\""));
            assert_eq!(failures[1].location.as_deref(), Some("https://blobs.test/?sig=1"));
            assert!(failures.iter().all(|failure| failure.id == 1));
        },
    );
}

/// An address where nothing listens.
fn dead_address() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn unreachable_names_the_host_and_ends() {
    for kind in kinds() {
        let mut options = options(kind);
        options.plan.retry.deadline = Duration::from_secs(1);
        let engine = Engine::start(options).unwrap();
        let dead = dead_address();
        let list = List::new(vec![target(1, dead)]);
        let blob = engine.open(BlobSpec { digest: digest(), size: 10 }, list);
        let begun = Instant::now();
        let error = fetch_blocking(&*blob, 0..10, Priority::OnDemand, PATIENCE).unwrap_err();
        assert!(matches!(error, FetchError::Unreachable(_)), "{error}");
        assert!(error.to_string().contains(&dead.to_string()), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }
}

#[test]
fn fails_over_to_another_target_and_address() {
    for kind in kinds() {
        let content = content(500_000);
        let server = Server::start(content.clone(), None, |_| Answer::Right);
        let engine = Engine::start(options(kind)).unwrap();
        let mut second = target(2, server.address);
        second.addresses.insert(0, dead_address());
        let list = List::new(vec![target(1, dead_address()), second]);
        let size = content.len() as u64;
        let blob = engine.open(BlobSpec { digest: digest(), size }, list);
        let fetched = fetch_blocking(&*blob, 0..size, Priority::OnDemand, PATIENCE).unwrap();
        assert!(fetched.data() == content);
    }
}

#[test]
fn cancel_ends_the_transfer() {
    each(
        1 << 20,
        |_| Answer::StallAfter(1000),
        |bench| {
            let (sender, receiver) = bounded(1);
            let ticket = bench.blob.want(Want {
                range: 0..MIB,
                priority: Priority::OnDemand,
                headroom: 0,
                reply: Box::new(move |result| drop(sender.send(result))),
            });
            while bench.engine.stats().transfers == 0 {
                std::thread::yield_now();
            }
            ticket.promote(Priority::OnDemand);
            ticket.cancel();
            ticket.cancel();
            let error = receiver.recv_timeout(PATIENCE).unwrap().unwrap_err();
            assert!(matches!(error, FetchError::Cancelled), "{error}");
            settled(bench);
        },
    );
}

#[test]
fn bad_wants_are_refused() {
    each(
        1000,
        |_| Answer::Right,
        |bench| {
            for range in [5..5, 0..1001, 2000..3000] {
                let error = bench.get(range).unwrap_err();
                assert!(matches!(error, FetchError::Refused(_)), "{error}");
            }
            let error = bench.get(Range { start: 9, end: 3 }).unwrap_err();
            assert!(matches!(error, FetchError::Refused(_)), "{error}");
            assert!(bench.server.requests().is_empty());
        },
    );
}

#[test]
fn stop_replies_to_everybody_in_time() {
    each(
        1 << 20,
        |_| Answer::Silence,
        |bench| {
            // The bench holds the engine by reference: a second one of the same kind is stopped here.
            let engine = Engine::start(options(bench.engine.kind())).unwrap();
            let list = List::new(vec![target(1, bench.server.address)]);
            let blob = engine.open(BlobSpec { digest: digest(), size: MIB }, list);
            let (sender, receiver) = bounded(20);
            for index in 0..20 {
                let sender = sender.clone();
                blob.want(Want {
                    range: index..MIB,
                    priority: Priority::Prefetch,
                    headroom: 0,
                    reply: Box::new(move |result| drop(sender.send(result))),
                });
            }
            std::thread::sleep(Duration::from_millis(50));
            let begun = Instant::now();
            drop(engine);
            assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
            for _ in 0..20 {
                let error = receiver.try_recv().unwrap().unwrap_err();
                assert!(matches!(error, FetchError::Cancelled), "{error}");
            }
            let error = fetch_blocking(&*blob, 0..1, Priority::OnDemand, PATIENCE).unwrap_err();
            assert!(matches!(error, FetchError::Cancelled), "{error}");
        },
    );
}

#[test]
fn auto_takes_what_there_is() {
    let engine = Engine::start(EngineOptions::default()).unwrap();
    assert_ne!(engine.kind(), EngineKind::Auto);
    assert!(!engine.reason().is_empty());
}
