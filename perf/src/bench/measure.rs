//! What is read off a site while a workload starts on it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use spanfs_registry::Registry;

use super::{NAME, Site};
use crate::cgroup::{Groups, Usage};

/// Kernel's unit of CPU time in `/proc`, fixed in its interface to programs.
const TICKS_PER_SECOND: f64 = 100.0;
/// Points of a curve that are kept; enough for a picture.
const POINTS_MAX: usize = 200;
const SAMPLE_EVERY: Duration = Duration::from_millis(5);
/// Samples from one point of a curve to the next.
const TICKS_PER_POINT: u64 = 4;
/// Waits of one start that are kept.
const STALLS_MAX: usize = 1000;
/// Threads of a process that are looked at.
const TASKS_MAX: usize = 64;
/// Components with a control group of ours; what else there is, is the workload's.
const GROUPS: [&str; 3] = ["snapshotter", "containerd", "client"];

/// What each component has used so far. The group of a container goes with it, but not what it has
/// added to that of its parent.
pub(super) fn usage(groups: &Groups) -> BTreeMap<String, Usage> {
    let mut workload = groups.usage_of_all();
    let mut usage = BTreeMap::new();
    for name in GROUPS {
        let used = groups.usage(name);
        workload = workload.since(&used);
        usage.insert(name.to_owned(), used);
    }
    usage.insert("workload".to_owned(), workload);
    usage
}

/// What is looked at while a start goes on, by a thread of its own.
pub(super) struct Sampler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Samples>>,
}

/// What a [`Sampler`] has seen.
#[derive(Debug, Default)]
pub(super) struct Samples {
    /// Bytes on the link so far, by time.
    pub(super) moved: Vec<(f64, u64)>,
    /// When a process of the workload waited for data, and how long.
    pub(super) stalls: Vec<(f64, f64)>,
}

impl Sampler {
    pub(super) fn start(registry: Arc<Registry>, groups: Arc<Groups>, since: Instant) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut samples = Samples { moved: vec![(0.0, 0)], stalls: Vec::new() };
            let mut stalled_since = None;
            for tick in 0u64.. {
                if flag.load(Ordering::Relaxed) {
                    break;
                }
                let now = since.elapsed().as_secs_f64();
                if tick.is_multiple_of(TICKS_PER_POINT) {
                    samples.moved.push((now, registry.bytes_sent()));
                }
                let is_stalled = groups.processes(NAME).into_iter().any(is_waiting);
                match (is_stalled, stalled_since) {
                    (true, None) => stalled_since = Some(now),
                    (false, Some(from)) => {
                        if samples.stalls.len() < STALLS_MAX {
                            samples.stalls.push((millis(from), millis(now - from)));
                        }
                        stalled_since = None;
                    }
                    _ => {}
                }
                std::thread::sleep(SAMPLE_EVERY);
            }
            samples.moved = thin(samples.moved);
            samples
        });
        Self { stop, thread: Some(thread) }
    }

    pub(super) fn end(mut self) -> Samples {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Whether a thread of a process is in uninterruptible sleep: a page or a block is on its way.
fn is_waiting(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.take(TASKS_MAX).any(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D'))
    })
}

fn millis(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

/// Every n-th point and the last, milliseconds.
fn thin(points: Vec<(f64, u64)>) -> Vec<(f64, u64)> {
    let step = points.len().div_ceil(POINTS_MAX).max(1);
    let last = points.len().saturating_sub(1);
    let kept = points.into_iter().enumerate().filter(|(at, _)| at % step == 0 || *at == last);
    kept.map(|(_, (at, bytes))| (millis(at), bytes)).collect()
}

/// When blobs were asked for, and how much of them; neighbours in time are put together.
pub(super) fn requests(
    stats: &spanfs_registry::Stats,
    sizes: &BTreeMap<String, u64>,
) -> Vec<(f64, u64)> {
    let blobs = stats.log.iter().filter(|it| it.method == "GET" && it.path.contains("/blobs/"));
    let all: Vec<_> = blobs
        .map(|it| {
            let bytes = range_len(&it.range).or_else(|| {
                let digest = it.path.rsplit('/').next()?;
                sizes.get(digest).copied()
            });
            (millis(it.at.as_secs_f64()), bytes.unwrap_or(0))
        })
        .collect();
    let step = all.len().div_ceil(POINTS_MAX).max(1);
    let joined = all
        .chunks(step)
        .filter_map(|chunk| Some((chunk.first()?.0, chunk.iter().map(|(_, bytes)| bytes).sum())));
    joined.collect()
}

/// Length of `bytes=FIRST-LAST`.
fn range_len(range: &str) -> Option<u64> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    last.checked_sub(first)?.checked_add(1)
}

/// Highest resident memory of a process so far, in bytes.
pub(super) fn rss_peak(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Bytes that a process had the kernel write.
pub(super) fn written(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes:"));
    line.and_then(|line| line.trim().parse().ok()).unwrap_or(0)
}

/// Bytes of disk below directories, hard links once.
pub(super) fn disk_used(roots: &[PathBuf]) -> u64 {
    let mut seen = std::collections::BTreeSet::new();
    roots.iter().map(|root| disk_used_below(root, &mut seen)).sum()
}

fn disk_used_below(path: &Path, seen: &mut std::collections::BTreeSet<(u64, u64)>) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    if meta.nlink() > 1 && !meta.is_dir() && !seen.insert((meta.dev(), meta.ino())) {
        return 0;
    }
    let own = meta.blocks() * 512;
    if !meta.is_dir() {
        return own;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| disk_used_below(&entry.path(), seen)).sum::<u64>()
}

/// How the image is shown on a node: file system types of its mounts that are not this machine's.
pub(super) fn mounts(site: &Site) -> BTreeMap<String, usize> {
    let table = |pid: &str| fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap_or_default();
    let mut counts = BTreeMap::new();
    for line in table(&site.node.init().to_string()).lines() {
        let mut words = line.split(' ').skip(1);
        if let (Some(point), Some(kind)) = (words.next(), words.next())
            && (point.starts_with("/var/lib/") || point.starts_with("/run/"))
            && matches!(kind, "overlay" | "erofs" | "ext4" | "tmpfs") | kind.starts_with("fuse")
        {
            *counts.entry(kind.to_owned()).or_insert(0) += 1;
        }
    }
    counts
}

/// CPU time of the machine and of this program, to tell what others have used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    at: Instant,
    busy: f64,
    own: f64,
}

impl Clock {
    /// `groups` is what the components have used so far.
    pub(super) fn read(groups: f64) -> Self {
        Self { at: Instant::now(), busy: busy(), own: groups + own() }
    }

    /// CPU seconds of the whole machine since `before`: of the registry and of writing back, too.
    pub(super) fn busy_since(&self, before: &Self) -> f64 {
        self.busy - before.busy
    }

    /// Share of all cores that others have used since `before`.
    pub(super) fn others_since(&self, before: &Self) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let seconds = (self.at - before.at).as_secs_f64() * cores;
        ((self.busy - before.busy) - (self.own - before.own)).max(0.0) / seconds.max(1e-3)
    }
}

/// Seconds that all cores together were busy, those stolen by other machines of the host included.
fn busy() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let numbers: Vec<f64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| numbers.get(*at)).sum::<f64>();
    busy / TICKS_PER_SECOND
}

/// Seconds of CPU of this process and of its children that have ended.
fn own() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let numbers = fields.split_whitespace().skip(11).take(2);
    numbers.filter_map(|word| word.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
}

/// Share of the machine that is busy with other work right now, over a moment.
pub(crate) fn busy_share_of_others(over: Duration) -> f64 {
    let before = Clock::read(0.0);
    std::thread::sleep(over);
    Clock::read(0.0).others_since(&before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_thinned_and_keep_their_end() {
        let points: Vec<_> = (0..1001).map(|n| (f64::from(n), n as u64)).collect();
        let kept = thin(points);
        assert!(kept.len() <= POINTS_MAX + 1, "{}", kept.len());
        assert_eq!(kept.last(), Some(&(1000.0, 1000)));
    }

    #[test]
    fn ranges_have_lengths() {
        for (text, expected) in
            [("bytes=0-9", Some(10)), ("", None), ("bytes=5-", None), ("bytes=9-0", None)]
        {
            assert_eq!(range_len(text), expected, "{text}");
        }
    }
}
