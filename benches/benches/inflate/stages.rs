//! Where the bottleneck of an eager pull moves with cores, by stage costs recorded in this run.
//!
//! The model: stages of one layer run beside each other, a stage that must go in order takes at most
//! one core, and all together take no more than there are. Memory bandwidth and clocks that fall
//! with load are left out, so it says what is in the way, not how fast a machine will be.

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use spanfs_cache::build::cost;
use spanfs_cache::inflate::{Buffers, Decoder};
use spanfs_layer::Digest;
use spanfs_layer::tar::{Limits, Reader};

use crate::layer::Layer;
use crate::thread_time;

/// One stage: seconds of processor for an uncompressed gigabyte.
#[derive(Clone, Copy)]
struct Stage {
    name: &'static str,
    seconds: f64,
    /// Cores that it can use within one layer.
    cores_max: f64,
}

const CORES: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
/// As many as the default setting unpacks at once for an image, and one.
const LAYERS: [f64; 2] = [1.0, 3.0];

/// What a pass without a zTOC costs where it inflates, seconds for a gigabyte.
struct Inflating {
    in_order: f64,
    ahead: f64,
    /// What is left to the scan of what helpers decoded.
    joining: f64,
}

/// As many as help one layer.
const HELPERS_MAX: f64 = 5.0;

impl Inflating {
    /// With so many cores for each layer: the scan's and its helpers' shares end together.
    fn on(&self, cores: f64) -> Stage {
        let helpers = (cores - 1.0).clamp(0.0, HELPERS_MAX);
        if helpers == 0.0 {
            return Stage { name: "inflate", seconds: self.in_order, cores_max: 1.0 };
        }
        let spare = (self.ahead / helpers - self.joining).max(0.0);
        let scanned = spare / (self.in_order + spare);
        let elapsed = scanned * self.in_order + (1.0 - scanned) * self.joining;
        let elapsed = elapsed.max((1.0 - scanned) * self.ahead / helpers);
        let seconds = scanned * self.in_order + (1.0 - scanned) * (self.ahead + self.joining);
        Stage { name: "inflate", seconds, cores_max: seconds / elapsed }
    }
}

/// Record the costs, then print the table.
pub(crate) fn measure(layer: &Layer, rounds: usize) {
    let tar = uncompressed(layer);
    let mut decoder = Decoder::new(Buffers::new(16 << 20));
    let cost = |work: &mut dyn FnMut() -> Duration| {
        let best = (0..rounds).map(|_| work()).min().unwrap();
        best.as_secs_f64() * 1e9 / layer.len() as f64
    };
    let timed = |work: &mut dyn FnMut()| {
        let start = thread_time();
        work();
        thread_time() - start
    };
    let hash = |bytes: &[u8]| _ = black_box(Digest::of(bytes));
    let in_order = |name, seconds| Stage { name, seconds, cores_max: 1.0 };
    let on_all = |name, seconds| Stage { name, seconds, cores_max: f64::MAX };
    let receive = on_all("receive", cost(&mut || receive(&layer.blob)));
    let blob = in_order("SHA-256 of the blob", cost(&mut || timed(&mut || hash(&layer.blob))));
    let diff_id = in_order("SHA-256 of the tar", cost(&mut || timed(&mut || hash(&tar))));
    let spans = cost(&mut || timed(&mut || layer.inflate_all(&mut decoder)));
    let write = cost(&mut || write(&tar));
    let walk = cost(&mut || timed(&mut || walk(&tar)));
    let inflating = inflating(layer, rounds);
    let Inflating { in_order: scanning, ahead, joining } = inflating;
    println!(
        "stages, CPU s per uncompressed GB: {:.3} receive, {:.3} SHA-256 of the blob, {:.3} of the tar, \
         {write:.3} write, {walk:.3} tar's entries; inflate {scanning:.3} in order, {ahead:.3} ahead and \
         {joining:.3} in order behind that, {spans:.3} by spans",
        receive.seconds, blob.seconds, diff_id.seconds
    );
    let take = in_order("write and the tar's entries", write + walk);
    let known = on_all("inflate spans", spans);
    let alone = in_order("inflate", scanning);
    for (what, inflate) in
        [("in order", Some(alone)), ("helped", None), ("known zTOC", Some(known))]
    {
        for layers in LAYERS {
            let row = CORES.map(|cores| {
                let inflate = inflate.unwrap_or_else(|| inflating.on(cores / layers));
                let stages = [receive, blob, inflate, take, diff_id];
                let (rate, name) = throughput(&stages, layers, cores);
                format!("{cores}: {rate:.1} GB/s ({name})")
            });
            println!("{what}, {layers} at once, cores: {}", row.join(", "));
        }
    }
}

fn inflating(layer: &Layer, rounds: usize) -> Inflating {
    let per_gb = |time: Duration, len: u64| time.as_secs_f64() * 1e9 / len.max(1) as f64;
    let mut best = Inflating { in_order: f64::MAX, ahead: f64::MAX, joining: 0.0 };
    for _ in 0..rounds {
        let start = thread_time();
        black_box(cost::inflate(&layer.blob));
        best.in_order = best.in_order.min(per_gb(thread_time() - start, layer.len()));
        let once = cost::ahead(&layer.blob, &thread_time);
        let ahead = per_gb(once.decoding, once.len);
        if once.len > 0 && ahead < best.ahead {
            (best.ahead, best.joining) = (ahead, per_gb(once.replacing, once.len));
        }
    }
    best
}

fn walk(tar: &[u8]) {
    let (mut reader, mut records) = (Reader::new(Limits::default()), Vec::new());
    for piece in tar.chunks(512 << 10) {
        reader.feed(piece, &mut records).unwrap();
    }
    black_box(records.len());
}

/// Uncompressed gigabytes a second, and what is in the way of more.
fn throughput(stages: &[Stage], layers: f64, cores: f64) -> (f64, &'static str) {
    let all = cores / stages.iter().map(|stage| stage.seconds).sum::<f64>();
    let limit = |stage: &Stage| (layers * stage.cores_max / stage.seconds, stage.name);
    stages.iter().map(limit).fold((all, "cores"), |a, b| if b.0 < a.0 { b } else { a })
}

fn uncompressed(layer: &Layer) -> Vec<u8> {
    let mut tar = Vec::with_capacity(layer.len() as usize);
    crate::sys::zlib::read(&layer.blob, |bytes| tar.extend_from_slice(bytes));
    tar
}

/// Receive a blob over loopback, the kernel's part included.
fn receive(blob: &[u8]) -> Duration {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || listener.accept().unwrap().0.write_all(blob).unwrap());
        let mut stream = TcpStream::connect(address).unwrap();
        let (mut buffer, mut len) = (vec![0; 256 << 10], 0);
        let start = thread_time();
        while len < blob.len() {
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "the blob ends at {len}");
            len += read;
        }
        thread_time() - start
    })
}

/// Write a tar into a fresh file as a pass does.
fn write(tar: &[u8]) -> Duration {
    let file = tempfile::tempfile().unwrap();
    let start = thread_time();
    for (number, piece) in tar.chunks(512 << 10).enumerate() {
        file.write_all_at(piece, (number * (512 << 10)) as u64).unwrap();
    }
    thread_time() - start
}
