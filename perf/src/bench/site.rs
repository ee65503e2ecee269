//! Where one run takes place: a node with a network of its own, a registry on its loopback behind the
//! link, a control group a component. All of it is gone with the value.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use spanfs_node::{Ended, Inside, Network, Node};
use spanfs_registry::Registry;

use super::{NamedLink, Prepared, Stop};
use crate::cgroup::Groups;

/// Port of the registry on a node's loopback.
const PORT: u16 = 5000;
/// From the start of a daemon until it answers.
const START_TIME_MAX: Duration = Duration::from_secs(60);

/// Directory of this process's runs. Those of processes that were killed are removed first.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: PathBuf,
    _lock: File,
}

impl Scratch {
    pub(crate) fn open(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("making {}", root.display()))?;
        let root = root.canonicalize()?;
        for entry in fs::read_dir(&root)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("run-")
                && is_abandoned(&entry.path())
            {
                fs::remove_dir_all(entry.path())
                    .with_context(|| format!("removing {}", entry.path().display()))?;
            }
        }
        let dir = root.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let lock = File::create(dir.join("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { dir, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }
}

fn is_abandoned(dir: &Path) -> bool {
    match File::open(dir.join("lock")) {
        Ok(lock) => rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
        // Killed before it had one, or in a clean-up.
        Err(_) => true,
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("perf: {} stays: {error}", self.dir.display());
        }
    }
}

/// One node with what it needs.
pub(crate) struct Site {
    // In the order in which they go.
    pub(crate) node: Node,
    pub(crate) groups: Arc<Groups>,
    pub(crate) network: File,
    pub(crate) stop: Stop,
    _dir: Dir,
}

/// A directory that goes when nothing is mounted below it any more.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("perf: {} stays: {error}", self.0.display());
        }
    }
}

/// A registry behind a link, that serves an image to the nodes that are added.
pub(crate) fn registry(image: &Prepared, link: &NamedLink) -> Result<Registry> {
    let registry = Registry::builder().link(link.link).faults(link.faults()).start()?;
    image.serve(&registry)?;
    Ok(registry)
}

impl Site {
    pub(crate) fn start(scratch: &Scratch, registry: &Registry, stop: &Stop) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = Dir(scratch.path().join(format!("node-{number}")));
        fs::create_dir_all(&dir.0)?;
        let groups = Arc::new(Groups::new(format!("spanfs-perf-{}-{number}", std::process::id()))?);
        let node = Node::start(&dir.0, Network::Own).context("setting up a node")?;
        let network = node.network()?;
        registry
            .also_listen(spanfs_node::listen_in(&network, PORT).context("a node's loopback")?)?;
        Ok(Self { node, groups, network, stop: stop.clone(), _dir: dir })
    }

    /// The registry's name on this node.
    pub(crate) fn host() -> String {
        format!("127.0.0.1:{PORT}")
    }

    /// A command on the node, in a control group. `programs` stand first in PATH.
    pub(crate) fn command(&self, group: &str, programs: &[PathBuf]) -> Result<Command> {
        let enter = self.node.enter();
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{}exec \"$@\"", self.groups.enter(group)?)).arg("sh");
        command.arg(enter.get_program()).args(enter.get_args());
        for (name, value) in enter.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = programs.iter().cloned().chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(path)?);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.stdin(std::process::Stdio::null());
        Ok(command)
    }

    /// Runs a command to its end, which has to be a success.
    pub(crate) fn run(&self, command: &mut Command, patience: Duration) -> Result<Ended> {
        let ended = spanfs_node::run_for(command, patience, &|| self.stop.is_set());
        self.stop.check()?;
        let what = command.get_args().map(|word| word.to_string_lossy().into_owned());
        // Behind what enters the node.
        let what: Vec<_> = what.skip_while(|word| word != "--").skip(1).collect();
        let ended = ended.with_context(|| what.join(" "))?;
        if !ended.status.success() {
            let said = if ended.stderr.trim().is_empty() { &ended.stdout } else { &ended.stderr };
            bail!("{}: {}: {}", what.join(" "), ended.status, last_lines(said));
        }
        Ok(ended)
    }

    /// Starts a daemon and waits until its socket takes connections.
    pub(crate) fn daemon(&self, command: Command, name: &str, socket: &str) -> Result<Inside> {
        let mut inside = Inside::start(command, self.node.log(name)?)
            .with_context(|| format!("starting {name}: {}", self.tail(name)))?;
        let socket = self.node.path("run").join(socket);
        let is_up = spanfs_node::wait_for(START_TIME_MAX, || {
            Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok()
                || !inside.is_alive()
                || self.stop.is_set())
        })?;
        self.stop.check()?;
        if !inside.is_alive() || !is_up {
            bail!("{name} does not come up: {}", self.tail(name));
        }
        Ok(inside)
    }

    /// The last lines of a daemon's log.
    pub(crate) fn tail(&self, name: &str) -> String {
        let log = fs::read_to_string(self.node.path("log").join(name)).unwrap_or_default();
        last_lines(&log)
    }
}

pub(crate) fn last_lines(text: &str) -> String {
    const LINES: usize = 15;
    let lines: Vec<_> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
