//! A started program and a connection to it.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use spanfs_snapshotter::grpc::proto::snapshots::snapshots_client::SnapshotsClient;
use tonic::transport::{Channel, Endpoint};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_spanfs-snapshotter");
/// For a machine where many build at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Node {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
}

impl Node {
    /// Start at a socket below `root`, where also its state is. Whether overlayfs works is not tried,
    /// so that no test here needs to be root.
    pub(crate) fn start(root: &Path) -> Self {
        Self::start_with(root, "")
    }

    /// The same with more settings.
    pub(crate) fn start_with(root: &Path, settings: &str) -> Self {
        Self::start_by(root, settings, Command::new(PROGRAM))
    }

    /// The same by a command that needs nothing but the daemon's arguments.
    pub(crate) fn start_by(root: &Path, settings: &str, mut command: Command) -> Self {
        let socket = root.join("run/test.sock");
        command.arg("--address").arg(&socket).args(arguments(root, settings));
        // Nobody's own logins.
        command.env("DOCKER_CONFIG", root).stderr(Stdio::piped());
        Self { child: command.spawn().unwrap(), socket }
    }

    /// Start with a socket that is listened at already, as systemd does.
    pub(crate) fn activate(root: &Path, listener: UnixListener) -> Self {
        let socket = listener.local_addr().unwrap().as_pathname().unwrap().to_owned();
        let mut command = Command::new("sh");
        let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
        command
            .args(["-c", script, "sh", PROGRAM, "--address", "fd://"])
            .args(arguments(root, ""))
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stderr(Stdio::piped());
        Self { child: command.spawn().unwrap(), socket }
    }

    pub(crate) async fn connect(&mut self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel().await)
    }

    pub(crate) async fn channel(&mut self) -> Channel {
        let deadline = Instant::now() + PATIENCE;
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket.display())).unwrap();
        loop {
            match endpoint.connect().await {
                Ok(channel) => return channel,
                Err(error) => assert!(Instant::now() < deadline, "nobody listens: {error}"),
            }
            assert_eq!(self.child.try_wait().unwrap(), None, "the program ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// How it ended, and its log.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the program goes on");
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status, log)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Both fail only where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn arguments(root: &Path, settings: &str) -> [PathBuf; 4] {
    let config = root.join("config.toml");
    let text = format!("skip_check_snapshotter_supported = true\n{settings}");
    std::fs::write(&config, text).unwrap();
    ["--root".into(), root.join("state"), "--config".into(), config]
}

/// End the process that keeps the mounts of a node whose daemon was killed for good.
pub(crate) fn end_holder(root: &Path) {
    let socket = root.join("run/hold.sock");
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let argument = command.split(|&byte| byte == 0).nth(1);
        if argument == Some(socket.as_os_str().as_encoded_bytes()) {
            let _ = Command::new("kill").arg("-9").arg(entry.file_name()).status();
        }
    }
}
