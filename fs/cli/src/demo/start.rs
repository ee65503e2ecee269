//! Starting a program and waiting for its first output.

use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use spanfs_registry::Registry;

use crate::arguments::Image;
use crate::failure::{Code, Failure};
use crate::output::Output;

/// What both ways of starting share.
pub(super) struct Stages<'a> {
    pub(super) asked: &'a Image,
    pub(super) command: &'a [String],
    pub(super) directory: &'a Path,
    pub(super) registry: Option<&'a Registry>,
    pub(super) stop: &'a AtomicBool,
    pub(super) output: &'a Output,
}

/// How a start went.
#[derive(Debug)]
pub(super) struct Started {
    /// From the beginning to the program's first byte on stdout.
    pub(super) first_output: Duration,
    /// Bytes that came over the link by then, where we can count them.
    pub(super) fetched_bytes: Option<u64>,
    /// Bytes of the image's layers.
    pub(super) compressed_bytes: u64,
    /// What the program printed.
    pub(super) said: String,
}

/// Longest that a program may take to say something.
const FIRST_OUTPUT_MAX: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(20);
const SAID_LEN_MAX: u64 = 64 << 10;

impl Stages<'_> {
    pub(super) fn fetched(&self) -> Option<u64> {
        self.registry.map(|registry| registry.stats().bytes_sent)
    }

    /// This program again, with the options that reach the same image.
    pub(super) fn again(&self, subcommand: &str) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg("--quiet").arg(subcommand).arg(&self.asked.image);
        if self.asked.access.plain_http {
            command.arg("--plain-http");
        }
        if let Some(directory) = &self.asked.access.hosts_dir {
            command.arg("--hosts-dir").arg(directory);
        }
        command.arg("--cache-dir").arg(self.directory.join("cache"));
        command
    }

    pub(super) fn check_stop(&self) -> Result<(), Failure> {
        match self.stop.load(Ordering::SeqCst) {
            true => Err(Failure::new(Code::Failed, "comparing", "stopped")),
            false => Ok(()),
        }
    }
}

/// Run `spanfs run`, as anybody would, with an empty cache.
pub(super) fn mount_and_start(
    stages: &Stages<'_>,
    compressed_bytes: u64,
) -> Result<Started, Failure> {
    if let Some(registry) = stages.registry {
        registry.reset_stats();
    }
    let mut command = stages.again("run");
    // The figures are to show what a start needs, not what idle time adds.
    command.arg("--no-background");
    if !stages.command.is_empty() {
        command.arg("--").args(stages.command);
    }
    let since = Instant::now();
    let bar = stages.output.bar("mount and start", compressed_bytes);
    let started = wait(stages, command, since, bar, compressed_bytes)?;
    Ok(started)
}

/// Start the command, wait for its first byte and its end; fail if it fails.
pub(super) fn wait(
    stages: &Stages<'_>,
    mut command: Command,
    since: Instant,
    mut bar: crate::output::Bar,
    compressed_bytes: u64,
) -> Result<Started, Failure> {
    let attempted = "starting the image's program";
    let failed = |error: io::Error| Failure::io(attempted, &error);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let Some(mut stdout) = child.stdout.take() else { unreachable!("stdout is piped") };
    let (first, arrived) = sync_channel(1);
    let reader = std::thread::spawn(move || -> io::Result<String> {
        let mut byte = [0];
        let count = stdout.read(&mut byte)?;
        // Whoever waits may have been told to stop.
        let _gone = first.send(Instant::now());
        let mut said = byte[..count].to_vec();
        (&mut stdout).take(SAID_LEN_MAX).read_to_end(&mut said)?;
        io::copy(&mut stdout, &mut io::sink())?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    });
    let first_output = loop {
        match arrived.recv_timeout(POLL) {
            Ok(at) => break at - since,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break since.elapsed(),
        }
        bar.set(stages.fetched().unwrap_or(0));
        if stages.stop.load(Ordering::SeqCst) || since.elapsed() > FIRST_OUTPUT_MAX {
            end(&mut child);
            return Err(Failure::new(Code::Failed, attempted, "stopped before it said anything"));
        }
    };
    let fetched_bytes = stages.fetched();
    bar.set(fetched_bytes.unwrap_or(0));
    let status = child.wait().map_err(failed)?;
    let said = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let said = said.map_err(failed)?;
    bar.finish(&format!("first output after {:.2} s", first_output.as_secs_f64()));
    stages.check_stop()?;
    if !status.success() {
        let reason = format!("it ended with {status}, having said {said:?}");
        return Err(Failure::new(Code::Failed, attempted, reason));
    }
    Ok(Started { first_output, fetched_bytes, compressed_bytes, said })
}

/// Time for a child to put its things in order.
const END_TIME_MAX: Duration = Duration::from_secs(10);

fn end(child: &mut Child) {
    // It may have ended by itself.
    let _ended = kill_process(Pid::from_child(child), Signal::TERM);
    let until = Instant::now() + END_TIME_MAX;
    while Instant::now() < until {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(POLL);
    }
    drop(child.kill());
    drop(child.wait());
}
