//! A node on this machine: mount and process namespaces with a `/run`, `/var/lib` and `/etc` of their
//! own, so that containerd and snapshotters run at their usual paths, and nodes run side by side.
//!
//! Shared by the end-to-end tests and the benchmark. Knows nothing of containerd or images. With a
//! [`Node`] ends everything that was started or mounted on it, also when its owner is killed.
//!
//! ```no_run
//! # fn main() -> std::io::Result<()> {
//! let dir = std::path::Path::new("/tmp/node");
//! let node = spanfs_node::Node::start(dir, spanfs_node::Network::Own)?;
//! let mut command = node.enter();
//! command.args(["ip", "address"]);
//! let ended = spanfs_node::run_for(&mut command, std::time::Duration::from_secs(5), &|| false)?;
//! assert!(ended.status.success());
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod network;
mod process;

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

pub use network::{in_network, listen_in};
pub use process::{Ended, Inside, child_of, run_for, signal, wait_for};

/// For a machine where many tests and builds run at once.
const PATIENCE: Duration = Duration::from_secs(120);

/// The first process of the namespaces: it arranges the mounts, then only adopts orphans.
const INIT: &str = r#"
mount --bind "$1/run" /run && mount --bind "$1/lib" /var/lib &&
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$1/etc,workdir=$1/etc-work" /etc &&
{ [ "$2" = host ] || ip link set lo up; } &&
touch "$1/ready" || touch "$1/refused"
while :; do sleep 1000 & wait; done
"#;

/// Directories that a node keeps below its own: the first three are its `/run`, `/var/lib` and what
/// it changes in `/etc`.
const DIRECTORIES: [&str; 8] =
    ["run", "lib", "etc", "etc-work", "tmp", "bin", "home/.docker", "log"];

/// Which network a node is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// That of this machine.
    Host,
    /// Its own: loopback, and nothing else.
    Own,
}

/// Namespaces with a first process. Whatever runs or is mounted there ends with this value.
#[derive(Debug)]
pub struct Node {
    /// By its id on this side.
    init: u32,
    network: Network,
    namespaces: Child,
    dir: PathBuf,
}

impl Node {
    /// Makes the namespaces, and the node's directories below `dir` where they are missing.
    pub fn start(dir: &Path, network: Network) -> io::Result<Self> {
        for directory in DIRECTORIES {
            fs::create_dir_all(dir.join(directory))?;
        }
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]);
        let (flag, name) = match network {
            Network::Host => (None, "host"),
            Network::Own => (Some("--net"), "own"),
        };
        command.args(flag);
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", INIT, "sh"])
            .arg(dir)
            .arg(name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("log/init"))?)
            // A terminal's Ctrl-C is for the owner, who ends the node in order.
            .process_group(0);
        let namespaces = command.spawn()?;
        let mut node = Self { init: 0, network, namespaces, dir: dir.to_owned() };
        let (ready, refused) = (dir.join("ready"), dir.join("refused"));
        let started = wait_for(PATIENCE, || {
            Ok(ready.exists() || refused.exists() || node.namespaces.try_wait()?.is_some())
        });
        if !matches!(started, Ok(true)) || !ready.exists() {
            let said = fs::read_to_string(dir.join("log/init")).unwrap_or_default();
            let reason = format!("the namespaces of a node are refused: {}", said.trim());
            return Err(io::Error::other(reason));
        }
        let parent = node.namespaces.id();
        node.init = child_of(parent).ok_or_else(|| io::Error::other("unshare has no child"))?;
        Ok(node)
    }

    /// A path below the node's own directory: `run`, `lib` and `etc` are what the node sees as
    /// `/run`, `/var/lib` and `/etc`.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// Id of the first process, on this side.
    pub fn init(&self) -> u32 {
        self.init
    }

    /// Its network namespace, to listen or connect in.
    pub fn network(&self) -> io::Result<File> {
        File::open(format!("/proc/{}/ns/net", self.init))
    }

    /// A command that enters the node; the program and its arguments are to be appended.
    pub fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--pid"]);
        if self.network == Network::Own {
            command.arg("--net");
        }
        command
            .arg("--")
            .env("TMPDIR", self.path("tmp"))
            .env("HOME", self.path("home"))
            .env_remove("DOCKER_CONFIG")
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// Log file of that name, to append to.
    pub fn log(&self, name: &str) -> io::Result<File> {
        File::options().create(true).append(true).open(self.path("log").join(name))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // With the first process of the namespaces goes every other.
        if self.init != 0 {
            signal(self.init, Signal::KILL);
        }
        let _ = self.namespaces.kill();
        let _ = self.namespaces.wait();
    }
}
