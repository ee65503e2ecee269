//! The commands, one module each.

pub(super) mod convert;
pub(super) mod create;
pub(super) mod get_file;
pub(super) mod index;
pub(super) mod prefetch;
pub(super) mod push;
pub(super) mod rebuild;
pub(super) mod rpull;
pub(super) mod run;
pub(super) mod standalone;
pub(super) mod ztoc;
