//! The kernel's own trace events, by an instance of tracefs that nobody else uses.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, UnmountFlags};

const MOUNTED: &str = "/sys/kernel/tracing";
/// Of instances; the number behind it is the process that made it.
const PREFIX: &str = "spanfs-perf-";

/// An instance with its own buffers. Gone with this value.
pub(crate) struct KernelTrace {
    instance: PathBuf,
    _tracefs: Tracefs,
}

/// tracefs, mounted below a directory of ours where the machine has not mounted it.
struct Tracefs {
    root: PathBuf,
    is_ours: bool,
}

impl Tracefs {
    fn open(scratch: &Path) -> Result<Self> {
        if Path::new(MOUNTED).join("instances").is_dir() {
            return Ok(Self { root: PathBuf::from(MOUNTED), is_ours: false });
        }
        let root = scratch.join("tracefs");
        fs::create_dir_all(&root)?;
        rustix::mount::mount("tracefs", &root, "tracefs", MountFlags::empty(), None)
            .context("mounting tracefs")?;
        Ok(Self { root, is_ours: true })
    }
}

impl Drop for Tracefs {
    fn drop(&mut self) {
        if self.is_ours {
            if let Err(error) = rustix::mount::unmount(&self.root, UnmountFlags::DETACH) {
                eprintln!("perf: unmounting {}: {error}", self.root.display());
            }
            let _ = fs::remove_dir(&self.root);
        }
    }
}

impl KernelTrace {
    /// An instance with some events on, such as `fuse/fuse_request_send`; its buffer takes
    /// `buffer_kib` a core.
    pub(crate) fn start(scratch: &Path, events: &[&str], buffer_kib: usize) -> Result<Self> {
        let tracefs = Tracefs::open(scratch)?;
        let instances = tracefs.root.join("instances");
        remove_abandoned(&instances);
        let instance = instances.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&instance).context("making an instance of tracefs")?;
        let trace = Self { instance, _tracefs: tracefs };
        let write = |file: &str, text: &str| {
            let path = trace.instance.join(file);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        write("buffer_size_kb", &buffer_kib.to_string())?;
        // The clock of programs.
        write("trace_clock", "mono")?;
        for event in events {
            write(&format!("events/{event}/enable"), "1")?;
        }
        Ok(trace)
    }

    /// Events so far, those that the buffer has lost included.
    pub(crate) fn count(&self) -> u64 {
        let cores = fs::read_dir(self.instance.join("per_cpu")).into_iter().flatten().flatten();
        let of = |core: fs::DirEntry| {
            let text = fs::read_to_string(core.path().join("stats")).unwrap_or_default();
            let numbers = text.lines().filter_map(|line| {
                let (key, value) = line.split_once(':')?;
                matches!(key, "entries" | "overrun" | "read events")
                    .then(|| value.trim().parse::<u64>().ok())?
            });
            numbers.sum::<u64>()
        };
        cores.map(of).sum()
    }

    /// Events as text, read as they come; a read that finds none says so at once.
    pub(crate) fn lines(&self) -> Result<Pipe> {
        let path = self.instance.join("trace_pipe");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, rustix::fs::Mode::empty())
            .with_context(|| format!("opening {}", path.display()))?;
        Ok(Pipe { file: file.into(), rest: Vec::new() })
    }
}

impl Drop for KernelTrace {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.instance) {
            eprintln!("perf: {} stays: {error}", self.instance.display());
        }
    }
}

/// Instances of processes that were killed.
fn remove_abandoned(instances: &Path) {
    for entry in fs::read_dir(instances).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The text of events.
pub(crate) struct Pipe {
    file: File,
    rest: Vec<u8>,
}

impl Pipe {
    /// Whole lines that have come.
    pub(crate) fn take(&mut self) -> Result<Vec<String>> {
        let mut buffer = vec![0; 256 << 10];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => self.rest.extend(buffer.iter().take(count)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("reading trace events"),
            }
        }
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.rest.drain(..end).collect();
        Ok(String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect())
    }
}
