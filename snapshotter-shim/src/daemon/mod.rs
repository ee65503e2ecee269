//! The process: its flags, socket, log and life.

pub mod flags;
pub mod life;
pub mod log;
pub mod notify;
pub mod socket;
