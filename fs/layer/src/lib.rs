//! What a layer is: digests, tar records, zTOCs, spans, trees and the EROFS index.
//!
//! Pure: no I/O, no clock, no thread, no lock (`no_std` with `alloc` keeps it so). Bytes come in as
//! slices, wishes go out as values.
//!
//! Three types carry the crate: [`Record`] (one entry of a layer's tar), [`Ztoc`] (the table of
//! contents and the restart points that the field exchanges), [`SpanTable`] (which compressed bytes
//! yield which uncompressed ones). Everything decoded here came from a hostile world: a decoder
//! returns a valid value or an error, nothing between.
//!
//! ```
//! use spanfs_layer::tar::{Limits, Reader};
//!
//! let mut reader = Reader::new(Limits::default());
//! let mut records = Vec::new();
//! reader.feed(&[0; 1024], &mut records)?; // two zero blocks: an empty layer
//! assert!(records.is_empty());
//! assert_eq!(reader.finish()?.size, 1024);
//! # Ok::<(), spanfs_layer::tar::TarError>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used))]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod digest;
pub mod erofs;
#[cfg(test)]
mod fixtures;
pub mod oci;
mod offset;
mod record;
pub mod soci;
mod span;
pub mod tar;
pub mod tree;
pub mod whiteout;
pub mod ztoc;

pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use offset::{CompressedOffset, FileOffset, UncompressedOffset};
pub use record::{Kind, Record, SparseSegment, Time};
pub use span::{Restart, Span, SpanError, SpanTable};
pub use tree::Tree;
pub use ztoc::Ztoc;
