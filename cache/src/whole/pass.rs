//! The bytes of a blob through the builder into the part file, and what they must prove.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use spanfs_fetch::buffer::Download;
use spanfs_layer::{Algorithm, Digest, Hasher, UncompressedOffset};

use super::{WholeSpec, program, source};
use crate::CacheError;
use crate::build::{
    BuildError, BuildOptions, Built, KnownToc, LayerBuilder, Sink, SpanBuilder, SpansError,
};
use crate::cache::claim::Claim;
use crate::layer_file::reserve;
use crate::works::Works;

/// Room found for the part file at once, ahead of what is written, as much as it has already: 0.65 x the
/// CPU time of writing it without (300 MB in pieces of 512 KiB, ext4), and 64 MiB win nothing more.
const RESERVE_LEN_MIN: u64 = 1 << 20;
const RESERVE_LEN_MAX: u64 = 16 << 20;

/// What a pass leaves beside the part file.
pub(super) struct Passed {
    /// Its digests are the promised ones where there was a promise.
    pub(super) built: Built,
    /// The blob, if it came through a file.
    pub(super) download: Option<Download>,
}

/// Why a pass failed.
pub(super) enum Fault {
    /// What came is not the blob, as far as can be told: another mirror may have it.
    Blob(CacheError),
    /// Anything else.
    Other(CacheError),
}

impl From<CacheError> for Fault {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Build {
                source:
                    BuildError::Compressed { .. } | BuildError::Truncated { .. } | BuildError::Tar(_),
                ..
            } => Self::Blob(error),
            error => Self::Other(error),
        }
    }
}

impl From<Fault> for CacheError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Blob(error) | Fault::Other(error) => error,
        }
    }
}

/// Write the tar of `spec`'s blob to `part`, and check both digests.
pub(super) fn run(
    spec: &WholeSpec<'_>,
    works: &Works,
    claim: &Claim,
    part: &File,
    path: &Path,
) -> Result<Passed, Fault> {
    let layer = spec.layer();
    if let Some(passed) = by_spans(spec, works, claim, part, path)? {
        return Ok(passed);
    }
    let failed = |error: BuildError| build_failed(spec, path, error);
    let file = part.try_clone().map_err(CacheError::storage("opening again", path))?;
    let (sink, tar_hash) = sink(file, spec.diff_id.as_ref());
    let builder = |options: BuildOptions| {
        let builder = LayerBuilder::new(options, sink).map_err(failed)?;
        Ok::<_, CacheError>(builder.helped_by(&works.pool).stopped_by(spec.stop))
    };
    let (mut built, download) = match spec.program {
        None => decode_here(spec, claim, builder(spec.build.clone())?, failed)?,
        Some(program) => {
            let builder = builder(program::build_options(spec))?;
            program::decode(program, spec, claim, builder, failed)?
        }
    };
    if let Some(hash) = tar_hash.lock().take() {
        built.diff_id = hash.finish();
    }
    check(layer, "its blob has digest", &built.blob_digest, &layer).map_err(Fault::Blob)?;
    if let Some(diff_id) = &spec.diff_id {
        check(layer, "its tar has digest", &built.diff_id, diff_id)?;
    }
    Ok(Passed { built, download })
}

/// What writes a tar to `file`; and its digest, where the builder can't make it: it knows SHA-256 alone.
fn sink(file: File, diff_id: Option<&Digest>) -> (impl Sink, Arc<Mutex<Option<Hasher>>>) {
    let tar_hash = Arc::new(Mutex::new(other_hash(diff_id)));
    let (hash, mut reserved) = (Arc::clone(&tar_hash), 0);
    let sink = move |at: UncompressedOffset, bytes: &[u8]| {
        hash.lock().iter_mut().for_each(|hash| hash.update(bytes));
        let end = at.0 + bytes.len() as u64;
        if end > reserved {
            // If there is no room for so much, there may be for the bytes. What is too much goes when
            // the file gets its length.
            let len = reserved.clamp(RESERVE_LEN_MIN, RESERVE_LEN_MAX);
            let _ = reserve(&file, reserved, len);
            reserved = end.max(reserved + len);
        }
        file.write_all_at(bytes, at.0)
    };
    (sink, tar_hash)
}

/// Decode by a zTOC that is known, on all cores. `None` if that does not give the promised layer, for
/// whatever reason that another way may not have.
fn by_spans(
    spec: &WholeSpec<'_>,
    works: &Works,
    claim: &Claim,
    part: &File,
    path: &Path,
) -> Result<Option<Passed>, Fault> {
    let layer = spec.layer();
    let promised = spec.diff_id.filter(|it| it.algorithm() == Algorithm::Sha256);
    let (Some(encoded), Some(diff_id), None) = (&spec.known, promised, spec.program) else {
        return Ok(None);
    };
    if layer.algorithm() != Algorithm::Sha256 {
        return Ok(None);
    }
    let given_up = |error: SpansError| match error {
        SpansError::Build(error) => Err(build_failed(spec, path, error)),
        SpansError::Other(reason) => {
            tracing::info!(%layer, reason, "the layer is not decoded by the zTOC that is known");
            Ok(None)
        }
    };
    let known = match KnownToc::new(Arc::clone(encoded), spec.blob.size()) {
        Ok(known) => known,
        Err(error) => return Ok(given_up(error)?),
    };
    let file = part.try_clone().map_err(CacheError::storage("opening again", path))?;
    let sink = Arc::new(move |at: UncompressedOffset, bytes: &[u8]| {
        reserve(&file, at.0, bytes.len() as u64)?;
        file.write_all_at(bytes, at.0)
    });
    let mut refused = None;
    let passed = SpanBuilder::new(layer, known, &works.pool, spec.stream.priority, sink).map(
        |mut builder| {
            let download = source::feed(spec, claim, |bytes| {
                builder.feed(bytes).map_err(|error| {
                    refused = Some(error);
                    CacheError::Stopped { layer }
                })
            });
            download.map(|download| (builder.finish(), download))
        },
    );
    let (built, download) = match (passed, refused) {
        (Err(error), _) | (Ok(_), Some(error)) => return start_again(part, path, given_up(error)),
        (Ok(fed), None) => fed?,
    };
    let built = match built {
        Ok(built) => built,
        Err(error) => return start_again(part, path, given_up(error)),
    };
    check(layer, "its blob has digest", &built.blob_digest, &layer).map_err(Fault::Blob)?;
    if built.diff_id != diff_id {
        let reason = SpansError::Other(format!("its tar has digest {}", built.diff_id));
        return start_again(part, path, given_up(reason));
    }
    Ok(Some(Passed { built, download }))
}

/// Leave nothing of a first try to the next one.
fn start_again(
    part: &File,
    path: &Path,
    given_up: Result<Option<Passed>, CacheError>,
) -> Result<Option<Passed>, Fault> {
    part.set_len(0).map_err(CacheError::storage("emptying", path))?;
    Ok(given_up?)
}

fn build_failed(spec: &WholeSpec<'_>, path: &Path, error: BuildError) -> CacheError {
    let layer = spec.layer();
    match error {
        BuildError::Stopped => CacheError::Stopped { layer },
        BuildError::Sink { source, .. } => {
            CacheError::Storage { doing: "unpacking a layer into", path: path.to_owned(), source }
        }
        source => CacheError::Build { layer, source },
    }
}

/// Decompress by the builder itself.
fn decode_here(
    spec: &WholeSpec<'_>,
    claim: &Claim,
    mut builder: LayerBuilder<'_>,
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
