//! Programs in a node's namespaces, known by the process ids of this side, and never waited for
//! without a deadline.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const POLL: Duration = Duration::from_millis(2);

/// Waits until `found` holds; false after `patience`.
pub fn wait_for(
    patience: Duration,
    mut found: impl FnMut() -> io::Result<bool>,
) -> io::Result<bool> {
    let end = Instant::now() + patience;
    while !found()? {
        if Instant::now() > end {
            return Ok(false);
        }
        std::thread::sleep(POLL);
    }
    Ok(true)
}

/// The only child of a process.
pub fn child_of(parent: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Sends a signal; false if there is no such process.
pub fn signal(pid: u32, signal: Signal) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

/// Runs a program to its end. One that goes on after `patience`, or when `stop` holds, is killed.
pub fn run_for(
    command: &mut Command,
    patience: Duration,
    stop: &dyn Fn() -> bool,
) -> io::Result<Ended> {
    let mut output = [temporary()?, temporary()?];
    command.stdout(output[0].try_clone()?).stderr(output[1].try_clone()?);
    let mut child = Owned(command.spawn()?);
    let mut status = None;
    let ended = wait_for(patience, || {
        status = child.0.try_wait()?;
        Ok(status.is_some() || stop())
    })?;
    let [stdout, stderr] = output.each_mut().map(|file| {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes))?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    });
    let (stdout, stderr) = (stdout?, stderr?);
    match status {
        Some(status) => Ok(Ended { status, stdout, stderr }),
        None if ended => Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted")),
        None => {
            let reason = format!("goes on after {} s\n{stdout}{stderr}", patience.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, reason))
        }
    }
}

/// A file without a name.
fn temporary() -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    Ok(rustix::fs::open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// A child that does not outlive this value.
#[derive(Debug)]
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that goes on in a node's namespaces.
#[derive(Debug)]
pub struct Inside {
    entered: Owned,
    /// Its id on this side.
    pub pid: u32,
}

impl Inside {
    /// Starts a command of [`crate::Node::enter`]; its output goes to `log`.
    pub fn start(mut command: Command, log: File) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut entered = Owned(command.spawn()?);
        let mut pid = None;
        wait_for(Duration::from_secs(20), || {
            pid = child_of(entered.0.id());
            Ok(pid.is_some() || entered.0.try_wait()?.is_some())
        })?;
        let pid = pid.ok_or_else(|| io::Error::other("the program ended at once"))?;
        Ok(Self { entered, pid })
    }

    /// Whether it has not ended.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.entered.0.try_wait(), Ok(None))
    }

    /// Ends it with a signal and waits until it is gone; false if it is not within `patience`.
    pub fn end(mut self, with: Signal, patience: Duration) -> io::Result<bool> {
        signal(self.pid, with);
        wait_for(patience, || Ok(self.entered.0.try_wait()?.is_some()))
    }
}
