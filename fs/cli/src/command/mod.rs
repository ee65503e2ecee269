//! The subcommands, one file each.

pub(crate) mod bench;
pub(crate) mod cat;
pub(crate) mod doctor;
pub(crate) mod index;
pub(crate) mod inspect;
pub(crate) mod manual;
pub(crate) mod mount;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod trace;
pub(crate) mod umount;
pub(crate) mod why;
