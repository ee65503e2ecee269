//! zTOC: the table of contents of a layer's tar and the restart points of its compression, in the
//! FlatBuffers form that SOCI tools exchange.

use alloc::vec::Vec;

use crate::{Digest, Record};

/// How a layer's blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// gzip, one or more members.
    Gzip,
    /// Plain tar.
    Uncompressed,
    /// zstd frames. No released peer reads this; it stays on our own machines.
    Zstd,
}

/// A zTOC, field by field as exchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ztoc {
    /// Format version; every release writes `0.9` and none checks it.
    pub version: Vec<u8>,
    /// Free text naming the builder.
    pub build_tool: Vec<u8>,
    /// Bytes of the blob.
    pub compressed_size: u64,
    /// Position behind the tar's two end-of-archive blocks.
    pub uncompressed_size: u64,
    /// The tar's entries in archive order.
    pub records: Vec<Record>,
    /// Compression of the blob.
    pub compression: Compression,
    /// Digest of each span's compressed bytes.
    pub span_digests: Vec<Digest>,
    /// The restart points, still in their encoded form.
    pub checkpoints: Vec<u8>,
}
