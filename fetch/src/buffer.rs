//! Whole blobs, chunk by chunk: in memory alone, or in a file that is read while it grows and survives
//! a restart.
//!
//! Limits that several blobs share are [`Slots`].

mod download;
mod journal;
mod slots;
mod stream;

pub use download::{BufferError, Download, DownloadOptions, Durable, Growing};
pub use slots::{Place, Slot, Slots};
pub use stream::{Chunk, Stream, StreamOptions};
