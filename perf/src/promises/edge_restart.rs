//! The process behind a mount killed a hundred times, with readers that compare every byte: how long
//! they wait for its successor.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::Advice;
use rustix::process::{Pid, Signal, kill_process};
use spanfs_registry::Link;

use super::{indexed_image, serve};
use crate::content::Layer;
use crate::lab::{Lab, Mounted};
use crate::report::{Goal, Report, Row};

const FILES: usize = 40;
const FILE_BYTES: usize = 1 << 20;
const READERS: usize = 4;
const KILLS: usize = 100;
/// Readers go on for so long between two kills.
const EVERY: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let layout = indexed_image(lab, "restart", || {
        let mut layer = Layer::new(5);
        for number in 0..FILES {
            layer.file(&format!("{number:03}"), FILE_BYTES)?;
        }
        Ok([layer])
    })?;
    for (front, words) in [("erofs", "EROFS over one-file FUSE"), ("inode", "inode front")] {
        let (registry, reference) = serve(&layout, Link::UNLIMITED)?;
        let dir = lab.dir("restart")?;
        let mounted = Mounted::new(lab, &dir, &reference, &["--front", front, "--no-background"])?;
        let mut pauses = kills(&mounted)?;
        drop(mounted);
        drop(registry);
        pauses.sort_by(f64::total_cmp);
        let at = |part: f64| pauses[((pauses.len() - 1) as f64 * part).round() as usize];
        for (what, value, goal) in [
            ("median", at(0.5), Goal::None),
            ("p99", at(0.99), Goal::AtMost(200.0)),
            ("longest", at(1.0), Goal::None),
        ] {
            report.row(&Row {
                promise: "edge-restart",
                what: format!("pause of readers at a kill -9, {words}, {what} of {KILLS}"),
                value,
                unit: "ms",
                goal,
            })?;
        }
    }
    Ok(())
}

/// The longest read around each kill, in milliseconds.
fn kills(mounted: &Mounted<'_>) -> Result<Vec<f64>> {
    let names: Vec<PathBuf> = (0..FILES).map(|it| mounted.root.join(format!("{it:03}"))).collect();
    // What comes through the mount before the first kill is what must come after.
    let contents = names.iter().map(fs::read).collect::<Result<Vec<_>, _>>()?;
    let readers = Readers { names, contents, ..Readers::default() };
    std::thread::scope(|scope| {
        for reader in 0..READERS {
            let readers = &readers;
            scope.spawn(move || readers.read(reader));
        }
        let outcome = (0..KILLS).map(|_| readers.pause_at(|| kill(mounted))).collect();
        readers.stop.store(true, Ordering::Relaxed);
        outcome
    })
}

/// Kill the process that serves now.
fn kill(mounted: &Mounted<'_>) -> Result<()> {
    let pid = mounted.pid()?;
    let pid = Pid::from_raw(i32::try_from(pid)?).context("no process")?;
    Ok(kill_process(pid, Signal::KILL)?)
}

#[derive(Default)]
struct Readers {
    names: Vec<PathBuf>,
    contents: Vec<Vec<u8>>,
    stop: AtomicBool,
    count: AtomicU64,
    longest_us: AtomicU64,
    error: Mutex<Option<String>>,
}

impl Readers {
    fn read(&self, reader: usize) {
        let mut number = reader * 7;
        while !self.stop.load(Ordering::Relaxed) {
            number = (number * 13 + 5) % FILES;
            if let Err(error) = self.compare(number) {
                *self.error.lock().unwrap_or_else(|it| it.into_inner()) =
                    Some(format!("{error:#}"));
                return;
            }
        }
    }

    fn compare(&self, number: usize) -> Result<()> {
        let file = File::open(&self.names[number])?;
        let mut bytes = vec![0; 64 << 10];
        let offset = number * 4096 % (FILE_BYTES - bytes.len());
        let start = Instant::now();
        file.read_exact_at(&mut bytes, offset as u64)?;
        let took = start.elapsed().as_micros() as u64;
        self.longest_us.fetch_max(took, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
        ensure!(bytes == self.contents[number][offset..][..bytes.len()], "wrong bytes in {number}");
        Ok(rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?)
    }

    fn pause_at(&self, kill: impl FnOnce() -> Result<()>) -> Result<f64> {
        std::thread::sleep(EVERY / 2);
        self.longest_us.store(0, Ordering::Relaxed);
        kill()?;
        let (before, until) = (self.count.load(Ordering::Relaxed), Instant::now() + PATIENCE);
        while self.count.load(Ordering::Relaxed) < before + 4 * READERS as u64 {
            if let Some(error) = &*self.error.lock().unwrap_or_else(|it| it.into_inner()) {
                bail!("{error}");
            }
            ensure!(Instant::now() < until, "readers hang");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(EVERY / 2);
        Ok(self.longest_us.load(Ordering::Relaxed) as f64 / 1000.0)
    }
}
