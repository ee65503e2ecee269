//! containerd's APIs turned into calls on the floors below.
//!
//! Knows nothing of FUSE details and HTTP details. So far: the snapshots of a node ([`state`]), their
//! durable record ([`store`]) and containerd's filter language ([`filter`]).
#![forbid(unsafe_code)]

pub mod filter;
pub mod state;
pub mod store;
