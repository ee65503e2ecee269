//! Spans and index builds against zlib, on a layer of this machine's own programs.
//!
//! `cargo bench -p spanfs-benches --bench inflate` prints the figures; without `--bench`, as the
//! tests run it, it only shows on a small layer that both sides give the same.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, reason = "a benchmark reports by printing")]

mod zlib;

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use spanfs_cache::build::{BuildOptions, LayerBuilder, Toc};
use spanfs_cache::inflate::{Buffers, Decoder, HEADROOM, Pool, PoolOptions, VerifiedSpan};
use spanfs_fetch::{Fetched, Priority};
use spanfs_layer::tar::{Limits, Reader};
use spanfs_layer::{Digest, Restart, SpanTable, UncompressedOffset};

/// Rounds of each measurement; the fastest counts, since all noise is upwards.
const ROUNDS: usize = 5;

fn main() {
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let (len, rounds) = if is_bench { (192 << 20, ROUNDS) } else { (2 << 20, 1) };
    let tar = tar_of_programs(len);
    let layer = Arc::new(Layer::new(zlib::gzip(&tar)));
    println!(
        "layer: {} MB in {} MB of gzip -6, {} spans",
        tar.len() / 1_000_000,
        layer.blob.len() / 1_000_000,
        layer.table.spans().len()
    );
    span_inflate(&layer, &tar, rounds);
    scaling(&layer, rounds);
    index_build(&layer, rounds);
}

/// A tar of files below /usr, up to about `len` bytes.
fn tar_of_programs(len: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for folder in ["/usr/bin", "/usr/lib"] {
        append(&mut builder, Path::new(folder), len);
    }
    builder.into_inner().unwrap()
}

fn append(builder: &mut tar::Builder<Vec<u8>>, folder: &Path, len: usize) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if builder.get_ref().len() + metadata.len() as usize > len {
            continue;
        }
        if metadata.is_dir() {
            append(builder, &path, len);
        } else if metadata.is_file()
            && let Ok(mut file) = std::fs::File::open(&path)
        {
            builder.append_file(path.strip_prefix("/").unwrap(), &mut file).unwrap();
        }
    }
}

struct Layer {
    blob: Vec<u8>,
    digest: Digest,
    encoded: Vec<u8>,
    table: SpanTable,
}

impl Layer {
    fn new(blob: Vec<u8>) -> Self {
        let Toc::Lazy(ztoc) = build(&blob) else { panic!("no zTOC") };
        let encoded = ztoc.encode();
        let table = SpanTable::from_ztoc(&encoded).unwrap();
        Self { digest: Digest::of(&blob), blob, encoded, table }
    }

    fn data(&self, number: usize) -> &[u8] {
        let range = &self.table.spans()[number].compressed;
        &self.blob[range.start.0 as usize..range.end.0 as usize]
    }

    fn restart(&self, number: usize) -> (u8, Option<&[u8; 32768]>) {
        let Restart::Deflate { bits, window_at } = self.table.spans()[number].restart else {
            panic!("not a gzip layer")
        };
        let window = self.encoded[window_at as usize..].first_chunk();
        (bits, window.filter(|_| window_at > 0))
    }

    fn fetched(&self, number: usize) -> Fetched {
        let mut bytes = Vec::with_capacity(HEADROOM + self.data(number).len() + 8);
        bytes.resize(HEADROOM, 0);
        bytes.extend_from_slice(self.data(number));
        Fetched { bytes, headroom: HEADROOM }
    }

    fn len(&self) -> u64 {
        self.table.uncompressed_len()
    }
}

fn build(blob: &[u8]) -> Toc {
    let sink = |_: UncompressedOffset, bytes: &[u8]| {
        black_box(bytes);
        Ok(())
    };
    let mut builder = LayerBuilder::new(BuildOptions::default(), sink).unwrap();
    // As the fetch engine delivers it.
    for piece in blob.chunks(1 << 20) {
        builder.feed(piece).unwrap();
    }
    builder.finish().unwrap().toc
}

/// The fastest of some rounds.
fn fastest(rounds: usize, mut round: impl FnMut() -> Duration) -> Duration {
    (0..rounds).map(|_| round()).min().unwrap()
}

fn rate(len: u64, time: Duration) -> f64 {
    len as f64 / 1e6 / time.as_secs_f64()
}

fn span_inflate(layer: &Layer, tar: &[u8], rounds: usize) {
    let count = layer.table.spans().len();
    let mut out = vec![0; 64 << 20];
    let zlib_all = |out: &mut [u8]| {
        let start = Instant::now();
        for number in 0..count {
            let (bits, window) = layer.restart(number);
            let range = &layer.table.spans()[number].uncompressed;
            let len = (range.end.0 - range.start.0) as usize;
            let window = window.map(|window| window.as_slice());
            zlib::inflate_span(layer.data(number), bits, window, &mut out[..len]);
            assert!(out[..64.min(len)] == tar[range.start.0 as usize..][..64.min(len)]);
        }
        start.elapsed()
    };
    let mut decoder = Decoder::new(Buffers::new(16 << 20));
    let mut ours_all = |is_checked: bool| {
        let mut time = Duration::ZERO;
        for number in 0..count {
            let fetched = layer.fetched(number);
            let start = Instant::now();
            let check = if is_checked { VerifiedSpan::check } else { VerifiedSpan::unverified };
            let span = check(&layer.digest, &layer.table, number, fetched).unwrap();
            let inflated = decoder.inflate(span, layer.restart(number).1).unwrap();
            time += start.elapsed();
            assert!(
                inflated.bytes() == &tar[inflated.start().0 as usize..][..inflated.bytes().len()]
            );
        }
        time
    };
    let (mut zlib, mut plain, mut checked) = (Duration::MAX, Duration::MAX, Duration::MAX);
    for _ in 0..rounds {
        zlib = zlib.min(zlib_all(&mut out));
        plain = plain.min(ours_all(false));
        checked = checked.min(ours_all(true));
    }
    let ratio = zlib.as_secs_f64() / plain.as_secs_f64();
    let (zlib, plain) = (rate(layer.len(), zlib), rate(layer.len(), plain));
    println!("span inflate, one core: zlib {zlib:.0} MB/s, ours {plain:.0} MB/s: {ratio:.2}×");
    println!("  with the digest checked: {:.0} MB/s", rate(layer.len(), checked));
}

fn scaling(layer: &Arc<Layer>, rounds: usize) {
    let time = |threads: usize| {
        let pool =
            Pool::new(&PoolOptions { bytes_max: 1 << 30, ..PoolOptions::for_threads(threads) });
        let pool = pool.unwrap();
        fastest(rounds, || {
            let count = layer.table.spans().len();
            let spans: Vec<_> = (0..count).map(|number| layer.fetched(number)).collect();
            let (done, wait) = mpsc::channel();
            let start = Instant::now();
            for (number, fetched) in spans.into_iter().enumerate() {
                let (layer, done) = (layer.clone(), done.clone());
                let job = move |decoder: &mut Decoder| {
                    let span = VerifiedSpan::check(&layer.digest, &layer.table, number, fetched);
                    let inflated = decoder.inflate(span.unwrap(), layer.restart(number).1).unwrap();
                    done.send(inflated.bytes().len()).unwrap();
                };
                assert!(pool.submit(Priority::OnDemand, 0, Box::new(job)).is_ok());
            }
            drop(done);
            assert_eq!(wait.iter().sum::<usize>() as u64, layer.len());
            start.elapsed()
        })
    };
    let (one, two) = (time(1), time(2));
    let per_core = one.as_secs_f64() / two.as_secs_f64() / 2.0;
    let (one, two) = (rate(layer.len(), one), rate(layer.len(), two));
    println!("pool: 1 thread {one:.0} MB/s, 2 threads {two:.0} MB/s: {per_core:.2} per core");
}

/// Processor time of this thread: what a busy machine can't falsify.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn index_build(layer: &Layer, rounds: usize) {
    let (mut zlib, mut ours) = ([Duration::MAX; 2], [Duration::MAX; 2]);
    let timed = |best: &mut [Duration; 2], work: &mut dyn FnMut()| {
        let (start, busy) = (Instant::now(), thread_time());
        work();
        *best = [best[0].min(start.elapsed()), best[1].min(thread_time() - busy)];
    };
    for _ in 0..rounds {
        let mut records = Vec::new();
        timed(&mut zlib, &mut || {
            black_box(zlib::index(&layer.blob, 4 << 20));
            let mut reader = Reader::new(Limits::default());
            zlib::read(&layer.blob, |bytes| reader.feed(bytes, &mut records).unwrap());
        });
        let mut count = 0;
        timed(&mut ours, &mut || count = build(&layer.blob).records().len());
        assert_eq!(count, records.len());
    }
    for (what, zlib, ours) in
        [("elapsed", zlib[0], ours[0]), ("busy in the calling thread", zlib[1], ours[1])]
    {
        let ratio = ours.as_secs_f64() / zlib.as_secs_f64();
        let (zlib, ours) = (rate(layer.len(), zlib), rate(layer.len(), ours));
        println!(
            "index build, {what}: two zlib passes {zlib:.0} MB/s, ours with all digests \
             {ours:.0} MB/s: {ratio:.2}× the time"
        );
    }
}
