//! The only unsafe code of this program: its start.
#![expect(unsafe_code, reason = "the C library calls `main` by its name")]

use std::ffi::c_int;

/// Called by the C library, instead of by the standard library's own `main`: that one would look for the
/// end of our stack in `/proc/self/maps` first, and what it touches of the C library for it, a quarter of
/// all that we have in memory, would stay.
// SAFETY: no other symbol of that name is linked; `no_main` leaves it to us.
#[unsafe(no_mangle)]
extern "C" fn main() -> c_int {
    crate::run()
}
