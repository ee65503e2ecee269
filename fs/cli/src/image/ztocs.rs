//! The zTOCs of an image's layers: found where an earlier run kept them, else fetched side by side.

use std::path::Path;
use std::sync::Arc;

use spanfs_fetch::{Blob, Source};
use spanfs_layer::Digest;
use spanfs_layer::oci::Descriptor;

use super::layers::How;
use super::shelf::Shelf;
use super::toc::{self, Toc};
use super::whole::WholeRead;
use super::{Discovery, Image, ImageError, Images};
use crate::later::Later;

/// Bytes of an image's zTOCs that are held in memory until its layers are shown: all of them but for
/// very large images. What is held need not be read, and checked, again for each use.
const HELD_BYTES_MAX: usize = 16 << 20;

/// The zTOC of a layer.
#[derive(Clone)]
pub struct Ztoc {
    /// Its digest.
    pub digest: Digest,
    /// Where it comes from.
    pub how: How,
    /// As it is encoded, checked against the digest; those that are not held stand on the shelf.
    pub(super) bytes: Option<Arc<[u8]>>,
    shelf: Shelf,
    /// Where to get it again.
    blob: Option<Arc<dyn Blob>>,
}

impl Images {
    /// Whether [`Self::ztocs`] will have one for a layer: the index names it, or it is kept below
    /// `directory`.
    pub fn has_ztoc(&self, discovery: &Discovery, layer: &Digest, directory: &Path) -> bool {
        let is_named = discovery.index().is_some_and(|index| index.ztoc(layer).is_some());
        let is_kept =
            |shelf: Shelf| shelf.digest_of_layer(layer).is_some_and(|digest| shelf.has(&digest));
        is_named || Shelf::open(directory).is_ok_and(is_kept)
    }

    /// zTOCs of the layers, as far as there are any: kept below `directory`, else fetched side by
    /// side. Those that are too much for the memory are on the disk when this returns.
    pub fn ztocs(
        &self,
        image: &Image,
        discovery: &Discovery,
        wanted: &[(Descriptor, Digest)],
        directory: &Path,
    ) -> Result<Vec<Option<Ztoc>>, ImageError> {
        let mut hold = Hold::new(Shelf::open(directory)?, &self.later);
        let mut fetching = Vec::new();
        let mut ztocs = Vec::with_capacity(wanted.len());
        for (number, (layer, _)) in wanted.iter().enumerate() {
            let named = discovery.index().and_then(|index| index.ztoc(&layer.digest));
            let kept = match named {
                Some(named) => hold.shelf.ztoc(&named.digest).map(|bytes| (named.digest, bytes)),
                None => hold.shelf.ztoc_of_layer(&layer.digest),
            };
            let how = if named.is_some() { How::Indexed } else { How::Kept };
            if let (Some(named), None) = (named, &kept) {
                fetching.push((number, named));
            }
            ztocs.push(kept.map(|(digest, bytes)| hold.kept(digest, bytes, how)));
        }
        image.early.ask(&image.source, fetching.iter().map(|(_, named)| *named));
        for (number, named) in fetching {
            let read = image.early.take(&image.source, named)?;
            let bytes = self.fetched_ztoc(image, named, read)?;
            ztocs[number] = Some(hold.fetched(named.digest, bytes));
        }
        // What is not held, or no more, can be swept from the shelf before it is used.
        for ((layer, _), ztoc) in wanted.iter().zip(&mut ztocs) {
            let named = discovery.index().and_then(|index| index.ztoc(&layer.digest));
            if let (Some(named), Some(ztoc)) = (named, ztoc) {
                ztoc.blob = Some(image.source.blob(named)?);
            }
        }
        Ok(ztocs)
    }

    fn fetched_ztoc(
        &self,
        image: &Image,
        named: &Descriptor,
        read: WholeRead,
    ) -> Result<Arc<[u8]>, ImageError> {
        let digest = named.digest;
        let whole = toc::fetched(read, digest)?;
        if whole.digest == digest {
            return Ok(whole.bytes);
        }
        // The engine does not look at what it brings; who asks for the whole goes from mirror to
        // mirror until one has the right bytes.
        tracing::warn!(ztoc = %digest, "fetched bytes have another digest; asking again");
        let again = image.source.blob_bytes(named, named.size);
        Ok(self.runtime().block_on(again)?[..].into())
    }
}

impl Ztoc {
    /// One that an earlier run used. It is read when it is needed: below `directory`, else, as far as its
    /// length is known, where it came from.
    pub fn named(
        directory: &Path,
        source: &Source,
        digest: Digest,
        len: Option<u64>,
    ) -> Result<Self, ImageError> {
        let named = |len| source.blob(&Descriptor::new("", digest, len));
        let (shelf, blob) = (Shelf::open(directory)?, len.map(named).transpose()?);
        Ok(Self { digest, how: How::Kept, bytes: None, shelf, blob })
    }

    /// One that an earlier run kept below `directory`.
    pub fn kept(directory: &Path, digest: Digest) -> Result<Option<Self>, ImageError> {
        let shelf = Shelf::open(directory)?;
        let Some(bytes) = shelf.ztoc(&digest) else { return Ok(None) };
        Ok(Some(Self { digest, how: How::Kept, bytes: Some(bytes), shelf, blob: None }))
    }

    /// Free its memory: who needs it again reads it again, or fetches it.
    pub fn forget(&mut self) {
        self.bytes = None;
    }

    pub(super) fn toc(&self) -> Toc {
        Toc::new(self.digest, self.shelf.clone(), self.blob.clone(), self.bytes.clone())
    }

    /// Remove what is kept below `directory` but for the zTOCs that `is_wanted`.
    pub fn sweep(directory: &Path, is_wanted: impl Fn(&Digest) -> bool) -> Result<(), ImageError> {
        Shelf::open(directory)?.sweep(is_wanted);
        Ok(())
    }
}

/// Decides which zTOCs of an image are held.
struct Hold<'a> {
    shelf: Shelf,
    later: &'a Later,
    /// Of those that are not large.
    bytes: usize,
    /// One is held that is larger than all others may be together.
    has_large: bool,
}

impl<'a> Hold<'a> {
    fn new(shelf: Shelf, later: &'a Later) -> Self {
        Self { shelf, later, bytes: 0, has_large: false }
    }

    fn has_room(&self, bytes: &[u8]) -> bool {
        // One is held however large it is: it will be read as a whole anyway.
        let is_large = bytes.len() > HELD_BYTES_MAX;
        (is_large && !self.has_large) || self.bytes.saturating_add(bytes.len()) <= HELD_BYTES_MAX
    }

    fn kept(&mut self, digest: Digest, bytes: Arc<[u8]>, how: How) -> Ztoc {
        let is_held = self.has_room(&bytes);
        self.ztoc(digest, is_held.then_some(bytes), how)
    }

    fn fetched(&mut self, digest: Digest, bytes: Arc<[u8]>) -> Ztoc {
        if !self.has_room(&bytes) && self.shelf.put(&digest, &bytes) {
            return self.ztoc(digest, None, How::Indexed);
        }
        let (shelf, kept) = (self.shelf.clone(), Arc::clone(&bytes));
        self.later.add(move || shelf.keep(&digest, &kept));
        self.ztoc(digest, Some(bytes), How::Indexed)
    }

    fn ztoc(&mut self, digest: Digest, bytes: Option<Arc<[u8]>>, how: How) -> Ztoc {
        match bytes.as_ref().map_or(0, |bytes| bytes.len()) {
            len if len > HELD_BYTES_MAX => self.has_large = true,
            len => self.bytes += len,
        }
        Ztoc { digest, how, bytes, shelf: self.shelf.clone(), blob: None }
    }
}
