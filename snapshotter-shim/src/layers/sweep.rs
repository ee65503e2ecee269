//! Disk that layers take, and what becomes of it once no snapshot wants them.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::Ordering;

use spanfs::image::Ztoc;
use spanfs_cache::CacheError;
use spanfs_layer::Digest;

use super::Layers;
use super::shown::Wanted;
use crate::daemon::log::chain;
use crate::disk_usage::disk_usage;
use crate::state::Usage;

/// Traces of images that are gone: they may come back, and a trace is some kilobytes.
const TRACES_LEFT: usize = 256;

impl Layers {
    /// Disk that a snapshot's layer takes; none for a snapshot whose content is its own. A layer that
    /// several snapshots show counts for the oldest alone.
    pub fn usage(&self, id: u64, directory: &Path) -> Option<Usage> {
        let bytes = self.registry.bytes(id)?;
        let index = disk_usage(&directory.join("index")).unwrap_or_default();
        Some(Usage { bytes: index.bytes + bytes, inodes: index.inodes })
    }

    /// Unmount the layers of all snapshots but those wanted, and give their disk back. `manifests` are
    /// of images of which there are snapshots.
    pub fn retain(&self, is_wanted: impl Fn(u64) -> bool, manifests: &HashSet<Digest>) {
        self.registry.retain(is_wanted);
        let mut left = self.wholes.retain(|manifest| manifests.contains(manifest));
        let Wanted { layers, ztocs, configs } = self.registry.wanted();
        for layer in self.opener.cache.layers().iter().filter(|layer| !layers.contains(layer)) {
            if self.opener.cache.is_expected(layer) {
                left = true;
                continue;
            }
            match self.opener.cache.remove(layer) {
                Ok(()) => {
                    tracing::debug!(%layer, "layer removed from the cache");
                    self.opener.puller.store().forget(layer);
                }
                // Of a snapshot that is about to be, whose last user has not gone yet, or being hashed.
                Err(CacheError::InUse { .. }) => left = true,
                Err(error) => tracing::warn!(%layer, error = chain(&error), "a layer stays"),
            }
        }
        self.leftovers.store(left, Ordering::Relaxed);
        if let Err(error) = Ztoc::sweep(&self.opener.directory, |digest| ztocs.contains(digest)) {
            tracing::warn!(error = chain(&error), "zTOCs that nobody needs stay");
        }
        self.opener.cache.sweep_traces(|config| configs.contains(config), TRACES_LEFT);
    }

    /// Whether the latest [`Self::retain`] left something that was still in use.
    pub fn has_leftovers(&self) -> bool {
        self.leftovers.load(Ordering::Relaxed)
    }
}
