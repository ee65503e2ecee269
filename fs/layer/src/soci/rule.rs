//! Which layers get a zTOC.

use alloc::format;
use alloc::string::String;

use super::PREFETCH_MEDIA_TYPE;
use crate::Record;
use crate::oci::{Descriptor, LayerCompression, LayerType};

/// What becomes of a layer when its image is indexed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ZtocRule {
    /// It gets a zTOC; its compression as its media type says.
    Build(LayerCompression),
    /// It gets none, for the reason given: the image is indexed without it.
    Skip(String),
    /// It is no layer at all, but is silently left alone.
    Ignore,
    /// It is no layer at all, which makes the image one that can't be indexed.
    NotLayer,
}

impl ZtocRule {
    /// Look at a layer's descriptor. Layers smaller than `size_min` bytes are not worth a zTOC.
    pub fn of(layer: &Descriptor, size_min: u64) -> Self {
        let Descriptor { digest, media_type, size, .. } = layer;
        if *size < size_min {
            return Self::Skip(format!(
                "ztoc skipped - layer {digest} ({media_type}) size {size} is less than \
                 min-layer-size {size_min}"
            ));
        }
        let skip = |found: &str| {
            Self::Skip(format!(
                "ztoc skipped - layer {digest} ({media_type}) is compressed in an unsupported \
                 format. expect: [tar, gzip, unknown] but got \"{found}\""
            ))
        };
        match layer.layer_type() {
            LayerType::Tar { compression: LayerCompression::Zstd, .. } => skip("zstd"),
            LayerType::Tar {
                compression: LayerCompression::Uncompressed,
                distributable: false,
            } => skip(""),
            LayerType::Tar { compression, .. } => Self::Build(compression),
            LayerType::Encrypted => skip("encrypted"),
            LayerType::Erofs => skip("erofs"),
            LayerType::Other if media_type == PREFETCH_MEDIA_TYPE => Self::Ignore,
            LayerType::Other => Self::NotLayer,
        }
    }
}

/// True if a layer has neither xattrs nor opaque directories, so that a mount may refuse requests
/// for xattrs altogether.
pub fn needs_no_xattrs(records: &[Record]) -> bool {
    records
        .iter()
        .all(|record| record.xattrs().next().is_none() && !record.name.ends_with(b".wh..wh..opq"))
}
