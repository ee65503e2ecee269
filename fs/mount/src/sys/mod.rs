//! The only unsafe code of the crate: system calls that no crate of ours wraps.
#![expect(unsafe_code, reason = "system calls without a safe wrapper")]

mod id_map;
mod inherited;

pub(crate) use id_map::{NamespaceKeeper, map_owners};
pub(crate) use inherited::inherited;
