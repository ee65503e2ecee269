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

use spanfs_cache::inflate::{Buffers, Decoder};
use spanfs_layer::Digest;

use crate::layer::{Layer, build};
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
    let streamed = cost(&mut || timed(&mut || drop(build(&layer.blob))));
    let spans = cost(&mut || timed(&mut || layer.inflate_all(&mut decoder)));
    let write = cost(&mut || write(&tar));
    // The thread that inflates also writes.
    let pass = [receive, blob, in_order("inflate and write", streamed + write), diff_id];
    let known = [receive, blob, on_all("inflate spans and write", spans + write), diff_id];
    println!("stages, CPU s per uncompressed GB:");
    for stage in pass.iter().chain([&known[2], &in_order("of it write", write)]) {
        println!("  {:.3} {}", stage.seconds, stage.name);
    }
    for (what, stages) in [("streamed", pass), ("by a known zTOC", known)] {
        for layers in LAYERS {
            let row = CORES.map(|cores| {
                let (rate, name) = throughput(&stages, layers, cores);
                format!("{cores}: {rate:.1} GB/s ({name})")
            });
            println!("{what}, {layers} at once, cores: {}", row.join(", "));
        }
    }
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
