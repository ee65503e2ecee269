//! The bench: scratch directories, the `spanfs` command, caches dropped, processes looked at.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use spanfs_registry::Stats;

/// What every measurement needs.
pub(crate) struct Lab {
    pub(crate) spanfs: PathBuf,
    pub(crate) images: PathBuf,
    pub(crate) scratch: PathBuf,
    pub(crate) runs: usize,
    /// How long reads go on whose memory is watched.
    pub(crate) soak: Duration,
    requests: bool,
}

impl Lab {
    pub(crate) fn new(
        spanfs: Option<PathBuf>,
        images: PathBuf,
        scratch: PathBuf,
        runs: usize,
        soak: Duration,
        requests: bool,
    ) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "perf needs root: it mounts and drops caches"
        );
        let spanfs = match spanfs {
            Some(path) => path,
            None => std::env::current_exe()?.with_file_name("spanfs"),
        };
        ensure!(
            spanfs.exists(),
            "{} is not there: cargo build --release -p spanfs",
            spanfs.display()
        );
        fs::create_dir_all(&scratch)?;
        let scratch = scratch.canonicalize()?;
        let (spanfs, runs) = (spanfs.canonicalize()?, runs.max(1));
        Ok(Self { spanfs, images, scratch, runs, soak, requests })
    }

    /// An empty directory for one measurement.
    pub(crate) fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.scratch.join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("emptying {}", dir.display()))?;
        }
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// `spanfs` with the cache and the runtime directory below `dir`.
    pub(crate) fn spanfs(&self, dir: &Path) -> Command {
        let mut command = Command::new(&self.spanfs);
        command.env("SPANFS_CACHE_DIR", dir.join("cache")).env("XDG_RUNTIME_DIR", dir);
        command
    }

    /// Empties the kernel's caches of everything but what a registry far away would have in its own:
    /// the blobs of `layout`. The command itself has run before, too.
    pub(crate) fn forget_all_but(&self, layout: &Path) -> Result<()> {
        forget_all_but(layout, &self.scratch)?;
        run(Command::new(&self.spanfs).arg("--version")).map(drop)
    }

    /// What the registry was asked for, and when, if that is wanted.
    pub(crate) fn show_requests(&self, what: &str, stats: &Stats) {
        for it in stats.log.iter().filter(|_| self.requests) {
            let (ms, path) = (it.at.as_secs_f64() * 1e3, it.path.get(..60).unwrap_or(&it.path));
            println!("  {what} {ms:9.2} ms {} {} {path} {}", it.status, it.method, it.range);
        }
    }

    /// The median of `runs` measurements.
    pub(crate) fn median(&self, mut measure: impl FnMut() -> Result<f64>) -> Result<f64> {
        let mut values = (0..self.runs).map(|_| measure()).collect::<Result<Vec<_>>>()?;
        values.sort_by(f64::total_cmp);
        Ok(values[values.len() / 2])
    }
}

/// An image mounted by `spanfs mount`, gone with this value.
pub(crate) struct Mounted<'a> {
    lab: &'a Lab,
    dir: PathBuf,
    pub(crate) root: PathBuf,
    /// From the start of the command to its return.
    pub(crate) took: Duration,
}

impl<'a> Mounted<'a> {
    pub(crate) fn new(lab: &'a Lab, dir: &Path, image: &str, options: &[&str]) -> Result<Self> {
        let root = dir.join("mnt");
        fs::create_dir_all(&root)?;
        let start = Instant::now();
        run(lab.spanfs(dir).arg("mount").args(options).arg(image).arg(&root))?;
        Ok(Self { lab, dir: dir.to_owned(), root, took: start.elapsed() })
    }

    /// What `spanfs status --json` says of it.
    pub(crate) fn status(&self) -> Result<serde_json::Value> {
        let text = run(self.lab.spanfs(&self.dir).args(["status", "--json"]).arg(&self.root))?;
        serde_json::from_str(&text).context("status is JSON")
    }

    /// The process that serves it.
    pub(crate) fn pid(&self) -> Result<u64> {
        let status = self.status()?;
        let pid = status.pointer("/mounts/0/pid").and_then(serde_json::Value::as_u64);
        pid.context("status has no pid")
    }

    /// Resident memory of the process that serves it, in bytes.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        resident_bytes(self.pid()?)
    }

    /// The most that was ever resident.
    pub(crate) fn peak_bytes(&self) -> Result<u64> {
        memory_bytes(self.pid()?, "VmHWM:")
    }

    /// CPU seconds that the process that serves it has used, in hundredths.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        const TICKS_PER_SECOND: f64 = 100.0;
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid()?))?;
        // The name in front may hold anything but the last parenthesis.
        let (_, fields) = text.rsplit_once(')').context("no name in stat")?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        Ok(ticks.sum::<Result<u64, _>>()? as f64 / TICKS_PER_SECOND)
    }
}

/// Resident memory of a process, in bytes.
pub(crate) fn resident_bytes(pid: u64) -> Result<u64> {
    memory_bytes(pid, "VmRSS:")
}

fn memory_bytes(pid: u64, field: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("no {field}"))?;
    Ok(kib << 10)
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Err(error) = run(self.lab.spanfs(&self.dir).arg("umount").arg(&self.root)) {
            eprintln!("perf: {error:#}");
        }
    }
}

/// Runs a command to its end and gives its output.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Writes dirty pages out and empties the kernel's page, dentry and inode caches.
pub(crate) fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("dropping caches")
}

/// Empties the kernel's caches of everything but the blobs of `layout`; `scratch` takes a large file
/// for a moment where there is no memory file system.
pub(crate) fn forget_all_but(layout: &Path, scratch: &Path) -> Result<()> {
    drop_caches()?;
    for blob in fs::read_dir(layout.join("blobs/sha256"))? {
        let mut blob = fs::File::open(blob?.path())?;
        std::io::copy(&mut blob, &mut std::io::sink())?;
    }
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory } else { scratch };
    // Nobody is kept busy with writing these pages out.
    take_back_memory(&place.join(format!("spanfs-perf-{}", std::process::id())))
}

/// Memory of a virtual machine that has been free for a second goes back to its host, and the next
/// touch of each page then costs ten times the copy that is made into it: on the machine of our
/// figures 2.4 s a GB instead of 0.2, more than inflating. Pages of a file just removed are there.
fn take_back_memory(path: &Path) -> Result<()> {
    const BYTES: usize = 2 << 30;
    let piece = vec![1u8; 4 << 20];
    let mut file = fs::File::create(path)?;
    for _ in 0..BYTES / piece.len() {
        file.write_all(&piece)?;
    }
    Ok(fs::remove_file(path)?)
}

/// Seconds that `work` takes.
pub(crate) fn seconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}
