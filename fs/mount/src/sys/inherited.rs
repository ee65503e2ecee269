//! Descriptors that come as numbers.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::FdFlags;

/// `SD_LISTEN_FDS_START`.
const FIRST: RawFd = 3;

/// Descriptors that systemd passed to this process, as `LISTEN_FDS` and `LISTEN_FDNAMES` tell: those
/// whose names begin with `prefix`. Empty when asked again.
pub(crate) fn inherited(count: usize, names: &str, prefix: &str) -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let mut inherited = Vec::new();
    for (number, name) in (FIRST..).zip(names.split(':')).take(count) {
        if !name.starts_with(prefix) {
            continue;
        }
        // SAFETY: systemd opened `count` descriptors from FIRST on for us and nobody else has taken
        // one with our prefix: this function is their only taker and runs once (TAKEN); it is called
        // before anything of ours could have reused the number of one that was closed.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        if rustix::io::fcntl_setfd(&descriptor, FdFlags::CLOEXEC).is_ok() {
            inherited.push((name.to_owned(), descriptor));
        } else {
            std::mem::forget(descriptor); // It is not open: the environment lied.
        }
    }
    inherited
}
