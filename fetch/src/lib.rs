//! Byte ranges of a blob, from a registry or a local layout, in memory or in a file.
//!
//! Knows nothing of what a file or a span means. The pure parts (range plan, retry, parsers) stand
//! apart from the shells that move bytes (io_uring ring, blocking threads, hyper).
//!
//! Three types carry the crate: [`Blob`] (bytes behind one digest), [`Want`] (a range somebody needs,
//! and how urgently), [`Ticket`] (the hold on a want that is under way).
#![warn(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used))]

mod auth;
mod blob;
mod content;
mod credentials;
mod hosts;
mod locate;
mod proxy;
mod reference;
pub mod registry;
mod target;
mod transport;
mod trust;

pub use blob::{
    Blob, Class, FetchError, FetchErrorDetail, Fetched, Priority, Ticket, TicketControl, Want,
};
pub use content::Content;
pub use credentials::{CredentialSource, CredentialsError, Login, Secret};
pub use hosts::HostsError;
pub use proxy::{ProxyError, ProxyOptions};
pub use reference::{Reference, ReferenceError};
pub use registry::{
    OptionsError, RawManifest, Registry, RegistryError, RegistryLimits, RegistryOptions, Repository,
};
pub use target::{Locate, LocateError, Target, TargetFailure};
pub use trust::{TlsOptions, TrustError};
