//! The bytes of a blob through the builder into the part file, and what they must prove.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use spanfs_fetch::buffer::Download;
use spanfs_layer::{Algorithm, Digest, Hasher, UncompressedOffset};

use super::{WholeSpec, program, source};
use crate::CacheError;
use crate::build::{BuildError, BuildOptions, Built, LayerBuilder};
use crate::cache::claim::Claim;

/// What a pass leaves beside the part file.
pub(super) struct Passed {
    /// Its digests are the promised ones where there was a promise.
    pub(super) built: Built,
    /// The blob, if it came through a file.
    pub(super) download: Option<Download>,
}

/// Write the tar of `spec`'s blob to `part`, and check both digests.
pub(super) fn run(
    spec: &WholeSpec<'_>,
    claim: &Claim,
    part: &File,
    path: &Path,
) -> Result<Passed, CacheError> {
    let layer = spec.layer();
    // The builder knows SHA-256 alone.
    let mut tar_hash = other_hash(spec.diff_id.as_ref());
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
    let builder = |options: BuildOptions| LayerBuilder::new(options, sink).map_err(failed);
    let (mut built, download) = match spec.program {
        None => decode_here(spec, claim, builder(spec.build.clone())?, failed)?,
        Some(program) => {
            let builder = builder(program::build_options(spec))?;
            program::decode(program, spec, claim, builder, failed)?
        }
    };
    if let Some(hash) = tar_hash {
        built.diff_id = hash.finish();
    }
    check(layer, "its blob has digest", &built.blob_digest, &layer)?;
    if let Some(diff_id) = &spec.diff_id {
        check(layer, "its tar has digest", &built.diff_id, diff_id)?;
    }
    Ok(Passed { built, download })
}

/// Decompress by the builder itself.
fn decode_here<S: crate::build::Sink>(
    spec: &WholeSpec<'_>,
    claim: &Claim,
    mut builder: LayerBuilder<S>,
    failed: impl Fn(BuildError) -> CacheError,
) -> Result<(Built, Option<Download>), CacheError> {
    let mut blob_hash = other_hash(Some(&spec.layer()));
    let download = source::feed(spec, claim, |bytes| {
        blob_hash.iter_mut().for_each(|hash| hash.update(bytes));
        builder.feed(bytes).map_err(&failed)
    })?;
    let mut built = builder.finish().map_err(failed)?;
    if let Some(hash) = blob_hash {
        built.blob_digest = hash.finish();
    }
    Ok((built, download))
}

fn other_hash(digest: Option<&Digest>) -> Option<Hasher> {
    let algorithm = digest?.algorithm();
    (algorithm != Algorithm::Sha256).then(|| Hasher::new(algorithm))
}

pub(super) fn check(
    layer: Digest,
    what: &str,
    found: &Digest,
    expected: &Digest,
) -> Result<(), CacheError> {
    match found == expected {
        true => Ok(()),
        false => {
            let reason = format!("{what} {found}, expected {expected}");
            Err(CacheError::Condemned { layer, reason })
        }
    }
}
