//! Why calls fail.

use std::path::PathBuf;

use spanfs_mount::id_map::OwnersError;

use crate::directories::DirectoryError;
use crate::disk_usage::UsageError;
use crate::filter::FilterError;
use crate::layers::LayerError;
use crate::state::Refusal;
use crate::store::StoreError;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The state does not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A filter can't be read.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The image layer that was to be made is there.
    #[error("target snapshot {0:?}: already exists")]
    LayerExists(String),
    /// A layer that the snapshot stands on can't be read.
    #[error("layer \"{id}\" unavailable")]
    Unavailable {
        /// Id of the layer's snapshot.
        id: u64,
        /// Why not.
        #[source]
        source: LayerError,
    },
    /// A layer that containerd is not to fetch can't be had.
    #[error("failed to prepare layer {layer}: {reason}")]
    Layer {
        /// Digest of its blob.
        layer: String,
        /// Why not.
        reason: String,
    },
    /// The owners of its files can't be what was asked for.
    #[error("mapping the owners of a snapshot's files")]
    Owners(#[from] OwnersError),
    /// The record of snapshots.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directories of snapshots.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The size of a snapshot.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// Layers of ours can't be shown at all.
    #[error("getting ready to show layers")]
    Layers(#[source] LayerError),
    /// The root's path can't be an option of an overlay mount.
    #[error("root {}: a path of mount options has no comma, colon, backslash or quote", .0.display())]
    Root(PathBuf),
}
