//! The one place of this crate where unsafe code is allowed.
//!
//! A [`Slot`] is the right to touch one request's memory. [`Ring`] takes it when the kernel gets that
//! memory, and gives it back with the next request: so there is never a reference to what the
//! kernel may write.
#![allow(unsafe_code)]

mod memory;
mod ring;

pub(super) use memory::{Memory, Slot, Slots};
pub(super) use ring::{Event, Refused, Ring};
