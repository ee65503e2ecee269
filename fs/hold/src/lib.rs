//! Keeps descriptors for a process that may die: FUSE connections outlive whoever serves them.
//!
//! The program `spanfs-hold` is given named descriptors over a socket and gives them back to whoever
//! asks next, as systemd's descriptor store does. It knows nothing of what they are, reads none of
//! them, and has no other job; so there is nothing in it to update, and little to go wrong.
//!
//! [`message`] is the protocol, pure; [`serve()`] is the loop. The other side of the socket is
//! `spanfs-mount`'s `hold`.
#![forbid(unsafe_code)]

pub mod message;
mod serve;

pub use serve::serve;
