//! An OCI registry in the process (distribution specification 1.1), with a shaped link and seeded
//! faults, for the demo, tests and benchmarks.
//!
//! It serves loopback from a thread of its own and dies with its handle. It is a stand-in for a
//! registry far away, not a registry to run: what it keeps is forgotten, and any push is taken.
//!
//! Three types carry the crate: [`Registry`] (the handle), [`Link`] (how far away it pretends to
//! be), [`Faults`] (what goes wrong, by rule or by seed). Everything served is counted in [`Stats`].
//!
//! ```
//! use spanfs_registry::{Link, Registry};
//!
//! let registry = Registry::builder().link(Link::CLOUD).start()?;
//! let digest = registry.put_blob("library/app", b"content".as_slice())?;
//! assert!(registry.url().starts_with("http://127.0.0.1:"));
//! assert!(registry.stats().blob(&digest).is_empty());
//! # Ok::<(), spanfs_registry::RegistryError>(())
//! ```
#![forbid(unsafe_code)]

mod answer;
mod auth;
mod blobs;
mod body;
mod connection;
mod faults;
mod layout;
mod link;
mod manifests;
mod range;
mod redirect;
mod registry;
mod route;
mod serve;
mod stats;
mod store;
mod uploads;

pub use auth::{Auth, Bearer, Credentials};
pub use faults::{Fault, Faults, Nth, Rule};
pub use link::Link;
pub use redirect::Redirect;
pub use registry::{Builder, Registry, RegistryError};
pub use stats::{Request, Stats};
