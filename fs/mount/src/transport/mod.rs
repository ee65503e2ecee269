//! Between a [`crate::filesystem::Filesystem`] and the kernel.

pub mod connection;
mod dev;
pub mod fuse3;
mod live;
mod options;
pub(crate) mod protocol;
mod server;
mod session;
pub(crate) mod uring;

pub(crate) use live::Live;
pub(crate) use options::READ_LEN_MAX;
pub use options::{CAPABILITIES, FuseOptions, Privilege, ServerOptions, Transport};
pub use server::{ServeError, Server};
pub use session::Session;
pub(crate) use uring::try_ring;
