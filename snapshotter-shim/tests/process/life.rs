use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Command, Output};

use spanfs_snapshotter::grpc::proto::snapshots::PrepareSnapshotRequest;

use crate::node::{Node, PATIENCE, PROGRAM};

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn serves_privately_and_stops_when_told() {
    let root = tempfile::tempdir().unwrap();
    for signal in ["TERM", "INT"] {
        let mut node = Node::start(root.path());
        let mut client = node.connect().await;
        let key = format!("key/{signal}");
        let request = PrepareSnapshotRequest { key, ..Default::default() };
        client.prepare(request).await.unwrap();
        assert_eq!(mode(&node.socket), 0o600);
        assert_eq!(mode(&root.path().join("state/snapshotter")), 0o700);
        node.signal(signal);
        let socket = node.socket.clone();
        let (status, log) = node.wait();
        assert!(status.success(), "{status}: {log}");
        assert!(!socket.exists(), "a clean end leaves no socket");
        for line in log.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(line["time"].is_string() && line["level"].is_string(), "{line}");
        }
        assert!(log.contains("\"msg\":\"spanfs-snapshotter successfully started\""), "{log}");
    }
}

#[tokio::test]
async fn takes_the_socket_of_a_supervisor() {
    let root = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(root.path().join("theirs.sock")).unwrap();
    let mut node = Node::activate(root.path(), listener);
    let mut client = node.connect().await;
    let request = PrepareSnapshotRequest { key: "k".into(), ..Default::default() };
    client.prepare(request).await.unwrap();
    node.signal("TERM");
    let socket = node.socket.clone();
    let (status, log) = node.wait();
    assert!(status.success(), "{status}: {log}");
    assert!(socket.exists(), "the supervisor's socket is not ours to remove");
}

#[test]
fn a_second_one_does_not_take_over() {
    let root = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut node = Node::start(root.path());
    runtime.block_on(node.connect());
    let (status, log) = Node::start(root.path()).wait();
    assert!(!status.success() && log.contains("\"level\":\"error\""), "{log}");
    runtime.block_on(node.connect());
}

#[test]
fn tells_its_supervisor() {
    let root = tempfile::tempdir().unwrap();
    let supervisor = UnixDatagram::bind(root.path().join("notify")).unwrap();
    supervisor.set_read_timeout(Some(PATIENCE)).unwrap();
    let config = root.path().join("config.toml");
    fs::write(&config, "skip_check_snapshotter_supported = true").unwrap();
    let path = |name: &str| root.path().join(name);
    let child = Command::new(PROGRAM)
        .arg("--config")
        .arg(config)
        .arg("--root")
        .arg(path("state"))
        .arg("--address")
        .arg(path("sock"))
        .env("NOTIFY_SOCKET", path("notify"))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let node = Node { child, socket: path("sock") };
    let receive = || {
        let mut buffer = [0; 64];
        let len = supervisor.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    assert_eq!(receive(), "READY=1");
    assert!(node.socket.exists(), "READY means that it listens");
    node.signal("TERM");
    assert_eq!(receive(), "STOPPING=1");
    assert!(node.wait().0.success());
}

#[test]
fn settings_are_checked_before_anything_is_touched() {
    let root = tempfile::tempdir().unwrap();
    let config = root.path().join("config.toml");
    let (config, state) = (config.to_str().unwrap(), root.path().join("state"));
    fs::write(config, "\nmount_timout_sec = 5\n").unwrap();
    for more in [&["--check-config"][..], &["config", "dump"], &[]] {
        let arguments = [&["--root", state.to_str().unwrap(), "--config", config], more].concat();
        let output = run(&arguments);
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains("line 2: unknown key mount_timout_sec"), "{log}");
        assert!(log.contains("did you mean mount_timeout_sec?"), "{log}");
        assert!(!state.exists());
    }
    fs::write(config, "mount_timeout_sec = 5\n").unwrap();
    assert!(run(&["--config", config, "--check-config"]).status.success());
    let dump = run(&["--config", config, "config", "dump"]);
    assert!(String::from_utf8(dump.stdout).unwrap().contains("\nmount_timeout_sec = 5\n"));
    let default = run(&["config", "default"]);
    assert!(String::from_utf8(default.stdout).unwrap().contains("\nmount_timeout_sec = 30\n"));
}

#[test]
fn answers_by_the_name_it_is_called() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("soci-snapshotter-grpc");
    std::os::unix::fs::symlink(PROGRAM, &link).unwrap();
    for (program, name) in
        [(link.as_path(), "soci-snapshotter-grpc"), (Path::new(PROGRAM), "spanfs-snapshotter")]
    {
        let output = Command::new(program).arg("--version").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with(&format!("{name} version ")), "{text}");
        assert_eq!(text.split_whitespace().count(), 4, "{text}");
    }
}
