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
pub mod buffer;
mod connection;
mod content;
mod credentials;
mod driver;
mod engine;
pub mod fault;
#[doc(hidden)]
pub mod fuzz;
mod hosts;
mod http;
mod idle;
mod layout;
mod local;
mod locate;
mod mailbox;
mod memory;
#[cfg(test)]
mod memory_blob;
mod plan;
mod proxy;
mod ranges;
mod reference;
pub mod registry;
mod retry;
mod ring;
mod source;
mod stats;
mod sys;
mod target;
mod threads;
mod tls;
mod transfer;
mod transport;
mod trust;

pub use blob::{
    Blob, Class, FetchError, FetchErrorDetail, Fetched, Priority, Ticket, TicketControl, Want,
};
pub use content::Content;
pub use credentials::{
    CredentialLookup, CredentialSource, CredentialsError, DockerAuths, FindLogin, FoundLogin,
    Login, Secret,
};
pub use engine::{BlobSpec, Engine, EngineError, EngineKind, EngineOptions, fetch_blocking};
pub use hosts::HostsError;
pub use layout::{Layout, LayoutError, LayoutWriter, REF_NAME};
pub use local::{READERS_DEFAULT, ReadPool};
pub use plan::PlanOptions;
pub use proxy::{ProxyError, ProxyOptions};
pub use reference::{Reference, ReferenceError};
pub use registry::{
    OptionsError, PingError, Pong, REQUESTS, RawManifest, Registry, RegistryError, RegistryLimits,
    RegistryOptions, Repository, Upload,
};
pub use retry::RetryOptions;
pub use source::{
    BlobOpener, ChosenImage, ImageRef, ImageRefError, Nearby, NearbyFound, ResolvedImage, Source,
    SourceError, SourceOptions,
};
pub use stats::EngineStats;
pub use target::{Locate, LocateError, Target, TargetFailure};
pub use trust::{TlsOptions, TrustError};
