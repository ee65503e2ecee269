//! zTOCs asked for before anybody waits for them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use spanfs_fetch::Source;
use spanfs_layer::Digest;
use spanfs_layer::oci::{Descriptor, Manifest};

use super::shelf::Shelf;
use super::whole::WholeRead;
use super::{Discovery, ImageError};

/// zTOCs are a hundredth of their layer; this is one of a layer that nobody has.
const ZTOC_LEN_MAX: u64 = 1 << 30;

/// Reads under way, by the zTOC's digest.
#[derive(Default)]
pub(super) struct Early(Mutex<HashMap<Digest, WholeRead>>);

impl Early {
    /// Ask for the zTOCs of an image's layers, as far as they are not kept.
    pub(super) fn start(
        &self,
        source: &Source,
        manifest: &Manifest,
        discovery: &Discovery,
        shelf: &Shelf,
    ) {
        let Some(index) = discovery.index() else { return };
        let named = manifest.layers.iter().filter_map(|layer| index.ztoc(&layer.digest));
        for ztoc in named.filter(|ztoc| !shelf.has(&ztoc.digest)) {
            // What can't be asked for now fails where somebody waits for it.
            if let Ok(read) = ask(source, ztoc) {
                let mut reads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                reads.insert(ztoc.digest, read);
            }
        }
    }

    /// The read of a zTOC: the one under way, or one that begins now.
    pub(super) fn take(&self, source: &Source, ztoc: &Descriptor) -> Result<WholeRead, ImageError> {
        let mut reads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let early = reads.remove(&ztoc.digest);
        drop(reads);
        early.map_or_else(|| ask(source, ztoc), Ok)
    }
}

fn ask(source: &Source, ztoc: &Descriptor) -> Result<WholeRead, ImageError> {
    if ztoc.size > ZTOC_LEN_MAX {
        let (digest, size) = (ztoc.digest, ztoc.size);
        return Err(ImageError::Corrupt(format!(
            "zTOC {digest}: expected at most {ZTOC_LEN_MAX} bytes, found {size}"
        )));
    }
    Ok(WholeRead::start(source.blob(ztoc)?))
}
