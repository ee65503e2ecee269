//! What more cores bring: the pool's threads, against processes that share nothing.
//!
//! Processors slow down together (clock, caches, memory, a host that gives less than it says), and
//! others may be at work. What two processes lose, each on a core of its own with its own copy of all,
//! no pool can win: the pool's share of that is its own merit.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use spanfs_cache::inflate::{Buffers, Decoder, Pool, PoolOptions, VerifiedSpan};
use spanfs_fetch::Priority;

use crate::layer::Layer;
use crate::{rate, thread_time};

const CHILD: &str = "--inflate-alone";
const BLOB: &str = "blob";
const ZTOC: &str = "ztoc";

/// Whether this process was started by [`measure`].
pub(crate) fn is_child() -> bool {
    std::env::args().nth(1).is_some_and(|first| first == CHILD)
}

/// Inflate all spans of the layer in a directory, pinned to a core, once for each line that comes.
pub(crate) fn child() {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let (directory, core) = (Path::new(&arguments[0]), arguments[1].parse().unwrap());
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).unwrap();
    let read = |name| fs::read(directory.join(name)).unwrap();
    let layer = Layer::of(read(BLOB), read(ZTOC));
    let mut decoder = Decoder::new(Buffers::new(16 << 20));
    layer.inflate_all(&mut decoder);
    println!("ready");
    for line in std::io::stdin().lines() {
        line.unwrap();
        let (start, busy) = (Instant::now(), thread_time());
        layer.inflate_all(&mut decoder);
        println!("{} {}", start.elapsed().as_nanos(), (thread_time() - busy).as_nanos());
    }
}

/// A process that inflates on its own.
struct Alone {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Alone {
    fn start(directory: &Path, core: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg(CHILD)
            .arg(directory)
            .arg(core.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut alone = Self { child, input, output };
        assert_eq!(alone.line(), "ready");
        alone
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn begin(&mut self) {
        self.input.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    /// Elapsed, and of that on the processor.
    fn end(&mut self) -> Times {
        let line = self.line();
        let mut nanoseconds = line.split(' ').map(|it| Duration::from_nanos(it.parse().unwrap()));
        Times { elapsed: nanoseconds.next().unwrap(), busy: nanoseconds.next().unwrap() }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

/// For all spans once, by each of those at work.
#[derive(Clone, Copy)]
struct Times {
    elapsed: Duration,
    busy: Duration,
}

impl Times {
    const NEVER: Self = Self { elapsed: Duration::MAX, busy: Duration::MAX };

    fn best(self, other: Self) -> Self {
        Self { elapsed: self.elapsed.min(other.elapsed), busy: self.busy.min(other.busy) }
    }
}

/// One against two, of processes and of the pool's threads.
pub(crate) fn measure(layer: &Arc<Layer>, rounds: usize) {
    let allowed = sched_getaffinity(None).unwrap();
    let cores: Vec<usize> =
        (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).take(2).collect();
    let &[first, second] = cores.as_slice() else {
        return println!("scaling: not measured, there is one core");
    };
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(BLOB), &layer.blob).unwrap();
    fs::write(directory.path().join(ZTOC), &layer.encoded).unwrap();
    let mut alone = [first, second].map(|core| Alone::start(directory.path(), core));
    let pools = [pool(1), pool(2)];
    // All four in turn, so that others at work disturb them alike.
    let (mut processes, mut threads) = ([Times::NEVER; 2], [Times::NEVER; 2]);
    for _ in 0..rounds {
        alone[0].begin();
        processes[0] = processes[0].best(alone[0].end());
        alone.iter_mut().for_each(Alone::begin);
        let [a, b] = alone.each_mut().map(Alone::end);
        // Two layers were inflated, and who came last tells when.
        let both = Times { elapsed: a.elapsed.max(b.elapsed), busy: (a.busy + b.busy) / 2 };
        processes[1] = processes[1].best(both);
        for (pool, best) in pools.iter().zip(&mut threads) {
            *best = best.best(by_pool(layer, pool));
        }
    }
    let share = |one: Duration, two: Duration| one.as_secs_f64() / two.as_secs_f64();
    let machine = share(processes[0].elapsed, processes[1].elapsed);
    let pool = share(threads[0].elapsed, threads[1].elapsed) / 2.0;
    let [one, two] = threads.map(|times| rate(layer.len(), times.elapsed));
    println!("pool: 1 thread {one:.0} MB/s, 2 threads {two:.0} MB/s: {pool:.2} per core");
    println!(
        "  two processes on cores of their own: {machine:.2} per core, so the pool has {:.2} of what \
         the machine allows",
        pool / machine
    );
    println!(
        "  processor time a span, two against one: processes {:.2}×, pool {:.2}×",
        share(processes[1].busy, processes[0].busy),
        share(threads[1].busy, threads[0].busy)
    );
}

fn pool(threads: usize) -> Pool {
    let options = PoolOptions { bytes_max: 1 << 30, ..PoolOptions::for_threads(threads) };
    Pool::new(&options).unwrap()
}

/// All spans once, by the pool.
fn by_pool(layer: &Arc<Layer>, pool: &Pool) -> Times {
    let count = layer.table.spans().len();
    let spans: Vec<_> = (0..count).map(|number| layer.fetched(number)).collect();
    let (done, wait) = mpsc::channel();
    let start = Instant::now();
    for (number, fetched) in spans.into_iter().enumerate() {
        let (layer, done) = (layer.clone(), done.clone());
        let job = move |decoder: &mut Decoder| {
            let busy = thread_time();
            let span = VerifiedSpan::unverified(&layer.digest, &layer.table, number, fetched);
            let inflated = decoder.inflate(span.unwrap(), layer.restart(number).1).unwrap();
            let len = inflated.bytes().len();
            drop(inflated);
            done.send((len, thread_time() - busy)).unwrap();
        };
        assert!(pool.submit(Priority::OnDemand, 0, Box::new(job)).is_ok());
    }
    drop(done);
    let (len, busy) = wait
        .iter()
        .fold((0, Duration::ZERO), |(len, busy), (more, longer)| (len + more, busy + longer));
    assert_eq!(len as u64, layer.len());
    Times { elapsed: start.elapsed(), busy }
}
