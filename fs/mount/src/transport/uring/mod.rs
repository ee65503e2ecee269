//! FUSE over io_uring: requests come on the CPU that made them, and are answered there.
//!
//! A mount is one of the `dev` transport first: greeting, forgets, and whatever else the kernel
//! sends by the device stay there, and so do the reads that wait. Once greeted, rings are attached
//! to it: for each *possible* CPU a queue of a few slots, all in one memfd, served by the thread
//! pinned to that CPU ([`queue`]), which all mounts share. From then on the kernel sends requests
//! that want a reply by the rings.

pub(crate) mod envelope;
mod helpers;
mod inbox;
mod late;
mod queue;
mod sys;

use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use self::helpers::Helpers;
use self::inbox::{Inbox, Message};
pub(super) use self::late::Late;
use self::queue::Queue;
use self::sys::Memory;
use super::dev::{Mounted, Shared};
use super::options::ServerOptions;

/// Requests of one CPU that a mount may have in our hands at the same time; more wait in the
/// kernel. Each that waits for its bytes holds a slot, and must not keep others from being answered.
const DEPTH_MAX: u16 = 512;

/// Slots of all queues of a mount that the kernel has for requests to come. Each costs it some 500
/// bytes, and us a page once it was used.
const READY: usize = 512;
/// Those of one queue: as many as programs read at once, but for many CPUs. Two are the least, so that
/// the next request is copied while the last is answered.
const READY_OF_QUEUE: RangeInclusive<usize> = 2..=64;

/// The threads of all CPUs; dropping them ends what they serve.
pub(super) struct Rings {
    inboxes: Vec<Arc<Inbox>>,
}

impl Rings {
    /// A thread for each possible CPU.
    pub(super) fn start(options: &ServerOptions, shared: &Arc<Shared>) -> io::Result<Self> {
        let helpers = Arc::new(Helpers::start(options.threads)?);
        let mut rings = Self { inboxes: Vec::new() };
        let cpus = possible_cpus()?;
        let ready = READY / usize::from(cpus.max(1));
        let ready = ready.clamp(*READY_OF_QUEUE.start(), *READY_OF_QUEUE.end());
        for cpu in 0..cpus {
            let inbox = Arc::new(Inbox::new()?);
            rings.inboxes.push(Arc::clone(&inbox));
            let (helpers, shared) = (Arc::clone(&helpers), Arc::clone(shared));
            let (sender, started) = mpsc::channel();
            let serve = move || {
                pin(cpu);
                match Queue::new(inbox, helpers, shared, ready) {
                    Ok(queue) => {
                        let _waiting = sender.send(Ok(()));
                        queue.run();
                    }
                    Err(error) => drop(sender.send(Err(error))),
                }
            };
            std::thread::Builder::new().name(format!("spanfs-ring-{cpu}")).spawn(serve)?;
            started.recv().map_err(io::Error::other)??;
        }
        Ok(rings)
    }

    /// Have the requests of a mount, which was greeted, come by rings.
    pub(super) fn attach(&self, mounted: &Arc<Mounted>, patience: Duration) -> io::Result<()> {
        let until = Instant::now() + patience;
        let queues = u16::try_from(self.inboxes.len()).map_err(io::Error::other)?;
        let slots = Memory::slots(Arc::clone(mounted), queues, DEPTH_MAX)?;
        let (told, attached) = mpsc::channel();
        for (inbox, slots) in self.inboxes.iter().zip(slots) {
            inbox.send(Message::Attach(slots, told.clone()));
        }
        for _ in &self.inboxes {
            let left = until.saturating_duration_since(Instant::now());
            attached.recv_timeout(left).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        for inbox in &self.inboxes {
            inbox.send(Message::Stop);
        }
    }
}

/// CPUs that may ever be there: the kernel waits for a queue of each before it uses any.
pub(crate) fn possible_cpus() -> io::Result<u16> {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = list.trim().rsplit(['-', ',']).next().and_then(|cpu| cpu.parse::<u16>().ok());
    last.and_then(|last| last.checked_add(1))
        .ok_or_else(|| io::Error::other(format!("no CPUs in {list:?}")))
}

/// Whether this process gets a ring of the kind that is needed.
pub(crate) fn try_ring() -> io::Result<()> {
    let inbox = Inbox::new()?;
    sys::Ring::<Arc<Mounted>>::new(inbox.event()).map(drop)
}

fn pin(cpu: u16) {
    let mut only = CpuSet::new();
    if usize::from(cpu) < CpuSet::MAX_CPU {
        only.set(cpu.into());
    }
    if let Err(error) = sched_setaffinity(None, &only) {
        tracing::debug!("no thread on CPU {cpu}: {error}"); // It may be offline.
    }
}
