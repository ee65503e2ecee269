//! The FUSE protocol, without descriptor, thread or clock: what every transport of ours speaks.
//!
//! From the bottom: numbers ([`abi`]), codec ([`request`], [`reply`], [`init`]), meaning ([`answer`]).

pub(crate) mod abi;
pub(crate) mod answer;
pub(crate) mod init;
pub(crate) mod reply;
pub(crate) mod request;
