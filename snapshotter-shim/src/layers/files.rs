//! Layers unpacked into the snapshot's own directory, where no kernel shows them: the front `files`.
//!
//! Such a snapshot needs nothing of ours from then on: it has no note, and its layer leaves the cache.

use std::path::Path;

use rustix::fs::{Gid, Mode, Uid};
use spanfs::image::OpenLayer;
use spanfs::layer_index::layer_tree;
use spanfs_cache::CacheError;
use spanfs_mount::front::files::{Devices, UnpackOptions, unpack};

use super::{LayerError, Layers, Place, below};
use crate::daemon::log::chain;
use crate::disk_usage::disk_usage;
use crate::overlay_support::in_user_namespace;
use crate::state::Usage;

/// Name in the snapshot's directory of what is not complete yet.
const UNPACKING: &str = "unpacking";

impl Layers {
    /// Unpack a layer to `place`. Its content appears there at once, and complete.
    pub(super) fn unpack(&self, open: &OpenLayer, place: &Place) -> Result<Usage, LayerError> {
        let (fresh, at) = (place.directory.join(UNPACKING), place.directory.join("fs"));
        let Some(data) = open.content.complete_file() else {
            let layer = open.descriptor.digest;
            return Err(LayerError::Whole(format!("layer {layer} is not complete")));
        };
        let describe = |paths: &[Vec<u8>]| below::describe(&place.lowers, paths);
        let tree = layer_tree(open, place.lowers.is_empty(), describe)?;
        std::fs::create_dir(&fresh).map_err(LayerError::disk(&fresh))?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let devices = match in_user_namespace() {
            true => Devices::LeaveOut,
            false => Devices::Make,
        };
        let options = UnpackOptions { threads, stop: &self.opener.stop, devices };
        unpack(&tree, data, &fresh, options)?;
        put_in_place(&fresh, &at).map_err(LayerError::disk(&at))?;
        disk_usage(&at).map_err(|error| LayerError::Whole(chain(&error)))
    }

    /// The files of an unpacked layer are all that is needed of it.
    pub(super) fn forget_unpacked(&self, open: OpenLayer) {
        let layer = open.descriptor.digest;
        drop(open);
        match self.opener.cache.remove(&layer) {
            Ok(()) => self.opener.puller.store().forget(&layer),
            // Who else wants it takes it along; then a sweep sees to it.
            Err(CacheError::InUse { .. }) => tracing::debug!(%layer, "an unpacked layer stays yet"),
            Err(error) => tracing::warn!(%layer, error = chain(&error), "a layer stays"),
        }
    }
}

/// Give `fresh` the owner, mode and name of the empty directory `at`.
fn put_in_place(fresh: &Path, at: &Path) -> std::io::Result<()> {
    let stat = rustix::fs::stat(at)?;
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chown(fresh, Some(owner.0), Some(owner.1))?;
    rustix::fs::chmod(fresh, Mode::from_raw_mode(stat.st_mode))?;
    std::fs::rename(fresh, at)?;
    std::fs::File::open(at.parent().unwrap_or(at))?.sync_all()
}
