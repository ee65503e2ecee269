//! Spans: asked for, fetched, verified, inflated in parallel, kept in the layer file, dropped.
//!
//! Knows nothing of FUSE and containerd.
#![warn(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used))]

pub mod build;
mod content;
pub mod inflate;
mod sys;

pub use content::{Content, ReadError, ReadReply};
