//! A layer without zTOC: fetched whole, checked, and its zTOC built in the same pass.

use std::fs::File;
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use spanfs_cache::build::{BuildError, BuildOptions, LayerBuilder, Toc};
use spanfs_cache::{Content, ReadError as ContentError, ReadReply};
use spanfs_fetch::{Blob, Priority, ReadPool};
use spanfs_layer::oci::Descriptor;
use spanfs_layer::{Digest, Record, UncompressedOffset};

use super::ImageError;
use super::layers::LayerSource;
use super::whole::{ReadError, read_whole};

/// What a pass over a layer gave.
pub(crate) enum Found {
    /// Its zTOC, and its blob, which is local now.
    Lazy { ztoc: Vec<u8>, blob: Arc<dyn Blob> },
    /// Its tar in a local file, for it can't have a zTOC.
    Whole { content: Arc<dyn Content>, records: Vec<Record>, reason: String },
}

enum PassError {
    Keep(io::Error),
    Build(BuildError),
}

/// Fetch the layer. The blob goes to a file without name, and lives as long as somebody reads it.
pub(crate) fn fetch(
    blob: &dyn Blob,
    descriptor: &Descriptor,
    diff_id: Digest,
    pool: &ReadPool,
    source: &LayerSource<'_>,
) -> Result<Found, ImageError> {
    let layer = descriptor.digest;
    let local =
        |source_error| ImageError::Disk { path: source.directory.to_owned(), source: source_error };
    let bad = |source| ImageError::Build { layer, source };
    let mut kept = tempfile::tempfile_in(source.directory).map_err(local)?;
    let sink = |_, _: &[u8]| Ok(());
    let mut builder = LayerBuilder::new(BuildOptions::default(), sink).map_err(bad)?;
    let mut done = 0;
    let read = read_whole(blob, Priority::OnDemand, source.stop, |bytes| {
        kept.write_all(bytes).map_err(PassError::Keep)?;
        done += bytes.len() as u64;
        (source.progress)(descriptor, done);
        builder.feed(bytes).map_err(PassError::Build)
    });
    read.map_err(|error| match error {
        ReadError::Fetch(source) => ImageError::Fetch { layer, source },
        ReadError::Stopped => ImageError::Stopped,
        ReadError::Consume(PassError::Keep(error)) => local(error),
        ReadError::Consume(PassError::Build(source)) => bad(source),
    })?;
    let built = builder.finish().map_err(bad)?;
    check(layer, "digest", built.blob_digest, layer)?;
    check(layer, "diffID", built.diff_id, diff_id)?;
    match built.toc {
        Toc::Lazy(ztoc) => {
            let blob = pool.blob(Arc::new(kept), 0, layer, descriptor.size);
            Ok(Found::Lazy { ztoc: ztoc.encode(), blob })
        }
        Toc::Whole { records, reason } => {
            let reason = reason.to_string();
            let blob = pool.blob(Arc::new(kept), 0, layer, descriptor.size);
            let content = Arc::new(unpack(&*blob, layer, built.uncompressed_len, source)?);
            Ok(Found::Whole { content, records, reason })
        }
    }
}

fn check(layer: Digest, what: &str, found: Digest, expected: Digest) -> Result<(), ImageError> {
    match found.algorithm() == expected.algorithm() && found != expected {
        true => Err(ImageError::Corrupt(format!(
            "layer {layer} is not what the image promises: {what} is {found}, expected {expected}"
        ))),
        false => Ok(()),
    }
}

/// The layer's tar in a file without name.
fn unpack(
    blob: &dyn Blob,
    layer: Digest,
    len: u64,
    source: &LayerSource<'_>,
) -> Result<WholeFile, ImageError> {
    let local = |error| ImageError::Disk { path: source.directory.to_owned(), source: error };
    let bad = |source| ImageError::Build { layer, source };
    let file = tempfile::tempfile_in(source.directory).map_err(local)?;
    let len = len.next_multiple_of(512);
    file.set_len(len).map_err(local)?;
    let sink = |at: UncompressedOffset, bytes: &[u8]| file.write_all_at(bytes, at.0);
    let mut builder = LayerBuilder::new(BuildOptions::default(), sink).map_err(bad)?;
    let read = read_whole(blob, Priority::OnDemand, source.stop, |bytes| builder.feed(bytes));
    read.map_err(|error| match error {
        ReadError::Fetch(source) => ImageError::Fetch { layer, source },
        ReadError::Stopped => ImageError::Stopped,
        ReadError::Consume(source) => bad(source),
    })?;
    builder.finish().map_err(bad)?;
    Ok(WholeFile { file, len })
}

/// A finished local file, checked against its diffID while it was written.
struct WholeFile {
    file: File,
    len: u64,
}

impl Content for WholeFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_present(
        &self,
        offset: UncompressedOffset,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, ContentError> {
        let left = self.len.saturating_sub(offset.0);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        self.file
            .read_exact_at(&mut buffer[..len], offset.0)
            .map_err(|error| ContentError::Storage(error.to_string()))?;
        Ok(Some(len))
    }

    fn fill(&self, _range: Range<UncompressedOffset>, reply: ReadReply) {
        reply(Ok(()));
    }

    fn complete_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}
