//! A mount that outlives its command: this program again, which reports when it is ready.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rustix::process::setsid;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use serde_json::Value;

use crate::failure::Failure;

/// Start this program with the same arguments and wait for its report. What it has to say until then
/// goes to our stderr. `Err(code)`: it failed, said why, and ended with that code.
pub(crate) fn start() -> Result<Result<Value, ExitCode>, Failure> {
    let attempted = "starting the background process";
    let failed = |error: &io::Error| Failure::io(attempted, error);
    let mut child = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .arg("--background-process")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(|error| failed(&error))?;
    }
    if let Ok(report) = serde_json::from_str(&line) {
        return Ok(Ok(report));
    }
    let status = child.wait().map_err(|error| failed(&error))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(Err(ExitCode::from(code.max(1))))
}

/// Report to the command that started us, then leave its terminal: from now on stderr is `log`.
pub(crate) fn report_and_detach(report: &Value, log: &Path) -> io::Result<()> {
    setsid()?;
    writeln!(io::stdout().lock(), "{report}")?;
    File::create(log)?;
    // The one who waits for our end writes there, too.
    let log = File::options().append(true).open(log)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok(dup2_stderr(&log)?)
}
