//! A program of an image, started both ways: downloaded and unpacked first, or mounted at once.
//!
//! What `demo` and `bench` share: from the beginning to the program's first output and to its end.

mod eager;

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

pub(crate) use eager::download_and_start;

/// What both ways of starting share.
pub(crate) struct Stages<'a> {
    pub(crate) asked: &'a Image,
    pub(crate) command: &'a [String],
    pub(crate) directory: &'a Path,
    pub(crate) registry: Option<&'a Registry>,
    /// Whether a mount fetches what nobody reads, as it does by default.
    pub(crate) background: bool,
    pub(crate) until: Until,
    pub(crate) stop: &'a AtomicBool,
    pub(crate) output: &'a Output,
}

/// How long a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// To its own end, which must be a good one.
    End,
    /// To its first output; then it is ended, as servers never end by themselves.
    FirstOutput,
}

/// How a start went.
#[derive(Debug)]
pub(crate) struct Started {
    /// From the beginning to the program's first byte on stdout.
    pub(crate) first_output: Duration,
    /// From the beginning to its end.
    pub(crate) ended: Duration,
    /// Bytes that came over the link by the first output, where we can count them.
    pub(crate) fetched_bytes: Option<u64>,
    /// Bytes of the image's layers.
    pub(crate) compressed_bytes: u64,
    /// What the program printed.
    pub(crate) said: String,
}

/// Longest that a program may take to say something.
const FIRST_OUTPUT_MAX: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(20);
/// A program's end is measured, not only waited for.
const POLL_END: Duration = Duration::from_millis(2);
const SAID_LEN_MAX: u64 = 64 << 10;

impl Stages<'_> {
    pub(crate) fn fetched(&self) -> Option<u64> {
        self.registry.map(|registry| registry.stats().bytes_sent)
    }

    /// This program again, with the options that reach the same image.
    pub(crate) fn again(&self, subcommand: &str) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg("--quiet").arg(subcommand).arg(&self.asked.image);
        if let Some(platform) = &self.asked.platform {
            command.arg("--platform").arg(platform);
        }
        if self.asked.access.plain_http {
            command.arg("--plain-http");
        }
        if let Some(directory) = &self.asked.access.hosts_dir {
            command.arg("--hosts-dir").arg(directory);
        }
        command.arg("--cache-dir").arg(self.directory.join("cache"));
        command
    }

    pub(crate) fn check_stop(&self) -> Result<(), Failure> {
        match self.stop.load(Ordering::SeqCst) {
            true => Err(Failure::new(Code::Failed, "comparing", "stopped")),
            false => Ok(()),
        }
    }
}

/// Run `spanfs run`, as anybody would, with what is in the cache.
pub(crate) fn mount_and_start(
    stages: &Stages<'_>,
    label: &str,
    compressed_bytes: u64,
) -> Result<Started, Failure> {
    if let Some(registry) = stages.registry {
        registry.reset_stats();
    }
    let mut command = stages.again("run");
    if !stages.background {
        command.arg("--no-background");
    }
    if !stages.command.is_empty() {
        command.arg("--").args(stages.command);
    }
    let since = Instant::now();
    let bar = stages.output.bar(label, compressed_bytes);
    wait(stages, command, since, bar, compressed_bytes)
}

/// Start the command, wait for its first byte and its end; fail if it fails.
pub(crate) fn wait(
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
        let stopped = stages.check_stop();
        if stopped.is_err() || since.elapsed() > FIRST_OUTPUT_MAX {
            end(&mut child);
            stopped?;
            let reason = format!("it said nothing within {} s", FIRST_OUTPUT_MAX.as_secs());
            return Err(Failure::new(Code::Failed, attempted, reason));
        }
    };
    let fetched_bytes = stages.fetched();
    bar.set(fetched_bytes.unwrap_or(0));
    let status = loop {
        let status = child.try_wait().map_err(failed)?;
        let stopped = stages.check_stop();
        if status.is_none() && (stopped.is_err() || stages.until == Until::FirstOutput) {
            end(&mut child);
            stopped?;
            break None;
        }
        if status.is_some() {
            break status;
        }
        std::thread::sleep(POLL_END);
    };
    let ended = since.elapsed();
    let said = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let said = said.map_err(failed)?;
    bar.finish(&format!("first output after {:.2} s", first_output.as_secs_f64()));
    if let Some(status) = status.filter(|status| !status.success()) {
        let reason = format!("it ended with {status}, having said {said:?}");
        return Err(Failure::new(Code::Failed, attempted, reason));
    }
    Ok(Started { first_output, ended, fetched_bytes, compressed_bytes, said })
}

/// Time for a child to put its things in order.
const END_TIME_MAX: Duration = Duration::from_secs(10);

/// End a child, in good order if it can.
pub(crate) fn end(child: &mut Child) {
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
