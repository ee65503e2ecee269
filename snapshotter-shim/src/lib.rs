//! containerd's APIs turned into calls on the floors below.
//!
//! Knows nothing of FUSE details and HTTP details. From the outside in: [`grpc`] speaks containerd's
//! protocol, [`snapshotter`] makes durable on the disk what the pure [`state`] machine grants, and
//! [`layers`] shows layers that containerd need not unpack.
//!
//! Invariant: killed at any instruction, a node starts again with every snapshot that a caller was told of.
#![forbid(unsafe_code)]
#![expect(
    clippy::result_large_err,
    reason = "errors carry digests by value, and are made once a call, not per read"
)]

pub mod config;
pub mod containerd;
pub mod content_store;
pub mod credentials;
pub mod cri;
pub mod daemon;
pub mod grpc;
pub mod layers;
pub mod metrics;
pub mod snapshotter;
pub mod soci;
pub mod state;
pub mod store;

pub mod directories;
pub mod disk_usage;
pub mod filter;
pub mod mounts;
pub mod overlay_support;
