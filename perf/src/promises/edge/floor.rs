//! What a request and its reply cost at least on this machine: a byte sent to another thread and back.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::pipe::pipe;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

const ROUNDS: usize = 30_000;

/// Where the two threads may run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cpus {
    /// Both on the same.
    One,
    /// Each on its own.
    Two,
    /// The scheduler chooses, as it does for readers and servers.
    Any,
}

/// Median time of a byte there and back through pipes, no third thread and no other file.
pub(super) fn ping_pong(cpus: Cpus) -> Result<Duration> {
    let (question, ask) = pipe()?;
    let (answer, reply) = pipe()?;
    let allowed = sched_getaffinity(None)?;
    let mut each = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let (first, other) = (each.next(), each.next());
    let (first, second) = match cpus {
        Cpus::One => (first, first),
        Cpus::Two => (first, other),
        Cpus::Any => (None, None),
    };
    std::thread::scope(|scope| {
        scope.spawn(move || echo(second, &question, &reply));
        // A thread of its own, whose CPUs nobody inherits.
        let asking = scope.spawn(move || ask_again_and_again(first, &ask, &answer));
        asking.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the asking thread panicked")))
    })
}

fn pin(cpu: Option<usize>) -> Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Until the other end closes.
fn echo(cpu: Option<usize>, question: &OwnedFd, reply: &OwnedFd) -> Result<()> {
    pin(cpu)?;
    let mut byte = [0];
    while rustix::io::read(question, &mut byte)? == 1 {
        rustix::io::write(reply, &byte)?;
    }
    Ok(())
}

fn ask_again_and_again(cpu: Option<usize>, ask: &OwnedFd, answer: &OwnedFd) -> Result<Duration> {
    pin(cpu)?;
    let mut byte = [0];
    let mut took = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        rustix::io::write(ask, &byte)?;
        rustix::io::read(answer, &mut byte)?;
        took.push(start.elapsed());
    }
    took.sort_unstable();
    Ok(took[ROUNDS / 2])
}
