//! The snapshotter's process: does it listen, and does it understand its settings?

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use super::Finding;

/// Its names, that of the peer first: it chooses the settings file.
pub(crate) const PROGRAMS: [&str; 2] = ["soci-snapshotter-grpc", "spanfs-snapshotter"];

pub(super) fn look(socket: &Path) -> Vec<Finding> {
    let shown = socket.display();
    let listens = match UnixStream::connect(socket) {
        Ok(_) => Finding::ok("snapshotter", format!("listens at {shown}")),
        Err(error) => Finding::fault(
            "snapshotter",
            format!("{shown}: {error}"),
            "systemctl status soci-snapshotter, or name its socket with --socket",
        ),
    };
    let mut findings = vec![listens];
    findings.extend(PROGRAMS.into_iter().find_map(settings));
    findings
}

/// What a program says of its own settings; nothing if it is not installed.
fn settings(program: &str) -> Option<Finding> {
    let output = Command::new(program).arg("--check-config").stdin(Stdio::null()).output().ok()?;
    if output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        return Some(Finding::ok("settings", said.trim()));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // A log line: JSON with the reason in `error`.
    let reason = said
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|line| line["error"].as_str().map(str::to_owned))
        .unwrap_or_else(|| said.trim().to_owned());
    let advice = format!("mend the file; {program} --check-config reads it again");
    Some(Finding::fault("settings", format!("{program}: {reason}"), advice))
}
