//! Between a [`crate::filesystem::Filesystem`] and the kernel.

pub mod connection;
mod dev;
pub mod fuse3;
mod options;
mod protocol;
mod server;
mod session;

pub(crate) use options::READ_LEN_MAX;
pub use options::{FuseOptions, Privilege, ServerOptions, Transport};
pub use server::{ServeError, Server};
pub use session::Session;
