//! CPU per byte of the ring engine and of the thread engine, on loopback.
//!
//! `cargo bench -p spanfs-benches --bench fetch -- 1024` fetches 1024 MiB per run; without a number a
//! few, so that the test run shows that it works. The server is a process of its own: only the
//! client's CPU time is counted. One line per run, engines interleaved.
#![allow(clippy::print_stdout, missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use spanfs_fetch::buffer::{Stream, StreamOptions};
use spanfs_fetch::{
    BlobSpec, Engine, EngineKind, EngineOptions, Locate, LocateError, Priority, Target,
    TargetFailure,
};

const SERVE: &str = "--serve";

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let first = arguments.next();
    if first.as_deref() == Some(SERVE) {
        return serve();
    }
    let mib: u64 = first.and_then(|text| text.parse().ok()).unwrap_or(8);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg(SERVE)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address: SocketAddr = line.trim().parse().unwrap();
    for _ in 0..3 {
        for (chunk_mib, priority) in [(4, Priority::OnDemand), (8, Priority::Prefetch)] {
            for kind in [EngineKind::Ring, EngineKind::Threads] {
                run(kind, address, mib << 20, chunk_mib << 20, priority);
            }
        }
    }
    // The server ends with its input.
    drop(child.stdin.take());
    child.wait().unwrap();
}

fn run(kind: EngineKind, address: SocketAddr, size: u64, chunk_bytes: u64, priority: Priority) {
    let options = EngineOptions { kind, ..EngineOptions::default() };
    let engine = match Engine::start(options) {
        Ok(engine) => engine,
        Err(error) => return println!("{kind:?}: {error}"),
    };
    let digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    let blob = engine.open(BlobSpec { digest, size }, Arc::new(Fixed(address)));
    let options = StreamOptions { chunk_bytes, priority, ..StreamOptions::default() };
    let (cpu, wall) = (cpu_seconds(), Instant::now());
    let mut stream = Stream::new(Arc::clone(&blob), 0..size, options);
    let mut bytes = 0;
    while let Some(chunk) = stream.next_in_order() {
        let chunk = chunk.unwrap();
        bytes += chunk.fetched.data().len() as u64;
        blob.recycle(chunk.fetched.bytes);
    }
    assert_eq!(bytes, size);
    let (cpu, wall) = (cpu_seconds() - cpu, wall.elapsed().as_secs_f64());
    let gb = size as f64 / 1e9;
    let stats = engine.stats();
    println!(
        "{kind:?} {priority:?} {} MiB chunks: {:.3} CPU s/GB, {:.2} GB/s, {} requests, {} connections",
        chunk_bytes >> 20,
        cpu / gb,
        gb / wall,
        stats.requests,
        stats.connections
    );
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

struct Fixed(SocketAddr);

impl Locate for Fixed {
    fn locate(
        &self,
        _: Option<TargetFailure>,
        reply: Box<dyn FnOnce(Result<Target, LocateError>) + Send>,
    ) {
        reply(Ok(Target {
            id: 1,
            host: self.0.to_string(),
            server_name: "localhost".into(),
            addresses: vec![self.0],
            request_target: "/blob".into(),
            headers: Vec::new(),
            tls: None,
            connect: None,
            expires: None,
        }));
    }
}

/// Answer ranges of zeros until the parent closes our input.
fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            std::thread::spawn(move || talk(socket));
        }
    });
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn talk(socket: TcpStream) -> Option<()> {
    let zeros = vec![0; 1 << 20];
    let mut reader = BufReader::new(socket.try_clone().ok()?);
    let mut writer = socket;
    loop {
        let (mut line, mut range) = (String::new(), None);
        while line != "\r\n" {
            line.clear();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(text) = line.trim().strip_prefix("Range: bytes=") {
                let (first, last) = text.split_once('-')?;
                range = Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?));
            }
        }
        let (first, last) = range?;
        let mut left = (last + 1 - first) as usize;
        let head = format!(
            "HTTP/1.1 206 x\r\nContent-Range: bytes {first}-{last}/*\r\nContent-Length: {left}\r\n\r\n"
        );
        writer.write_all(head.as_bytes()).ok()?;
        while left > 0 {
            let count = left.min(zeros.len());
            writer.write_all(&zeros[..count]).ok()?;
            left -= count;
        }
    }
}
