//! `soci run`: containerd's own client runs the container, as in releases up to 0.4, whose `run` was a copy
//! of it.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::super::SociError;
use super::super::error::go_text;
use super::super::session::Session;

const PROGRAM: &str = "ctr";
/// What `ctr` takes the snapshotter from, unless a flag names one.
const SNAPSHOTTER: &str = "CONTAINERD_SNAPSHOTTER";

/// Become `ctr run`; returns only if that fails.
pub(in crate::soci) fn run(session: &Session) -> Result<(), SociError> {
    let arguments = &session.arguments;
    let text = |name| arguments.text(name).unwrap_or_default();
    let address = text("address").trim_start_matches("unix://");
    let mut command = Command::new(PROGRAM);
    command.args(["--address", address, "--namespace", text("namespace"), "run"]);
    command.args(&arguments.positional);
    if std::env::var_os(SNAPSHOTTER).is_none_or(|name| name.is_empty()) {
        command.env(SNAPSHOTTER, "soci");
    }
    let error = command.exec();
    Err(SociError::said(format!("running {PROGRAM}, containerd's client: {}", go_text(&error))))
}
