//! A node: containerd and our daemon as the peer is installed, at their usual paths.
//!
//! `/run`, `/var/lib` and `/etc` are the node's own; the rest of the file system and the network are
//! those of this machine. The daemon runs under the peer's name with no flag at all but the log level.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rustix::process::Signal;
use spanfs_node::{Inside, Network};
use tempfile::TempDir;

use crate::ctr::Ctr;
use crate::process::{Ended, end, run_for, wait_for};
use crate::versions::Version;

/// For a machine where many tests and builds run at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Of one `ctr` command.
const COMMAND_PATIENCE: Duration = Duration::from_secs(180);
/// Of a log, shown when a test fails.
const TAIL_LINES: usize = 30;
const DAEMON: &str = "soci-snapshotter-grpc";
pub(crate) const DAEMON_SOCKET: &str = "run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock";
const DAEMON_ROOT: &str = "lib/soci-snapshotter-grpc";
pub(crate) const CONTAINERD_SOCKET: &str = "run/containerd/containerd.sock";

/// What a node is set up with.
pub(crate) struct Setup<'a> {
    /// The containerd of the node.
    pub(crate) version: Version,
    /// The peer's `config.toml`, ours to read.
    pub(crate) config: &'a str,
    /// Image of CRI's sandboxes.
    pub(crate) sandbox: &'a str,
    /// containerd's configuration, in place of the one that the peer's documentation shows.
    pub(crate) containerd: Option<&'a str>,
    /// CRI discards layers that are unpacked.
    pub(crate) discards: bool,
    /// In one of its own, registries are reached as `/etc/containerd/certs.d` says.
    pub(crate) network: Network,
}

impl Setup<'_> {
    /// With the defaults of everything.
    pub(crate) fn of(version: Version) -> Self {
        let (network, containerd) = (Network::Host, None);
        let sandbox = "localhost/none:1";
        Self { version, config: "", sandbox, containerd, discards: false, network }
    }
}

/// A running node. Whatever runs or is mounted on it ends with it.
pub(crate) struct Node {
    /// Unique among nodes; names of containers begin with it.
    pub(crate) id: String,
    pub(crate) version: Version,
    /// Behind a lock, so that it can be ended and started while others use the node.
    daemon: Mutex<Option<Inside>>,
    containerd: Option<Inside>,
    /// Its namespaces; none once they have ended.
    namespaces: Option<spanfs_node::Node>,
    dir: TempDir,
}

impl Node {
    pub(crate) fn start(setup: &Setup<'_>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("spanfs-{}-{count}", std::process::id());
        let dir = TempDir::with_prefix("spanfs-node-").expect("temporary directory");
        lay_out(dir.path(), setup);
        let namespaces = spanfs_node::Node::start(dir.path(), setup.network);
        let namespaces = Some(namespaces.expect("the namespaces of a node"));
        let version = setup.version;
        let mut node =
            Self { id, version, daemon: Mutex::default(), containerd: None, namespaces, dir };
        node.start_daemon();
        node.start_containerd();
        node
    }

    /// A path below the node's own directory: `run`, `lib` and `etc` are what the node sees as
    /// `/run`, `/var/lib` and `/etc`.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// The root directory as the node sees it, with all that is mounted there.
    pub(crate) fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.namespaces().init()).into()
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Inside>> {
        self.daemon.lock().expect("nobody panicked with it")
    }

    /// The daemon's process.
    pub(crate) fn daemon_pid(&self) -> u32 {
        self.daemon().as_ref().expect("the daemon runs").pid
    }

    /// A command in the node's namespaces.
    pub(crate) fn enter(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.namespaces().enter();
        let path = format!("{}:{}", self.path("bin").display(), self.version.path());
        command.arg(program.as_ref()).env("PATH", path);
        command
    }

    fn namespaces(&self) -> &spanfs_node::Node {
        self.namespaces.as_ref().expect("the namespaces of a node that has not ended")
    }

    /// A port on the loopback interface that the node sees.
    pub(crate) fn listen(&self, port: u16) -> TcpListener {
        let network = self.namespaces().network().expect("a namespace");
        spanfs_node::listen_in(&network, port).expect("a free port")
    }

    fn log(&self, name: &str) -> fs::File {
        self.namespaces().log(name).expect("log file")
    }

    /// Starts the daemon as the peer is started.
    pub(crate) fn start_daemon(&self) {
        let mut place = self.daemon();
        assert!(place.is_none(), "the daemon runs already");
        let mut command = self.enter(self.path("bin").join(DAEMON));
        command.args(["--log-level", "debug"]).env("RUST_BACKTRACE", "1");
        let daemon = Inside::start(command, self.log("daemon")).expect("the daemon starts");
        let daemon = place.insert(daemon);
        let socket = self.dir.path().join(DAEMON_SOCKET);
        wait_for("the daemon's socket", PATIENCE, || {
            assert!(daemon.is_alive(), "the daemon ended");
            UnixStream::connect(&socket).ok()
        });
    }

    /// Ends the daemon: KILL at once, TERM and INT in order.
    pub(crate) fn stop_daemon(&self, with: Signal) {
        end(self.daemon().take().expect("the daemon runs"), with, PATIENCE);
    }

    /// Waits until containerd has found a daemon that was started again: it backs off for seconds.
    pub(crate) fn wait_for_reconnection(&self) {
        let probe = ["snapshots", "--snapshotter", "soci", "prepare", "probe"];
        wait_for("containerd's connection", PATIENCE, || self.default().attempt(&probe).ok());
        self.default().ctr(&["snapshots", "--snapshotter", "soci", "rm", "probe"]);
    }

    pub(crate) fn start_containerd(&mut self) {
        assert!(self.containerd.is_none(), "containerd runs already");
        let command = self.enter("containerd");
        let containerd = Inside::start(command, self.log("containerd")).expect("containerd starts");
        let containerd = self.containerd.insert(containerd);
        let socket = self.dir.path().join(CONTAINERD_SOCKET);
        wait_for("containerd's socket", PATIENCE, || {
            assert!(containerd.is_alive(), "containerd ended");
            UnixStream::connect(&socket).ok()
        });
        wait_for("containerd's answer", PATIENCE, || {
            self.default().attempt(&["plugins", "ls"]).ok()
        });
    }

    /// Runs any program on the node.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Ended {
        run_for(self.enter(program).args(arguments), COMMAND_PATIENCE)
    }

    /// The `soci` command: what it printed; panics with its complaint.
    #[track_caller]
    pub(crate) fn soci(&self, arguments: &[&str]) -> String {
        let ended = self.run("soci", arguments);
        assert!(ended.status.success(), "soci {arguments:?}: {}{}", ended.stdout, ended.stderr);
        ended.stdout
    }

    /// containerd's client in a namespace.
    pub(crate) fn within<'n>(&'n self, namespace: &'n str) -> Ctr<'n> {
        Ctr::new(self, namespace)
    }

    /// The client in the namespace that `ctr` uses by itself.
    pub(crate) fn default(&self) -> Ctr<'_> {
        self.within("default")
    }

    /// The full name of a container, unique on this machine.
    pub(crate) fn named(&self, name: &str) -> String {
        format!("{}-{name}", self.id)
    }

    /// Bytes of disk below the daemon's root, its database left out: that keeps its pages.
    pub(crate) fn disk_used(&self) -> u64 {
        disk_used(&self.path(DAEMON_ROOT))
    }

    /// Names of the daemon's snapshot directories.
    pub(crate) fn directories(&self) -> BTreeSet<String> {
        let path = self.path(DAEMON_ROOT).join("snapshotter/snapshots");
        let entries = fs::read_dir(path).expect("the daemon's directories");
        entries
            .map(|entry| entry.expect("entry").file_name().into_string().expect("text"))
            .collect()
    }

    /// The node's mounts as `(mount point, type, source)`, those of its containers left out.
    pub(crate) fn mounts(&self) -> Vec<(String, String, String)> {
        let table = fs::read_to_string(format!("/proc/{}/mounts", self.namespaces().init()))
            .expect("its mounts");
        let mut mounts = Vec::new();
        for line in table.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            let mut word = || words.next().expect("three words a line");
            let (source, point, kind) = (word(), word(), word());
            mounts.push((point, kind, source));
        }
        mounts
    }

    /// The log of `daemon` or `containerd`.
    pub(crate) fn read_log(&self, name: &str) -> String {
        fs::read_to_string(self.path("log").join(name)).unwrap_or_default()
    }

    fn tail(&self, name: &str) -> String {
        let log = self.read_log(name);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["containerd", "daemon"] {
                eprintln!("== the end of {}'s log of {name}\n{}", self.id, self.tail(name));
            }
        }
        // What runs or is mounted there goes with them.
        self.namespaces = None;
        remove_control_groups(&self.id);
        let root = self.dir.path().to_owned();
        let removed = fs::remove_dir_all(&root);
        if !std::thread::panicking() {
            removed.unwrap_or_else(|error| panic!("{} stays: {error}", root.display()));
        }
    }
}

fn lay_out(root: &Path, setup: &Setup<'_>) {
    for directory in ["etc/containerd", "etc/soci-snapshotter-grpc", "bin"] {
        fs::create_dir_all(root.join(directory)).expect("directory");
    }
    let config = setup.containerd.map_or_else(|| containerd_config(setup), str::to_owned);
    fs::write(root.join("etc/containerd/config.toml"), config).expect("write");
    if !setup.config.is_empty() {
        let path = root.join("etc/soci-snapshotter-grpc/config.toml");
        fs::write(path, setup.config).expect("write");
    }
    for (program, name) in [("spanfs-snapshotter", DAEMON), ("soci", "soci"), ("spanfs", "spanfs")]
    {
        let program = spanfs_tests::peers::built(program);
        std::os::unix::fs::symlink(program, root.join("bin").join(name)).expect("link");
    }
}

/// As the documentation of the peer tells its users, and as little beside it as a test machine needs:
/// where CI lacks `CAP_SYS_RESOURCE`, runc may not make a sandbox less likely to be killed.
fn containerd_config(setup: &Setup<'_>) -> String {
    let Setup { sandbox, discards, .. } = *setup;
    // 2.x pulls by itself, and not by the transfer service, where either of these is told: and then names
    // of layers come only with annotations.
    let discarding = match discards {
        true => "discard_unpacked_layers = true\n  disable_snapshot_annotations = false",
        false => "",
    };
    let hosts = match setup.network {
        Network::Host => "",
        Network::Own => "/etc/containerd/certs.d",
    };
    let images = match setup.version {
        Version::One => format!(
            r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{hosts}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "soci"
    disable_snapshot_annotations = false
    discard_unpacked_layers = {discards}
"#
        ),
        Version::Two => format!(
            r#"version = 3
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "soci"
  {discarding}
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = "{hosts}"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{sandbox}"
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = "linux"
  snapshotter = "soci"
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = "linux"
  snapshotter = "overlayfs"
"#
        ),
    };
    // 1.6 knows none of proxy plugins.
    let capabilities = match setup.version {
        Version::One => "",
        Version::Two => r#"capabilities = ["remap-ids"]"#,
    };
    format!(
        r#"{images}
[proxy_plugins.soci]
  type = "snapshot"
  address = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock"
  {capabilities}
  [proxy_plugins.soci.exports]
    root = "/var/lib/soci-snapshotter-grpc"
    enable_remote_snapshot_annotations = "true"
"#
    )
}

/// The groups of a node's containers: the kernel keeps them when their processes are gone.
fn remove_control_groups(id: &str) {
    let mut directories = vec![PathBuf::from("/sys/fs/cgroup")];
    let mut found = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                if path.to_str().is_some_and(|path| path.contains(id)) {
                    found.push(path.clone());
                }
                directories.push(path);
            }
        }
    }
    // containerd's namespaces have groups too; those that others use stay, for they are not empty.
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        found.extend(["default", "k8s.io"].map(|namespace| hierarchy.path().join(namespace)));
    }
    found
        .extend(["default", "k8s.io"].map(|namespace| Path::new("/sys/fs/cgroup").join(namespace)));
    // Deepest first.
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    for path in found {
        // A group that a dying process still holds is empty and harmless.
        let _ = fs::remove_dir(path);
    }
}

fn disk_used(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    let own = meta.blocks() * 512;
    if !meta.is_dir() {
        return if path.extension().is_some_and(|name| name == "redb") { 0 } else { own };
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| disk_used(&entry.path())).sum::<u64>()
}
