//! Threads for reads that may take long: a queue's thread must not wait for a disk.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Sender, TrySendError, bounded};

use crate::transport::dev::Ticket;

/// Dropping it ends the threads, once they have done what was given to them.
pub(super) struct Helpers {
    sender: Sender<Ticket>,
}

/// Reads that wait for a thread. Each has a slot of a ring, so there are hardly ever as many.
const WAITING_MAX: usize = 4096;

impl Helpers {
    pub(super) fn start(threads: usize) -> std::io::Result<Self> {
        let (sender, receiver) = bounded::<Ticket>(WAITING_MAX);
        for number in 0..threads.max(1) {
            let receiver = receiver.clone();
            let name = format!("spanfs-fuse-help-{number}");
            std::thread::Builder::new().name(name).spawn(move || {
                for ticket in receiver {
                    // Our own mistake, told by the panic; the ticket was dropped, and has answered.
                    let _told = catch_unwind(AssertUnwindSafe(|| ticket.arrived(Ok(()))));
                }
            })?;
        }
        Ok(Self { sender })
    }

    /// Have a read answered.
    pub(super) fn give(&self, ticket: Ticket) {
        match self.sender.try_send(ticket) {
            Ok(()) => {}
            // All are busy: this thread does it.
            Err(TrySendError::Full(ticket) | TrySendError::Disconnected(ticket)) => {
                ticket.arrived(Ok(()));
            }
        }
    }
}
