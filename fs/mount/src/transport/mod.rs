//! Between a [`crate::filesystem::Filesystem`] and the kernel.

pub mod connection;
pub mod fuse3;
