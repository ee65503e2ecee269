//! Fetching before reading: one policy over all layers of an image.
//!
//! [`Image`] tells its plan what is read and asks for what the plan says; it also records the trace
//! of the first minute. The policy itself is pure and stands in `plan`, `neighbours`,
//! `background` and `bandwidth`.

mod background;
mod bandwidth;
mod image;
mod neighbours;
mod plan;
mod trace;

pub use background::Background;
pub(crate) use bandwidth::Bandwidth;
pub(crate) use image::Observer;
pub use image::{Image, ImageSpec, ImageStatus};
pub use trace::{Trace, TraceError};
