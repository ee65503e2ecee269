//! A layer as a mounted filesystem: fronts, transports, errno.
//!
//! Knows nothing of registries, HTTP and containerd.
#![forbid(unsafe_code)]

mod errno;
pub mod filesystem;
pub mod front;
mod kernel_mount;
mod mount;
mod mounter;
pub mod mountinfo;
pub mod overlay;
pub mod policy;
pub mod probe;
pub mod record;
pub mod start_set;
pub mod transport;
pub mod unmount;

pub use errno::Errno;
pub use kernel_mount::KernelMountError;
pub use mount::{Busy, Ended, Mount, Shown, UnmountError};
pub use mounter::{Layer, MountError, Mounter, MounterOptions, Parts};
pub use record::{Recovered, recover};
