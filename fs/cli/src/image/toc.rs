//! A zTOC that is read when its entries are needed: once for each layer index, and then no more.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use spanfs_cache::Layer;
use spanfs_fetch::Blob;
use spanfs_layer::Digest;

use super::ImageError;
use super::shelf::Shelf;
use super::whole::{ReadError, WholeRead};

/// The zTOC of an open layer.
pub(crate) struct Toc {
    pub(crate) digest: Digest,
    shelf: Shelf,
    /// Where it comes from, should it not be on the shelf any more.
    blob: Option<Arc<dyn Blob>>,
    /// Its layer, which has a copy beside its layer file.
    layer: Weak<Layer>,
    bytes: Mutex<Option<Arc<[u8]>>>,
}

impl Toc {
    /// One that is kept on the shelf, or about to be; `bytes` are at hand or not.
    pub(crate) fn new(
        digest: Digest,
        shelf: Shelf,
        blob: Option<Arc<dyn Blob>>,
        bytes: Option<Arc<[u8]>>,
    ) -> Self {
        Self { digest, shelf, blob, layer: Weak::new(), bytes: Mutex::new(bytes) }
    }

    /// The same of a layer that is open.
    pub(crate) fn of(self, layer: &Arc<Layer>) -> Self {
        Self { layer: Arc::downgrade(layer), ..self }
    }

    /// Its bytes, checked against its digest. What is read for that is not held: the zTOCs of a large
    /// image are more than all else that we have in memory.
    pub(crate) fn bytes(&self) -> Result<Arc<[u8]>, ImageError> {
        let known = self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match known.or_else(|| self.shelf.ztoc(&self.digest)).or_else(|| self.copy()) {
            Some(bytes) => Ok(bytes),
            None => self.fetch(),
        }
    }

    /// Have it on the shelf, for another process that may take our place. A disk that refuses makes that
    /// one ask where it came from.
    pub(crate) fn put(&self) {
        let held = self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(bytes) = held.filter(|_| !self.shelf.has(&self.digest)) {
            self.shelf.put(&self.digest, &bytes);
        }
    }

    /// Bring it to the disk for good.
    pub(crate) fn keep(&self) {
        if self.shelf.has(&self.digest) {
            return self.shelf.seal(&self.digest);
        }
        match self.bytes() {
            Ok(bytes) => self.shelf.keep(&self.digest, &bytes),
            Err(error) => tracing::warn!(ztoc = %self.digest, %error, "the zTOC is not kept"),
        }
    }

    /// Its length, as far as it is here.
    pub(crate) fn len(&self) -> u64 {
        let held = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let held = held.as_ref().map(|bytes| bytes.len() as u64);
        held.or_else(|| self.shelf.len(&self.digest)).unwrap_or(0)
    }

    /// Give the memory back, if the bytes are kept. Who needs them again reads them again.
    pub(crate) fn forget(&self) {
        if !self.shelf.has(&self.digest) {
            return;
        }
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn copy(&self) -> Option<Arc<[u8]>> {
        let bytes = self.layer.upgrade()?.ztoc().ok()?;
        (Digest::of(&bytes) == self.digest).then_some(bytes)
    }

    fn fetch(&self) -> Result<Arc<[u8]>, ImageError> {
        let digest = self.digest;
        let Some(blob) = &self.blob else {
            return Err(ImageError::NotFound(format!("zTOC {digest} is no longer kept")));
        };
        let whole = fetched(WholeRead::start(Arc::clone(blob)), digest)?;
        if whole.digest != digest {
            let found = whole.digest;
            return Err(ImageError::Corrupt(format!("zTOC: expected {digest}, found {found}")));
        }
        self.shelf.keep(&digest, &whole.bytes);
        Ok(whole.bytes)
    }
}

/// The end of a zTOC's fetch, its digest found but not judged.
pub(super) fn fetched(
    read: WholeRead,
    ztoc: Digest,
) -> Result<super::whole::WholeBlob, ImageError> {
    read.finish().map_err(|error| match error {
        ReadError::Fetch(source) => ImageError::FetchZtoc { ztoc, source },
        ReadError::Consume(never) => match never {},
        ReadError::Stopped => ImageError::Stopped,
    })
}
