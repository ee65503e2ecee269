//! The process behind a background mount, twice: one that serves, and one that waits for its end and,
//! should it be killed, starts its successor. Readers wait meanwhile, as `spanfs-hold` keeps their
//! connection.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal as Number, kill_process, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::failure::Failure;
use crate::signals::{self, Signal};

/// How often the server is looked at: a pause of readers is longer by half of it.
const POLL: Duration = Duration::from_millis(10);
/// Successors that live shorter than this bring the end of the mount nearer: what killed them comes
/// again with the requests that they were killed by.
const SHORT_LIFE: Duration = Duration::from_millis(300);
const SHORT_LIVES_MAX: u32 = 5;
/// Exit status of a Rust program whose main thread panicked.
const PANICKED: i32 = 101;
/// Between the end of a short life and the next.
const PAUSE: Duration = Duration::from_millis(300);

/// What the serving process is started with.
pub(crate) const SERVE: &str = "--serving-process";
/// And its successors.
pub(crate) const SUCCEED: &str = "--succeeding-process";

/// Start the server with our own arguments, pass its report on, leave the terminal for `log`, and see to
/// it that somebody serves until the mount ends. `give_up` ends a mount that nobody can serve.
pub(crate) fn supervise(
    log: &Path,
    give_up: impl Fn() -> Result<(), Failure>,
) -> Result<ExitCode, Failure> {
    let failed = |error: io::Error| Failure::io("starting the serving process", &error);
    let (sender, signals) = channel::<Signal>();
    let orderly = signals::listen(sender).map_err(failed)?;
    let mut server = start(SERVE, Stdio::piped()).map_err(failed)?;
    let mut report = String::new();
    if let Some(stdout) = server.stdout.take() {
        BufReader::new(stdout).read_line(&mut report).map_err(failed)?;
    }
    if report.is_empty() {
        return Ok(code_of(server.wait().map_err(failed)?));
    }
    orderly.begin();
    detach(&report, log).map_err(failed)?;
    let (mut born, mut short_lives) = (Instant::now(), 0);
    loop {
        let status = wait(&mut server, &signals).map_err(failed)?;
        if status.success() {
            return Ok(ExitCode::SUCCESS);
        }
        short_lives = if is_wasted(status, born.elapsed()) { short_lives + 1 } else { 0 };
        if short_lives > SHORT_LIVES_MAX {
            tracing::error!(%status, "the mount ends: its server ends again and again");
            give_up()?;
            return Ok(ExitCode::FAILURE);
        }
        tracing::error!(%status, "the server is gone; another goes on with the mount");
        if short_lives > 1 {
            std::thread::sleep(PAUSE);
        }
        born = Instant::now();
        server = start(SUCCEED, Stdio::null()).map_err(failed)?;
    }
}

/// Whether a life brings the end of the mount nearer. One that ended by its own decision may have waited
/// long for what it lacks: a registry that is gone, say.
fn is_wasted(status: ExitStatus, life: Duration) -> bool {
    status.code().is_some_and(|code| code != PANICKED) || life < SHORT_LIFE
}

fn start(how: &str, stdout: Stdio) -> io::Result<Child> {
    let own = std::env::args_os().skip(1).filter(|it| it != "--background-process");
    Command::new("/proc/self/exe").args(own).arg(how).stdin(Stdio::null()).stdout(stdout).spawn()
}

/// Wait for its end; signals are passed on.
fn wait(server: &mut Child, signals: &Receiver<Signal>) -> io::Result<ExitStatus> {
    let pid = Pid::from_child(server);
    loop {
        if let Some(status) = server.try_wait()? {
            return Ok(status);
        }
        match signals.recv_timeout(POLL) {
            Ok(Signal(_)) => {
                let _ended = kill_process(pid, Number::TERM);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL),
        }
    }
}

fn code_of(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    ExitCode::from(code)
}

/// Pass the report on and leave the terminal.
fn detach(report: &str, log: &Path) -> io::Result<()> {
    let _leads_one = setsid();
    io::stdout().lock().write_all(report.as_bytes())?;
    let log = File::options().create(true).append(true).open(log)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok(dup2_stderr(&log)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    /// A successor that gave up after 30 s of waiting for its registry was started again for ever.
    #[test]
    fn lives_that_end_by_decision_or_at_once_are_wasted() {
        let killed = ExitStatus::from_raw(9);
        let exited = |code: i32| ExitStatus::from_raw(code << 8);
        let long = Duration::from_secs(30);
        assert!(is_wasted(exited(1), long));
        assert!(is_wasted(killed, Duration::ZERO) && is_wasted(exited(PANICKED), Duration::ZERO));
        assert!(!is_wasted(killed, long) && !is_wasted(exited(PANICKED), long));
    }
}
