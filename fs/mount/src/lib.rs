//! A layer as a mounted filesystem: fronts, transports, errno.
//!
//! Knows nothing of registries, HTTP and containerd.
//!
//! Three types carry the crate: [`Mounter`] makes mounts of layers ([`Layer`]) and images, by the
//! front that [`policy::choose`] picks from [`probe::Facts`]; [`Mount`] is one of them until its
//! end; [`filesystem::Filesystem`] is what a front is to a transport. [`start_set`] guesses what a
//! container will read first.
//!
//! What holds everywhere: a hit is answered on the thread that was asked, a miss holds no thread
//! and no buffer; nothing is served that the content does not vouch for; a mount of ours is never
//! looked at by path from a thread that serves one; whatever a kill leaves behind, a successor finds
//! by its record: what a [`hold`] has kept alive it goes on with ([`inherit`]), the rest [`recover`]
//! takes away.
//!
//! ```no_run
//! # fn show(layers: &[spanfs_mount::Layer]) -> Result<(), Box<dyn std::error::Error>> {
//! use spanfs_mount::overlay::OverlayOptions;
//! use spanfs_mount::{Busy, Mounter, MounterOptions};
//!
//! let mounter = Mounter::new(MounterOptions::new("/var/lib/spanfs/mounts"))?;
//! let mount = mounter.image(layers, "/mnt".as_ref(), &OverlayOptions::default())?;
//! mount.unmount(std::time::Duration::from_secs(10), Busy::Leave)?;
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

mod errno;
pub mod filesystem;
pub mod front;
#[doc(hidden)]
pub mod fuzz;
pub mod hold;
pub mod id_map;
pub mod inherit;
mod kept;
mod kernel_mount;
mod mount;
mod mounter;
pub mod mountinfo;
pub mod overlay;
pub mod policy;
pub mod probe;
pub mod record;
mod shortcuts;
pub mod start_set;
mod sys;
pub mod transport;
pub mod unmount;

pub use errno::Errno;
pub use inherit::{Inheritance, Inherited};
pub use kernel_mount::KernelMountError;
pub use mount::{Busy, Ended, Mount, PastUs, Shown, UnmountError};
pub use mounter::{Layer, MountError, Mounter, MounterOptions, Parts};
pub use record::{Recovered, recover};
