//! Spans: asked for, fetched, verified, inflated in parallel, kept in the layer file, dropped.
//!
//! Knows nothing of FUSE and containerd.
#![warn(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used))]

mod admission;
pub mod build;
mod cache;
mod content;
mod crc;
mod deflate;
mod error;
pub mod fuzz;
mod gather;
pub mod inflate;
mod journal;
mod layer;
mod layer_file;
mod life;
mod memory;
mod prefetch;
mod recover;
mod span_file;
mod sys;
#[cfg(test)]
mod testing;
mod verify;
mod whole;
mod windows;
mod works;

pub use cache::{Cache, CacheOptions, CacheStatus, Collected};
pub use content::{Content, Follower, ReadError, ReadReply};
pub use error::CacheError;
pub use layer::{KnownLayer, Layer, LayerSpec, LayerStatus, Role, Verification, Waits};
pub use prefetch::{Background, Image, ImageSpec, ImageStatus, Trace, TraceError};
pub use sys::give_back_memory;
pub use whole::{Buffer, LocalLayer, Origin, Program, Whole, WholeSpec, WholeToc};
