//! The process: its flags, socket, log and life.

pub mod debug;
pub mod flags;
pub mod http;
pub mod life;
pub mod log;
pub mod notify;
pub mod reload;
pub mod socket;
