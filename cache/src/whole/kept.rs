//! What an earlier pass left, found again.
//!
//! Beside the layer file stands `whole`, a JSON object: `diff_id`, and either `ztoc`, the digest of the
//! zTOC that *we* built (one by somebody else may stand there too: whoever asks for a layer without
//! zTOC has not chosen to trust that), or `never`: why there is no zTOC, the length of the tar, and
//! the stamp of the layer file that holds it.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use spanfs_layer::tar::{Limits, Reader};
use spanfs_layer::{Digest, Record};

use super::{LocalLayer, Origin, Whole, WholeSpec, WholeToc};
use crate::cache::claim::Claim;
use crate::layer::open::{ZTOC, replace};
use crate::layer_file::Stamp;
use crate::{Cache, CacheError, LayerSpec, Role};

const WHOLE: &str = "whole";

/// Longest note that is read.
const NOTE_LEN_MAX: u64 = 64 << 10;

/// What a pass found.
pub(super) enum Found {
    /// A zTOC could be made.
    Lazy { ztoc: Digest },
    /// The layer file is all there will be.
    Never { reason: String, uncompressed_len: u64 },
}

#[derive(Serialize, Deserialize)]
struct Note {
    diff_id: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ztoc: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    never: Option<Never>,
}

#[derive(Serialize, Deserialize)]
struct Never {
    reason: String,
    uncompressed_len: u64,
    stamp: [u8; crate::layer_file::STAMP_LEN],
}

/// Write down what a pass found.
///
/// For a layer that stays a file, its layer file must be in its place and durable, and so is the note
/// when this returns: nothing else tells whether that file is whole.
pub(super) fn note(claim: &Claim, diff_id: Digest, found: &Found) -> io::Result<()> {
    let (ztoc, never) = match found {
        Found::Lazy { ztoc } => (Some(*ztoc), None),
        Found::Never { reason, uncompressed_len } => {
            let Stamp(stamp) = Stamp::at(&claim.file(crate::layer::open::LAYER))?;
            let uncompressed_len = *uncompressed_len;
            (None, Some(Never { reason: reason.clone(), uncompressed_len, stamp }))
        }
    };
    let text = serde_json::to_vec_pretty(&Note { diff_id, ztoc, never })?;
    let note = replace(&claim.file(WHOLE), &text)?;
    match found {
        Found::Lazy { .. } => Ok(()),
        Found::Never { .. } => note.sync_all().and_then(|()| File::open(claim.path())?.sync_all()),
    }
}

/// Outcome of a search, which keeps the claim only for what it found.
pub(super) enum Search {
    Found(Whole),
    Nothing(Claim),
}

/// Look for what an earlier pass left.
pub(super) fn find(
    cache: &Cache,
    claim: Claim,
    spec: &WholeSpec<'_>,
) -> Result<Search, CacheError> {
    let Some(note) = read_note(&claim) else { return Ok(Search::Nothing(claim)) };
    let layer = spec.layer();
    if let Some(promised) = spec.diff_id.filter(|promised| *promised != note.diff_id) {
        if promised.algorithm() != note.diff_id.algorithm() {
            // It says nothing of this promise.
            return Ok(Search::Nothing(claim));
        }
        let reason = format!("its tar has digest {}, expected {promised}", note.diff_id);
        return Err(CacheError::Condemned { layer, reason });
    }
    match (note.ztoc, note.never) {
        (Some(ztoc), _) => Ok(match lazy(cache, &claim, spec, note.diff_id, ztoc) {
            Some(whole) => Search::Found(whole),
            None => Search::Nothing(claim),
        }),
        (None, Some(never)) => local(claim, spec, note.diff_id, never),
        (None, None) => Ok(Search::Nothing(claim)),
    }
}

fn read_note(claim: &Claim) -> Option<Note> {
    let mut text = Vec::new();
    File::open(claim.file(WHOLE)).ok()?.take(NOTE_LEN_MAX).read_to_end(&mut text).ok()?;
    // Torn or of another time: then the blob is read again.
    serde_json::from_slice(&text).ok()
}

/// Open the layer by the zTOC that we built; `None` if that is not to be had any more.
fn lazy(
    cache: &Cache,
    claim: &Claim,
    spec: &WholeSpec<'_>,
    diff_id: Digest,
    ztoc_digest: Digest,
) -> Option<Whole> {
    let ztoc: Arc<[u8]> = std::fs::read(claim.file(ZTOC)).ok()?.into();
    if Digest::of(&ztoc) != ztoc_digest {
        tracing::info!(layer = %spec.layer(), "the kept zTOC is not the one that was built");
        return None;
    }
    let layer_spec = LayerSpec {
        diff_id: Some(diff_id),
        blob: Arc::clone(&spec.blob),
        ztoc_digest,
        ztoc: Arc::clone(&ztoc),
    };
    match cache.layer(layer_spec) {
        Ok(layer) => {
            // Whoever left it may have ended before the disk had it.
            layer.wait_for_check(|| spec.check_stop().is_ok());
            let toc = WholeToc::Lazy { layer, ztoc };
            Some(Whole { toc, diff_id, origin: Origin::Disk })
        }
        Err(error) => {
            tracing::warn!(layer = %spec.layer(), %error, "what a pass left can't be used");
            None
        }
    }
}

fn local(
    claim: Claim,
    spec: &WholeSpec<'_>,
    diff_id: Digest,
    never: Never,
) -> Result<Search, CacheError> {
    let Never { reason, uncompressed_len, stamp } = never;
    let path = claim.file(crate::layer::open::LAYER);
    let read = || -> io::Result<Option<(File, Vec<Record>)>> {
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        if Stamp::of(&file.metadata()?) != Stamp(stamp) {
            return Ok(None);
        }
        let records = read_records(&file, uncompressed_len, spec)?;
        Ok(Some((file, records)))
    };
    match read() {
        Ok(Some((file, records))) => {
            let len = crate::layer_file::file_len(uncompressed_len);
            let content = LocalLayer::new(spec.layer(), claim, Role::Reader, file, len);
            let (content, records) = (Arc::new(content), records.into());
            let toc = WholeToc::Never { content, records, reason };
            Ok(Search::Found(Whole { toc, diff_id, origin: Origin::Disk }))
        }
        Ok(None) => Ok(Search::Nothing(claim)),
        Err(error) => {
            spec.check_stop()?;
            tracing::warn!(layer = %spec.layer(), %error, "the kept layer file can't be read");
            Ok(Search::Nothing(claim))
        }
    }
}

/// Bytes read at once.
const PIECE_LEN: usize = 1 << 20;

/// The entries of a tar in a file.
fn read_records(file: &File, len: u64, spec: &WholeSpec<'_>) -> io::Result<Vec<Record>> {
    let (mut reader, mut records) = (Reader::new(Limits::default()), Vec::new());
    let mut buffer = vec![0; PIECE_LEN];
    let mut at = 0;
    while at < len && !reader.at_end() {
        spec.check_stop().map_err(io::Error::other)?;
        let want = (len - at).min(PIECE_LEN as u64) as usize;
        let piece = buffer.get_mut(..want).unwrap_or_default();
        file.read_exact_at(piece, at)?;
        reader.feed(piece, &mut records).map_err(io::Error::other)?;
        at += want as u64;
    }
    reader.finish().map_err(io::Error::other)?;
    Ok(records)
}
