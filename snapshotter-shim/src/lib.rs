//! containerd's APIs turned into calls on the floors below.
//!
//! Knows nothing of FUSE details and HTTP details. From the outside in: [`grpc`] speaks containerd's
//! protocol, [`snapshotter`] makes durable on the disk what the pure [`state`] machine grants.
//! Lazy layers are not served yet: containerd is left to unpack every layer itself.
//!
//! Invariant: killed at any instruction, a node starts again with every snapshot that a caller was told of.
#![forbid(unsafe_code)]

pub mod config;
pub mod containerd;
pub mod daemon;
pub mod grpc;
pub mod snapshotter;
pub mod state;
pub mod store;

pub mod directories;
pub mod disk_usage;
pub mod filter;
pub mod mounts;
pub mod overlay_support;
