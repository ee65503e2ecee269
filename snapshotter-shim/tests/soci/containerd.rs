//! A containerd of the test's own: root, state and socket in a scratch directory, ended with it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use spanfs_snapshotter::containerd::{Client, ClientOptions};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// For a machine where many build at once.
const PATIENCE: Duration = Duration::from_secs(60);

const CONFIG: &str = r#"
version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt",
    "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[plugins."io.containerd.gc.v1.scheduler"]
  startup_delay = "10ms"
  schedule_delay = "0s"
"#;

pub(crate) struct Containerd {
    child: Child,
    scratch: TempDir,
    pub(crate) runtime: Runtime,
}

impl Containerd {
    /// Start one; `None`, said on stderr, where there can be none.
    pub(crate) fn start() -> Option<Self> {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path();
        std::fs::write(path.join("config.toml"), CONFIG).unwrap();
        let log = std::fs::File::create(path.join("log")).unwrap();
        let child = Command::new("containerd")
            .arg("--config")
            .arg(path.join("config.toml"))
            .arg("--root")
            .arg(path.join("root"))
            .arg("--state")
            .arg(path.join("state"))
            .arg("--address")
            .arg(path.join("c.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let is_root = rustix::process::geteuid().is_root();
        let problem = match (&child, is_root) {
            (Ok(_), true) => None,
            (Ok(_), false) => Some("it needs root".to_owned()),
            (Err(error), _) => Some(error.to_string()),
        };
        if let Some(problem) = problem {
            if let Ok(mut child) = child {
                end(&mut child);
            }
            if std::env::var_os("SPANFS_TEST_STRICT").is_some_and(|it| it == "1") {
                panic!("containerd is needed: {problem}");
            }
            eprintln!("skipped: containerd: {problem}");
            return None;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Some(Self { child: child.unwrap(), scratch, runtime })
    }

    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    pub(crate) fn address(&self) -> PathBuf {
        self.scratch().join("c.sock")
    }

    /// A client of the namespace `default`. Waits for the first answer.
    pub(crate) fn client(&self) -> Client {
        let options = ClientOptions {
            address: format!("unix://{}", self.address().display()),
            connect_time: PATIENCE,
            ..ClientOptions::default()
        };
        self.runtime.block_on(async {
            let client = Client::connect(&options).await.unwrap();
            let deadline = Instant::now() + PATIENCE;
            // It listens before its services are there.
            while let Err(error) = client.version().await {
                assert!(Instant::now() < deadline, "{error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            client
        })
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.scratch().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(5).collect();
            eprintln!("containerd's last lines, backwards: {lines:#?}");
        }
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // Both fail only where it has ended.
    let _ = child.kill();
    let _ = child.wait();
}
