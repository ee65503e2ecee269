//! The process behind a background mount, twice: one that serves, and one that waits for its end and,
//! should it be killed, starts its successor. Readers wait meanwhile, as `spanfs-hold` keeps their
//! connection.
//!
//! The mount's record says whether there is anything to go on with: `umount` takes it away, whether
//! somebody serves or not.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal as Number, kill_process, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use spanfs_mount::{MounterOptions, record};

use crate::failure::Failure;
use crate::runtime;
use crate::signals::{self, Signal};
use crate::{held, leftover};

/// How often the server is looked at: a pause of readers is longer by half of it.
const POLL: Duration = Duration::from_millis(10);
/// How often the mount's record is looked for.
const LOOK: Duration = Duration::from_millis(500);
/// A server that is told to end has given up its readers by then, or never will.
const END_TIME_MAX: Duration = Duration::from_secs(30);
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

/// A mount that somebody is to serve until it ends.
struct Supervised<'a> {
    /// Where it is.
    directory: &'a Path,
    /// Where records of mounts are kept.
    state: &'a Path,
    /// Its own; none where nobody can go on with it.
    record: Option<PathBuf>,
}

/// How the life of a server ended.
enum End {
    /// By itself or by somebody else.
    Ended(ExitStatus),
    /// We were told to end, and it with us.
    Told(ExitStatus),
}

/// Start the server with our own arguments, pass its report on, leave the terminal for its log, and see
/// to it that somebody serves until the mount in `directory` ends. Its record is kept in `state`.
pub(crate) fn supervise(directory: &Path, state: &Path) -> Result<ExitCode, Failure> {
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
    detach(&report, &runtime::log(directory)?).map_err(failed)?;
    let record = record::find(&MounterOptions::new(state).records(), directory).map_err(failed)?;
    let mount = Supervised { directory, state, record };
    let (mut born, mut short_lives) = (Instant::now(), 0);
    loop {
        let status = match mount.wait(&mut server, &signals).map_err(failed)? {
            End::Ended(status) | End::Told(status) if status.success() => {
                return Ok(ExitCode::SUCCESS);
            }
            End::Told(_) => {
                mount.give_up()?;
                mount.forget()?;
                return Ok(ExitCode::SUCCESS);
            }
            End::Ended(status) => status,
        };
        if !mount.is_recorded() {
            tracing::info!(%status, "the server is gone, and nobody can go on");
            if mount.record.is_none() {
                mount.give_up()?;
            }
            mount.forget()?;
            return Ok(ExitCode::SUCCESS);
        }
        short_lives = if is_wasted(status, born.elapsed()) { short_lives + 1 } else { 0 };
        if short_lives > SHORT_LIVES_MAX {
            tracing::error!(%status, "the mount ends: its server ends again and again");
            mount.give_up()?;
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

impl Supervised<'_> {
    /// Wait for the end of its server. Signals are passed on, and so is the end of a mount that the
    /// server has not gone on with yet.
    fn wait(&self, server: &mut Child, signals: &Receiver<Signal>) -> io::Result<End> {
        let pid = Pid::from_child(server);
        let end = |number| {
            let _ended = kill_process(pid, number);
        };
        let (mut told_at, mut look_at) = (None::<Instant>, Instant::now() + LOOK);
        loop {
            if let Some(status) = server.try_wait()? {
                let end = if told_at.is_some() { End::Told } else { End::Ended };
                return Ok(end(status));
            }
            match signals.recv_timeout(POLL) {
                Ok(Signal(_)) => {
                    end(Number::TERM);
                    told_at.get_or_insert_with(Instant::now);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL),
            }
            if told_at.is_some_and(|told| told.elapsed() > END_TIME_MAX) {
                end(Number::KILL);
            }
            if self.record.is_some() && Instant::now() > look_at {
                look_at = Instant::now() + LOOK;
                // A server that has ended it itself takes no notice.
                if !self.is_recorded() {
                    end(Number::TERM);
                }
            }
        }
    }

    /// Whether there is something to go on with.
    fn is_recorded(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.exists())
    }

    /// End it: nobody serves it, and its readers wait for somebody who does. Its log and its socket stay,
    /// to say why it ended, until somebody unmounts it.
    fn give_up(&self) -> Result<(), Failure> {
        held::end(self.directory, self.state)?;
        let attempted = || format!("ending the mount in {}", self.directory.display());
        leftover::unmount(self.directory).map_err(|error| Failure::io(attempted(), &error))?;
        remove(&runtime::pinned(self.directory)?)
    }

    /// It has ended as it was to: nothing is to be left of it.
    fn forget(&self) -> Result<(), Failure> {
        let records = MounterOptions::new(self.state).records();
        if record::find(&records, self.directory).is_ok_and(|another| another.is_some()) {
            return Ok(()); // It was mounted anew meanwhile.
        }
        let left = [runtime::pinned, runtime::log, runtime::socket];
        left.iter().try_for_each(|path| remove(&path(self.directory)?))
    }
}

fn remove(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::io(format!("removing {}", path.display()), &error))
        }
        _ => Ok(()),
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
