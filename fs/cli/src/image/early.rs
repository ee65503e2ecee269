//! zTOCs asked for before anybody waits for them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use spanfs_fetch::Source;
use spanfs_layer::Digest;
use spanfs_layer::oci::{Descriptor, Manifest};

use super::shelf::Shelf;
use super::whole::WholeRead;
use super::{Discovery, ImageError};

/// zTOCs are a hundredth of their layer; this is one of a layer that nobody has.
const ZTOC_LEN_MAX: u64 = 1 << 30;

/// zTOCs under way or waiting in memory to be taken: those of all but very large images. Of these the
/// next is asked for as soon as one was taken.
const BYTES_MAX: u64 = 16 << 20;

/// Reads of an image's zTOCs, in the order of its layers.
#[derive(Default)]
pub(super) struct Early(Mutex<Reads>);

#[derive(Default)]
struct Reads {
    under_way: HashMap<Digest, WholeRead>,
    bytes: u64,
    waiting: VecDeque<Descriptor>,
}

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
        self.ask(source, named.filter(|ztoc| !shelf.has(&ztoc.digest)));
    }

    /// Ask for zTOCs that will be taken in this order, as far as that was not done.
    pub(super) fn ask<'a>(&self, source: &Source, ztocs: impl Iterator<Item = &'a Descriptor>) {
        let mut reads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for ztoc in ztocs {
            let is_waiting = reads.waiting.iter().any(|waiting| waiting.digest == ztoc.digest);
            if !is_waiting && !reads.under_way.contains_key(&ztoc.digest) {
                reads.waiting.push_back(ztoc.clone());
            }
        }
        reads.go_on(source);
    }

    /// The read of a zTOC: the one under way, or one that begins now.
    pub(super) fn take(&self, source: &Source, ztoc: &Descriptor) -> Result<WholeRead, ImageError> {
        let mut reads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let early = reads.under_way.remove(&ztoc.digest);
        match &early {
            Some(_) => reads.bytes -= ztoc.size,
            None => reads.waiting.retain(|waiting| waiting.digest != ztoc.digest),
        }
        reads.go_on(source);
        drop(reads);
        early.map_or_else(|| ask(source, ztoc), Ok)
    }
}

impl Reads {
    fn go_on(&mut self, source: &Source) {
        while let Some(next) = self.waiting.front() {
            if self.bytes > 0 && self.bytes.saturating_add(next.size) > BYTES_MAX {
                return;
            }
            // What can't be asked for now fails where somebody waits for it.
            if let Ok(read) = ask(source, next) {
                self.bytes += next.size;
                self.under_way.insert(next.digest, read);
            }
            self.waiting.pop_front();
        }
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
