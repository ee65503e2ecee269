//! A blob that is in memory: the simplest implementation of the port, for tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use spanfs_layer::Digest;

use crate::blob::{Blob, Fetched, Priority, Ticket, TicketControl, Want};

pub(crate) struct MemoryBlob {
    digest: Digest,
    content: Vec<u8>,
    pub(crate) wants_count: AtomicUsize,
}

/// A ticket's hold on nothing.
pub(crate) struct Nothing;

impl TicketControl for Nothing {
    fn promote(&self, _: Priority) {}
    fn cancel(&self) {}
}

impl MemoryBlob {
    pub(crate) fn new(content: Vec<u8>) -> Arc<Self> {
        let digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        Arc::new(Self { digest, content, wants_count: AtomicUsize::new(0) })
    }
}

impl Blob for MemoryBlob {
    fn digest(&self) -> &Digest {
        &self.digest
    }

    fn size(&self) -> u64 {
        self.content.len() as u64
    }

    fn want(&self, want: Want) -> Ticket {
        self.wants_count.fetch_add(1, Ordering::SeqCst);
        let mut bytes = vec![0xee; want.headroom];
        bytes.extend_from_slice(&self.content[want.range.start as usize..want.range.end as usize]);
        (want.reply)(Ok(Fetched { bytes, headroom: want.headroom }));
        Ticket::new(Arc::new(Nothing))
    }
}
