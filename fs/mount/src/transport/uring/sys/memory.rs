//! Memory that requests of one mount travel through: a memfd, which another process could keep.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::transport::READ_LEN_MAX;
use crate::transport::uring::envelope::HEADERS_LEN;

/// Room for a slot's headers: a page, so that its payload starts at one.
const HEADERS_ROOM: usize = 4096;
const SLOT_LEN: usize = HEADERS_ROOM + READ_LEN_MAX;

/// Where memory is put if nothing lies there. The kernel keeps the addresses that a slot was registered
/// with, so a process that is to take over (none does yet) must find them free; nothing else of a
/// process lies around 16 TiB.
const PLACE: usize = 0x1000_0000_0000;

/// The slots of a mount, each with the `owner` that they belong to. Pages that no request needed
/// take no memory.
pub(in super::super) struct Memory<O> {
    owner: O,
    _fd: OwnedFd,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: `start` is an address in memory shared by all threads, and mapped as long as the value
// lives; what lies there is reached through a `Slot` alone.
unsafe impl<O: Send> Send for Memory<O> {}
// SAFETY: as above; nothing behind `&Memory` touches the mapping.
unsafe impl<O: Sync> Sync for Memory<O> {}

impl<O> Memory<O> {
    /// The slots of `queues` queues, `depth` for each.
    pub(in super::super) fn slots(
        owner: O,
        queues: u16,
        depth: u16,
    ) -> rustix::io::Result<Vec<Slots<O>>> {
        let len = usize::from(queues) * usize::from(depth) * SLOT_LEN;
        let fd = rustix::fs::memfd_create("spanfs-ring", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        let place = std::ptr::without_provenance_mut(PLACE);
        // SAFETY: the address is a wish, not an order (no MAP_FIXED): nothing mapped is replaced.
        let start = unsafe { mmap(place, len, access, flags, &fd, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        let memory = Arc::new(Self { owner, _fd: fd, start, len });
        let of_queue = |queue| {
            let first = usize::from(queue) * usize::from(depth);
            let places = first..first + usize::from(depth);
            Slots { memory: Arc::clone(&memory), places, queue }
        };
        Ok((0..queues).map(of_queue).collect())
    }
}

impl<O> Drop for Memory<O> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, made with this length; every `Slot` holds an `Arc` of this
        // value, so none is left, and with them went every reference into it and every ring that
        // might let the kernel write there.
        if let Err(error) = unsafe { munmap(self.start.as_ptr().cast(), self.len) } {
            tracing::error!("ring memory stays mapped: {error}");
        }
    }
}

/// Slots of one queue that nobody has taken yet: each comes out once.
pub(in super::super) struct Slots<O> {
    memory: Arc<Memory<O>>,
    places: Range<usize>,
    queue: u16,
}

impl<O> Iterator for Slots<O> {
    type Item = Slot<O>;

    fn next(&mut self) -> Option<Slot<O>> {
        let at = self.places.next()? * SLOT_LEN;
        Some(Slot { memory: Arc::clone(&self.memory), at, queue: self.queue })
    }
}

/// Headers and payload of one request, and the right to touch them. Exactly one exists for each
/// place.
pub(in super::super) struct Slot<O> {
    memory: Arc<Memory<O>>,
    at: usize,
    queue: u16,
}

impl<O> Slot<O> {
    pub(in super::super) fn owner(&self) -> &O {
        &self.memory.owner
    }

    /// Number of the queue, and of the CPU, that it belongs to.
    pub(in super::super) fn queue(&self) -> u16 {
        self.queue
    }

    pub(super) fn headers_start(&self) -> NonNull<u8> {
        // SAFETY: `Slots` made `at` so that a whole slot lies within the mapping.
        unsafe { self.memory.start.add(self.at) }
    }

    pub(super) fn payload_start(&self) -> NonNull<u8> {
        // SAFETY: as above; the payload follows the headers within the slot.
        unsafe { self.headers_start().add(HEADERS_ROOM) }
    }

    pub(in super::super) fn headers(&self) -> &[u8; HEADERS_LEN] {
        // SAFETY: in the mapping, initialized (zeros at first), and nobody writes there: not the
        // kernel, as the ring does not have this slot, nor we, as that takes `&mut self`.
        unsafe { self.headers_start().cast().as_ref() }
    }

    pub(in super::super) fn headers_mut(&mut self) -> &mut [u8; HEADERS_LEN] {
        // SAFETY: as above, and `&mut self` is the only way to this slot.
        unsafe { self.headers_start().cast().as_mut() }
    }

    pub(in super::super) fn payload(&self) -> &[u8; READ_LEN_MAX] {
        // SAFETY: as for the headers, which end before it.
        unsafe { self.payload_start().cast().as_ref() }
    }

    pub(in super::super) fn payload_mut(&mut self) -> &mut [u8; READ_LEN_MAX] {
        // SAFETY: as for the headers.
        unsafe { self.payload_start().cast().as_mut() }
    }
}

impl<O: AsFd> AsFd for Slot<O> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.owner.as_fd()
    }
}
