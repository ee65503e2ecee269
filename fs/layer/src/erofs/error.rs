//! Why a tree has no index.

/// A tree that the format, or a limit of ours, cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ErofsError {
    /// Not a layer file for each of the tree's layers, or more than can be addressed.
    #[error("{found} layer files for {needed} layers, of at most {max}")]
    DeviceCount {
        /// Layer files given.
        found: usize,
        /// Layers of the tree.
        needed: usize,
        /// Limit.
        max: usize,
    },
    /// A layer file that is not made of whole blocks, or has too many.
    #[error("layer file {device} of {len} bytes is not a multiple of 512 below 2 TiB")]
    DeviceLength {
        /// Which device, from 0.
        device: u16,
        /// Its length in bytes.
        len: u64,
    },
    /// A tag that its slot cannot hold.
    #[error("tag of layer file {device} has {found} bytes, at most {max} fit")]
    Tag {
        /// Which device, from 0.
        device: u16,
        /// Length of the tag.
        found: usize,
        /// Limit.
        max: usize,
    },
    /// File content outside of its layer file.
    #[error("file content at {at}, {len} bytes long, ends behind layer file {device}")]
    Content {
        /// Which device, from 0.
        device: u16,
        /// Where in the tar.
        at: u64,
        /// How long.
        len: u64,
    },
    /// Attributes of one inode that do not fit behind it, or have no known prefix.
    #[error("extended attribute of {len} bytes cannot be stored")]
    Xattr {
        /// Length of the value, or of all attributes together.
        len: usize,
    },
    /// More than can be addressed.
    #[error("{what} needs {found}, more than {max}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        found: u64,
        /// Limit.
        max: u64,
    },
}
