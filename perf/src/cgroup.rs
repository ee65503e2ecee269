//! Control groups, one a component, so that its CPU time can be told from that of others. Both
//! versions of the kernel's interface.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

const ROOT: &str = "/sys/fs/cgroup";
/// Hierarchies of version 1 that are read here.
const HIERARCHIES: [&str; 2] = ["cpuacct", "memory"];

/// What the processes of a group have used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Seconds of CPU in user mode.
    pub(crate) user: f64,
    /// Seconds of CPU in the kernel.
    pub(crate) system: f64,
    /// Page faults that needed no I/O, where the kernel counts them.
    pub(crate) faults_minor: u64,
    /// Page faults that waited for I/O: reads of the image that missed the page cache among them.
    pub(crate) faults_major: u64,
}

impl Usage {
    pub(crate) fn cpu(&self) -> f64 {
        self.user + self.system
    }

    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            user: (self.user - before.user).max(0.0),
            system: (self.system - before.system).max(0.0),
            faults_minor: self.faults_minor.saturating_sub(before.faults_minor),
            faults_major: self.faults_major.saturating_sub(before.faults_major),
        }
    }
}

/// A parent group, gone with this value if its processes are.
#[derive(Debug)]
pub(crate) struct Groups {
    name: String,
    is_unified: bool,
}

impl Groups {
    /// A parent group of that name for the groups of one run.
    pub(crate) fn new(name: String) -> Result<Self> {
        let is_unified = Path::new(ROOT).join("cgroup.controllers").exists();
        let groups = Self { name, is_unified };
        for directory in groups.directories("") {
            fs::create_dir_all(&directory)
                .with_context(|| format!("making the control group {}", directory.display()))?;
        }
        if is_unified {
            let control = Path::new(ROOT).join(&groups.name).join("cgroup.subtree_control");
            // Only page faults are missing where this is refused.
            let _ = fs::write(control, "+memory");
        }
        Ok(groups)
    }

    fn directories(&self, group: &str) -> Vec<PathBuf> {
        let below = |root: PathBuf| root.join(&self.name).join(group);
        match self.is_unified {
            true => vec![below(PathBuf::from(ROOT))],
            false => HIERARCHIES.iter().map(|name| below(Path::new(ROOT).join(name))).collect(),
        }
    }

    /// Name of the parent group.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A shell's words that move it into a group, to stand in front of `exec`.
    pub(crate) fn enter(&self, group: &str) -> Result<String> {
        let mut script = String::new();
        for directory in self.directories(group) {
            fs::create_dir_all(&directory)
                .with_context(|| format!("making the control group {}", directory.display()))?;
            script += &format!("echo $$ > {}/cgroup.procs; ", directory.display());
        }
        Ok(script)
    }

    /// Processes of a group; none if there is no such group.
    pub(crate) fn processes(&self, group: &str) -> Vec<u32> {
        let directory = self.directories(group).into_iter().next().unwrap_or_default();
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// What all groups have used so far, those of containers that are gone included.
    pub(crate) fn usage_of_all(&self) -> Usage {
        self.usage("")
    }

    /// What a group has used so far; nothing if there is none.
    pub(crate) fn usage(&self, group: &str) -> Usage {
        let directories = self.directories(group);
        let mut usage = Usage::default();
        for directory in &directories {
            let numbers = |file: &str| numbers(&directory.join(file));
            for (key, value) in numbers("cpu.stat") {
                match key.as_str() {
                    "user_usec" => usage.user = value as f64 / 1e6,
                    "system_usec" => usage.system = value as f64 / 1e6,
                    _ => {}
                }
            }
            let nanoseconds = |file: &str| {
                let text = fs::read_to_string(directory.join(file)).ok()?;
                Some(text.trim().parse::<u64>().ok()? as f64 / 1e9)
            };
            usage.user = nanoseconds("cpuacct.usage_user").unwrap_or(usage.user);
            usage.system = nanoseconds("cpuacct.usage_sys").unwrap_or(usage.system);
            for (key, value) in numbers("memory.stat") {
                match key.as_str() {
                    // The first is version 1's sum with the groups below, and stands behind the other.
                    "total_pgfault" | "pgfault" => usage.faults_minor = value,
                    "total_pgmajfault" | "pgmajfault" => usage.faults_major = value,
                    _ => {}
                }
            }
        }
        usage
    }
}

/// `KEY NUMBER` lines.
fn numbers(path: &Path) -> Vec<(String, u64)> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

impl Drop for Groups {
    fn drop(&mut self) {
        let roots = match self.is_unified {
            true => vec![PathBuf::from(ROOT)],
            // runc makes its groups in all hierarchies.
            false => fs::read_dir(ROOT)
                .into_iter()
                .flatten()
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path())
                .collect(),
        };
        for root in roots {
            remove(&root.join(&self.name));
        }
    }
}

/// Removes a group and those below it, the deepest first.
fn remove(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // A group that a dying process still holds is refused for a moment.
    for _ in 0..100 {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            _ => return,
        }
    }
}
