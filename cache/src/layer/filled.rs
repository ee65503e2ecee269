//! A layer whose bytes came all at once: complete and verified without another look.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use spanfs_fetch::buffer::Durable;
use spanfs_layer::SpanTable;

use super::open::{
    CONDEMNED, Files, INDEX, JOURNAL, LAYER, LayerSpec, SPANS, TAIL, ZTOC, assemble, keep_spans,
    remove_if_there, replace, span_table,
};
use super::{Layer, Role};
use crate::CacheError;
use crate::build::SpanSum;
use crate::cache::claim::{Claim, FillLock};
use crate::cache::directory::PART;
use crate::journal::{Header, Journal, Record};
use crate::layer_file::{LayerFile, file_len};
use crate::recover::Recovered;
use crate::windows::Windows;
use crate::works::Works;

/// What a pass over a whole blob leaves, its digests checked.
pub(crate) struct Filled {
    pub(crate) claim: Claim,
    pub(crate) fill: FillLock,
    pub(crate) role: Role,
    /// The tar, with all that follows the archive, in [`PART`].
    pub(crate) part: File,
    pub(crate) uncompressed_len: u64,
    pub(crate) sums: Vec<SpanSum>,
    pub(crate) durable: Durable,
}

/// Make the part file the layer file of a complete layer.
///
/// It need not be durable: whoever waits for it would wait for the disk as long as for the network. What
/// a power cut takes of it is told by the spans' sums, as of a layer that came span by span;
/// [`Layer::make_durable`] ends that. After an error none of the layer's files is left.
pub(crate) fn open_filled(
    works: &Arc<Works>,
    spec: LayerSpec,
    filled: Filled,
) -> Result<Arc<Layer>, CacheError> {
    let table = span_table(&spec)?;
    let path = filled.claim.path().to_path_buf();
    let storage = |doing| CacheError::storage(doing, &path);
    let committed = commit(&filled, &spec, &table).inspect_err(|_| discard(&filled.claim));
    let Committed { journal, claims, file, ztoc } =
        committed.map_err(storage("keeping the layer in"))?;
    let windows =
        Windows::new(ztoc.into(), &spec.ztoc, &table).ok_or_else(|| CacheError::BadZtoc {
            layer: *spec.blob.digest(),
            reason: "a checkpoint's window lies outside of it".into(),
        })?;
    let recovered = Recovered { claims, sealed: true, ztoc_kept: true, index_made: false };
    let Filled { claim, fill, role, durable, .. } = filled;
    let (fill, journal) = (Some(fill), Some(journal));
    let files = Files { claim, role, fill, file, journal, recovered };
    keep_spans(&files.claim, &spec, &table, &windows);
    let layer = assemble(works, spec.known(), table, files, windows);
    if durable == Durable::Yes {
        let sealed = layer.seal().inspect_err(|_| discard(&layer.claim));
        sealed.map_err(storage("making the layer durable in"))?;
    }
    Ok(layer)
}

/// A layer's files in their places.
struct Committed {
    journal: Journal,
    /// Sums of the spans that the zTOC has.
    claims: Vec<Option<u32>>,
    file: LayerFile,
    ztoc: File,
}

fn commit(filled: &Filled, spec: &LayerSpec, table: &SpanTable) -> io::Result<Committed> {
    let (claim, count) = (&filled.claim, table.spans().len());
    let (spans, behind) = filled.sums.split_at_checked(count).unwrap_or_default();
    assert_eq!(spans.len(), count, "the builder sums up every span of its zTOC");
    let end = behind.first().map_or(filled.uncompressed_len, |sum| sum.start.0);
    keep_tail(filled, table.uncompressed_len()..end)?;
    let len = file_len(table.uncompressed_len());
    filled.part.set_len(table.uncompressed_len())?;
    filled.part.set_len(len)?;
    let ztoc = replace(&claim.file(ZTOC), &spec.ztoc)?;
    for name in [JOURNAL, INDEX, CONDEMNED] {
        remove_if_there(&claim.file(name))?;
    }
    std::fs::rename(claim.file(PART), claim.file(LAYER))?;
    let header = Header::new(spec.blob.digest(), &spec.ztoc_digest, count as u32, len);
    let (mut journal, _) = Journal::open(&claim.file(JOURNAL), &header)?;
    for (span, sum) in (0..).zip(spans) {
        journal.append(&Record::Span { span, crc: sum.crc })?;
    }
    journal.append(&Record::Verified)?;
    let (file, _) = LayerFile::open(&claim.file(LAYER), len)?;
    let claims = spans.iter().map(|sum| Some(sum.crc)).collect();
    Ok(Committed { journal, claims, file, ztoc })
}

/// What follows the archive in its last span stands in a file of its own, as after a lazy fill.
fn keep_tail(filled: &Filled, range: Range<u64>) -> io::Result<()> {
    let path = filled.claim.file(TAIL);
    remove_if_there(&path)?;
    let len = range.end.saturating_sub(range.start);
    if len == 0 {
        return Ok(());
    }
    let mut part = &filled.part;
    part.seek(SeekFrom::Start(range.start))?;
    let copied = io::copy(&mut part.take(len), &mut File::create(path)?)?;
    assert_eq!(copied, len, "the part file holds what was written to it");
    Ok(())
}

/// After an error: what is half there is no layer.
fn discard(claim: &Claim) {
    for name in [PART, LAYER, JOURNAL, ZTOC, SPANS, TAIL] {
        if let Err(error) = remove_if_there(&claim.file(name)) {
            tracing::warn!(path = %claim.path().display(), name, %error, "left-over of a layer stays");
        }
    }
}
