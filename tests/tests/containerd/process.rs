//! Programs in a node's namespaces, known by the process ids of this side, and never waited for
//! without a deadline.

use std::fs;
use std::io::{Read, Seek};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use spanfs_tests::peers::Guard;

const POLL: Duration = Duration::from_millis(5);

/// Waits until `found` gives something; panics with `what` after `patience`.
pub(crate) fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut found: impl FnMut() -> Option<T>,
) -> T {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {patience:?}");
        std::thread::sleep(POLL);
    }
}

/// The only child of a process.
pub(crate) fn child_of(parent: u32) -> Option<u32> {
    let processes = fs::read_dir("/proc").expect("/proc");
    let mut pids =
        processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| parent_of(*pid) == Some(parent))
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// Sends a signal; false if there is no such process.
pub(crate) fn signal(pid: u32, signal: Signal) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).is_ok()
}

/// How a program ended and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a program to its end, which comes within `patience`, or panics.
pub(crate) fn run_for(command: &mut Command, patience: Duration) -> Ended {
    let mut stdout = tempfile::tempfile().expect("temporary file");
    let mut stderr = tempfile::tempfile().expect("temporary file");
    command
        .stdout(stdout.try_clone().expect("temporary file"))
        .stderr(stderr.try_clone().expect("temporary file"));
    let mut child = Guard(command.spawn().expect("the program starts"));
    let end = Instant::now() + patience;
    let status = loop {
        if let Some(status) = child.0.try_wait().expect("a child") {
            break Some(status);
        }
        if Instant::now() > end {
            break None;
        }
        std::thread::sleep(POLL);
    };
    let text = |file: &mut fs::File| {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("temporary file");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (stdout, stderr) = (text(&mut stdout), text(&mut stderr));
    match status {
        Some(status) => Ended { status, stdout, stderr },
        None => panic!("{command:?} goes on after {patience:?}\n{stdout}{stderr}"),
    }
}

/// A program that goes on in a node's namespaces.
pub(crate) struct Inside {
    entered: Child,
    /// Its id on this side.
    pub(crate) pid: u32,
}

impl Inside {
    /// Starts `program` with the namespaces of `init`; its output goes to `log`.
    pub(crate) fn start(mut enter: Command, log: fs::File) -> Self {
        let entered = enter
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log file"))
            .stderr(log)
            .spawn()
            .expect("nsenter starts");
        let parent = entered.id();
        let pid = wait_for("nsenter's child", Duration::from_secs(20), || child_of(parent));
        Self { entered, pid }
    }

    /// Whether it has not ended.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.entered.try_wait().expect("a child").is_none()
    }

    /// Ends it with a signal and waits until it is gone.
    pub(crate) fn end(mut self, with: Signal, patience: Duration) {
        signal(self.pid, with);
        wait_for("the end of a process", patience, || self.entered.try_wait().expect("a child"));
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // What nsenter waits for is ended with its namespaces; this is only the one who waits.
        let _ = self.entered.kill();
        let _ = self.entered.wait();
    }
}
