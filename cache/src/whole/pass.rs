//! The bytes of a blob through the builder into the part file, and what they must prove.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use spanfs_fetch::Class;
use spanfs_fetch::buffer::Stream;
use spanfs_layer::{Algorithm, Digest, Hasher, UncompressedOffset};

use super::{STOP_POLL, WholeSpec};
use crate::CacheError;
use crate::build::{BuildError, Built, LayerBuilder, Sink};

/// Times in a row that a chunk is asked for again, after the engine gave up on it.
const RETRIES_MAX: u32 = 2;

/// Write the tar of `spec`'s blob to `part`, and check both digests. The digests of what comes back
/// are the promised ones where there was a promise.
pub(super) fn run(spec: &WholeSpec<'_>, part: &File, path: &Path) -> Result<Built, CacheError> {
    let layer = spec.layer();
    // The builder knows SHA-256 alone.
    let (mut blob_hash, mut tar_hash) =
        (other_hash(Some(&layer)), other_hash(spec.diff_id.as_ref()));
    let sink = |at: UncompressedOffset, bytes: &[u8]| {
        // A chunk may inflate to a thousand times its length.
        if spec.stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        tar_hash.iter_mut().for_each(|hash| hash.update(bytes));
        part.write_all_at(bytes, at.0)
    };
    let failed = |error: BuildError| match error {
        BuildError::Sink { .. } if spec.stop.load(Ordering::Relaxed) => {
            CacheError::Stopped { layer }
        }
        BuildError::Sink { source, .. } => {
            CacheError::Storage { doing: "unpacking a layer into", path: path.to_owned(), source }
        }
        source => CacheError::Build { layer, source },
    };
    let mut builder = LayerBuilder::new(spec.build.clone(), sink).map_err(failed)?;
    feed(spec, &mut builder, &mut blob_hash, failed)?;
    let mut built = builder.finish().map_err(failed)?;
    if let Some(hash) = blob_hash {
        built.blob_digest = hash.finish();
    }
    if let Some(hash) = tar_hash {
        built.diff_id = hash.finish();
    }
    check(layer, "its blob has digest", &built.blob_digest, &layer)?;
    if let Some(diff_id) = &spec.diff_id {
        check(layer, "its tar has digest", &built.diff_id, diff_id)?;
    }
    Ok(built)
}

fn other_hash(digest: Option<&Digest>) -> Option<Hasher> {
    let algorithm = digest?.algorithm();
    (algorithm != Algorithm::Sha256).then(|| Hasher::new(algorithm))
}

fn check(layer: Digest, what: &str, found: &Digest, expected: &Digest) -> Result<(), CacheError> {
    match found == expected {
        true => Ok(()),
        false => {
            let reason = format!("{what} {found}, expected {expected}");
            Err(CacheError::Condemned { layer, reason })
        }
    }
}

fn feed<S: Sink>(
    spec: &WholeSpec<'_>,
    builder: &mut LayerBuilder<S>,
    blob_hash: &mut Option<Hasher>,
    failed: impl Fn(BuildError) -> CacheError,
) -> Result<(), CacheError> {
    let blob = Arc::clone(&spec.blob);
    let len = blob.size();
    let mut stream = Stream::new(Arc::clone(&blob), 0..len, spec.stream.clone());
    let mut retries = 0;
    loop {
        spec.check_stop()?;
        match stream.poll_in_order(STOP_POLL) {
            Poll::Pending => {}
            Poll::Ready(None) => return Ok(()),
            Poll::Ready(Some(Ok(chunk))) => {
                retries = 0;
                let data = chunk.fetched.data();
                blob_hash.iter_mut().for_each(|hash| hash.update(data));
                builder.feed(data).map_err(&failed)?;
                (spec.progress)(chunk.offset + data.len() as u64);
                blob.recycle(chunk.fetched.bytes);
            }
            Poll::Ready(Some(Err(source))) => {
                if source.class() != Class::Retry || retries == RETRIES_MAX {
                    let source = Box::new(source);
                    return Err(CacheError::Unavailable { layer: spec.layer(), source });
                }
                retries += 1;
                tracing::warn!(layer = %spec.layer(), error = %source, retries, "asking again");
            }
        }
    }
}
