//! The one place of this crate where unsafe code is allowed.
#![allow(unsafe_code)]

mod ring;

pub(crate) use ring::{Completion, Op, OpId, Ring};
