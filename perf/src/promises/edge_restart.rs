//! The process behind a mount killed, and the daemon restarted, a hundred times each, with readers that
//! compare every byte: how long they wait for the successor.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::Advice;
use rustix::process::{Pid, Signal, kill_process};
use spanfs_registry::{Link, Registry};

use super::daemon::{Daemon, Pull, runtime};
use super::{indexed_image, serve};
use crate::content::Layer;
use crate::lab::{Lab, Mounted};
use crate::report::{Goal, Report, Row};

const FILES: usize = 40;
const FILE_BYTES: usize = 1 << 20;
const READERS: usize = 4;
const TIMES: usize = 100;
/// Readers go on for so long between two restarts.
const EVERY: Duration = Duration::from_millis(200);
/// And between two kills: a mount whose servers live shorter than 300 ms is given up.
const KILL_EVERY: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(30);

/// `edge-kill`.
pub(super) fn kill(lab: &Lab, report: &mut Report) -> Result<()> {
    let (_, (_registry, reference)) = image(lab)?;
    let pauses = killed(lab, &reference)?;
    tell(report, "edge-kill", "kill -9, standalone, inode front", pauses)
}

/// `edge-restart`.
pub(super) fn restart(lab: &Lab, report: &mut Report) -> Result<()> {
    let (layout, (_registry, reference)) = image(lab)?;
    let pauses = restarted(lab, &layout, &reference)?;
    let what = "planned restart of the daemon, EROFS over one-file FUSE";
    tell(report, "edge-restart", what, pauses)
}

/// The image, and where it is served.
fn image(lab: &Lab) -> Result<(PathBuf, (Registry, String))> {
    let holder = lab.spanfs.with_file_name("spanfs-hold");
    ensure!(
        holder.exists(),
        "{} is not there: cargo build --release -p spanfs-hold",
        holder.display()
    );
    let layout = indexed_image(lab, "restart", || {
        let mut layer = Layer::new(5);
        for number in 0..FILES {
            layer.file(&format!("{number:03}"), FILE_BYTES)?;
        }
        Ok([layer])
    })?;
    let served = serve(&layout, Link::UNLIMITED)?;
    Ok((layout, served))
}

fn tell(
    report: &mut Report,
    promise: &'static str,
    what: &str,
    mut pauses: Vec<f64>,
) -> Result<()> {
    pauses.sort_by(f64::total_cmp);
    let at = |part: f64| pauses[((pauses.len() - 1) as f64 * part).round() as usize];
    for (figure, value, goal) in [
        ("median", at(0.5), Goal::None),
        ("p99", at(0.99), Goal::AtMost(200.0)),
        ("longest", at(1.0), Goal::None),
    ] {
        let what = format!("pause of readers, {what}, {figure} of {TIMES}");
        report.row(&Row { promise, what, value, unit: "ms", goal })?;
    }
    Ok(())
}

/// The process behind a background mount is killed, and its successor goes on.
fn killed(lab: &Lab, reference: &str) -> Result<Vec<f64>> {
    let dir = lab.dir("restart")?;
    let options = ["--front", "inode", "--no-background"];
    let mounted = Mounted::new(lab, &dir, reference, &options)?;
    pauses(Readers::of(&mounted.root, None)?, KILL_EVERY, || {
        let pid = Pid::from_raw(i32::try_from(mounted.pid()?)?).context("no process")?;
        Ok(kill_process(pid, Signal::KILL)?)
    })
}

/// The snapshotter's daemon is told to end, and started again.
fn restarted(lab: &Lab, layout: &Path, reference: &str) -> Result<Vec<f64>> {
    let mut daemon = Daemon::start(lab, "restart-daemon")?;
    runtime()?.block_on(async {
        let mut image = Pull::of(layout, reference, daemon.connect().await?)?;
        image.layer().await
    })?;
    let state = daemon.root.join("state");
    let parts = fs::read_dir(state.join("spanfs/mounts"))?.filter_map(Result::ok);
    let layer = parts.map(|part| part.path().join("file-0/layer")).find(|path| path.exists());
    let layer = File::open(layer.context("the layer is not served by FUSE")?)?;
    let root = state.join("snapshotter/snapshots/1/fs");
    pauses(Readers::of(&root, Some(layer))?, EVERY, || daemon.restart())
}

/// The longest read around each time, in milliseconds.
fn pauses(
    readers: Readers,
    every: Duration,
    mut interrupt: impl FnMut() -> Result<()>,
) -> Result<Vec<f64>> {
    std::thread::scope(|scope| {
        for reader in 0..READERS {
            let readers = &readers;
            scope.spawn(move || readers.read(reader));
        }
        let outcome = (0..TIMES).map(|_| readers.pause_at(every, &mut interrupt)).collect();
        readers.stop.store(true, Ordering::Relaxed);
        outcome
    })
}

#[derive(Default)]
struct Readers {
    /// Whose pages are dropped, so that reads of a filesystem above come to us.
    layer: Option<File>,
    names: Vec<PathBuf>,
    contents: Vec<Vec<u8>>,
    stop: AtomicBool,
    count: AtomicU64,
    longest_us: AtomicU64,
    error: Mutex<Option<String>>,
}

impl Readers {
    /// What comes through the mount now is what must come ever after.
    fn of(root: &Path, layer: Option<File>) -> Result<Self> {
        let names: Vec<PathBuf> = (0..FILES).map(|it| root.join(format!("{it:03}"))).collect();
        let contents = names.iter().map(fs::read).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { layer, names, contents, ..Self::default() })
    }

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
        for file in std::iter::once(&file).chain(&self.layer) {
            rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    }

    fn pause_at(&self, every: Duration, interrupt: &mut impl FnMut() -> Result<()>) -> Result<f64> {
        std::thread::sleep(every / 2);
        self.longest_us.store(0, Ordering::Relaxed);
        interrupt()?;
        let (before, until) = (self.count.load(Ordering::Relaxed), Instant::now() + PATIENCE);
        while self.count.load(Ordering::Relaxed) < before + 4 * READERS as u64 {
            if let Some(error) = &*self.error.lock().unwrap_or_else(|it| it.into_inner()) {
                bail!("{error}");
            }
            ensure!(Instant::now() < until, "readers hang");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(every / 2);
        Ok(self.longest_us.load(Ordering::Relaxed) as f64 / 1000.0)
    }
}
