//! What the allocator keeps.

/// Give memory that was freed back to the kernel.
///
/// glibc keeps what threads free in their arenas: after the indexes of 100 layers were made side by
/// side, 300 MiB that nobody needs. Takes about a millisecond per 100 MiB; for the end of something
/// large, not for a hot path. Other allocators do as they think best.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes no pointer and is safe to call from several threads (MT-Safe).
    unsafe {
        libc::malloc_trim(0);
    }
}
