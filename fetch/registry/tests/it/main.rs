//! The registry over its sockets.

mod client;
mod content;
mod faults;
mod link;
mod peers;
mod security;
