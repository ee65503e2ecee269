//! A layer as a mounted filesystem: fronts, transports, errno.
//!
//! Knows nothing of registries, HTTP and containerd.
#![forbid(unsafe_code)]

mod errno;
pub mod filesystem;
pub mod front;
pub mod mountinfo;
pub mod transport;
pub mod unmount;

pub use errno::Errno;
