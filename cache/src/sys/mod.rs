//! The only unsafe code of this crate: two C interfaces to DEFLATE and one to the allocator, behind
//! safe types, and the choice of instructions for a loop of ours.
//!
//! [`WholeStream`] decodes complete streams, twice as fast; [`Inflater`] decodes anything, piece by
//! piece, from any bit, behind any window.
#![expect(unsafe_code, reason = "decoders and allocator have C interfaces")]

mod bits;
mod memory;
mod stream;
mod whole;

pub(crate) use bits::fast_symbols;
pub use memory::give_back_memory;
pub(crate) use stream::{Format, Inflater, Stop};
pub(crate) use whole::{WholeError, WholeStream, crc32, crc32_append};
