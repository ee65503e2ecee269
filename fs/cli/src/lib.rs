//! From an image's name to its layers, ready to be shown; and the making of SOCI indexes.
//!
//! The glue between the floors below, shared by the standalone command and the snapshotter. Prints
//! nothing, reads no environment, knows nothing of containerd.
//!
//! [`image::Images`] reaches registries and layouts; [`image::Image`] is one image, its documents
//! read and its SOCI index found; [`image::Layers`] are its layers, opened in the cache;
//! [`mounted::show`] mounts them.
#![forbid(unsafe_code)]
#![expect(
    clippy::result_large_err,
    reason = "errors carry digests by value, and are made once per image, not per read"
)]

pub mod image;
pub mod index;
mod later;
pub mod layer_index;
pub mod mounted;
mod side_by_side;
pub mod start;
