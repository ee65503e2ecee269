//! Whole blobs, chunk by chunk: in memory alone, or kept in a file that survives a restart.
//!
//! Both hand chunks over in order, for hashing and inflating on other threads, with a bounded number
//! of bytes between network and consumer.

mod download;
mod journal;
mod stream;

pub use download::{BufferError, Download, DownloadOptions};
pub use stream::{Chunk, Stream, StreamOptions};
