//! Opening a layer: whose files they are, and what an earlier run left in them.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use spanfs_fetch::Blob;
use spanfs_layer::{Digest, SpanTable};

use crate::CacheError;
use crate::cache::claim::{Claim, FillLock};
use crate::cache::directory::Directory;
use crate::journal::{Header, Journal, SPAN_COUNT_MAX};
use crate::layer_file::{Kept, LayerFile, Stamp, file_len};
use crate::life::{Event, Lives};
use crate::recover::{Found, Recovered, recover};
use crate::span_file;
use crate::windows::{KeptZtoc, Windows};
use crate::works::Works;

use super::status::Counters;
use super::{Followers, Layer, Role, Shards, Verification, Writer};

/// Names of a layer's files in its directory.
pub(crate) const LAYER: &str = "layer";
pub(crate) const JOURNAL: &str = "journal";
pub(crate) const ZTOC: &str = "ztoc";
pub(crate) const SPANS: &str = "spans";
pub(crate) const TAIL: &str = "tail";
pub(crate) const INDEX: &str = "index";
/// The blob as it comes, span by span.
pub(crate) const COMPRESSED: &str = "compressed";
/// Why the layer is not served any more.
pub(crate) const CONDEMNED: &str = "condemned";

/// Which layer to open.
#[derive(Clone)]
pub struct LayerSpec {
    /// Digest of the uncompressed tar as the image config promises it. Without it the layer can't be
    /// verified as a whole.
    pub diff_id: Option<Digest>,
    /// Where the compressed bytes come from; gives the layer digest and size.
    pub blob: Arc<dyn Blob>,
    /// Digest of the zTOC, as the SOCI index promises it or as it was built.
    pub ztoc_digest: Digest,
    /// The encoded zTOC, which the caller has checked against that digest.
    pub ztoc: Arc<[u8]>,
}

impl LayerSpec {
    /// All but the zTOC itself.
    pub(super) fn known(&self) -> KnownLayer {
        let Self { diff_id, blob, ztoc_digest, .. } = self;
        KnownLayer { diff_id: *diff_id, blob: Arc::clone(blob), ztoc_digest: *ztoc_digest }
    }
}

/// Which layer to open by what an earlier run kept of its zTOC.
#[derive(Clone)]
pub struct KnownLayer {
    /// See [`LayerSpec::diff_id`].
    pub diff_id: Option<Digest>,
    /// See [`LayerSpec::blob`].
    pub blob: Arc<dyn Blob>,
    /// See [`LayerSpec::ztoc_digest`].
    pub ztoc_digest: Digest,
}

/// Open a layer whose spans stand in `directory`; `None` if they don't, or not for that zTOC.
pub(crate) fn open_known(
    works: &Arc<Works>,
    directory: &Directory,
    known: KnownLayer,
) -> Result<Option<Arc<Layer>>, CacheError> {
    let digest = *known.blob.digest();
    let path = directory.layer(&digest);
    if !path.join(SPANS).exists() {
        return Ok(None);
    }
    let storage = |doing| CacheError::storage(doing, &path);
    let claim = Claim::open(&path).map_err(storage("opening the layer's directory"))?;
    check_condemned(&claim, &digest, &known.ztoc_digest)?;
    let Some((table, sums, ztoc)) = kept_spans(&claim, &known) else { return Ok(None) };
    let count = table.spans().len() as u32;
    let len = file_len(table.uncompressed_len());
    let header = Header::new(&digest, &known.ztoc_digest, count, len);
    let files = open_files(directory, claim, &header)?;
    let windows = Windows::known(ztoc, sums);
    Ok(Some(assemble(works, known, table, files, windows)))
}

/// What an earlier run kept of a zTOC, if that is whole and of this one. The windows in the zTOC
/// itself are checked one by one when they are needed.
fn kept_spans(claim: &Claim, known: &KnownLayer) -> Option<(SpanTable, Box<[u32]>, File)> {
    let mut bytes = Vec::new();
    let file = File::open(claim.file(SPANS)).ok()?;
    file.take(span_file::LEN_MAX).read_to_end(&mut bytes).ok()?;
    let (table, sums) = span_file::decode(&bytes, known.blob.digest(), &known.ztoc_digest)?;
    let fits = table.compressed_len() == known.blob.size();
    let ztoc = File::open(claim.file(ZTOC)).ok()?;
    fits.then_some((table, sums, ztoc))
}

/// Open a layer with the files in `directory`, or with private ones if another process fills those.
pub(crate) fn open(
    works: &Arc<Works>,
    directory: &Directory,
    spec: LayerSpec,
) -> Result<Arc<Layer>, CacheError> {
    let digest = *spec.blob.digest();
    let table = span_table(&spec)?;
    let span_count = table.spans().len();
    let len = file_len(table.uncompressed_len());
    let header = Header::new(&digest, &spec.ztoc_digest, span_count as u32, len);
    let path = directory.layer(&digest);
    let storage = |doing| CacheError::storage(doing, &path);
    let claim = Claim::open(&path).map_err(storage("opening the layer's directory"))?;
    check_condemned(&claim, &digest, &spec.ztoc_digest)?;
    let files = open_files(directory, claim, &header)?;
    let ztoc = keep_ztoc(&files, &spec.ztoc).map_err(storage(KEEPING_ZTOC))?;
    let windows = Windows::new(ztoc, &spec.ztoc, &table).ok_or_else(|| CacheError::BadZtoc {
        layer: digest,
        reason: "a checkpoint's window lies outside of it".into(),
    })?;
    keep_spans(&files.claim, &spec, &table, &windows);
    Ok(assemble(works, spec.known(), table, files, windows))
}

/// Spare the next start the zTOC. Where the disk refuses, it reads that again.
pub(super) fn keep_spans(claim: &Claim, spec: &LayerSpec, table: &SpanTable, windows: &Windows) {
    let layer = spec.blob.digest();
    let bytes = span_file::encode(layer, &spec.ztoc_digest, table, windows.sums());
    if let Err(error) = replace(&claim.file(SPANS), &bytes) {
        tracing::warn!(%layer, %error, "the layer's spans are not kept");
    }
}

pub(super) fn span_table(spec: &LayerSpec) -> Result<SpanTable, CacheError> {
    let bad = |reason| CacheError::BadZtoc { layer: *spec.blob.digest(), reason };
    let table = SpanTable::from_ztoc(&spec.ztoc).map_err(|error| bad(with_causes(&error)))?;
    let (found, expected) = (table.compressed_len(), spec.blob.size());
    if found != expected {
        return Err(bad(format!("it is for a blob of {found} bytes, the layer has {expected}")));
    }
    let count = table.spans().len();
    if count > SPAN_COUNT_MAX {
        return Err(bad(format!("{count} spans, at most {SPAN_COUNT_MAX} are served")));
    }
    Ok(table)
}

/// An error and what is behind it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A layer's files, opened in the role that the other processes leave to us.
pub(super) struct Files {
    pub(super) claim: Claim,
    pub(super) role: Role,
    pub(super) fill: Option<FillLock>,
    pub(super) file: LayerFile,
    pub(super) journal: Option<Journal>,
    pub(super) recovered: Recovered,
}

fn open_files(directory: &Directory, claim: Claim, header: &Header) -> Result<Files, CacheError> {
    let path = claim.path().to_path_buf();
    let storage = |doing| CacheError::storage(doing, &path);
    if let Some(fill) = take_over(&claim).map_err(storage("locking the layer"))? {
        return open_owned(claim, fill, header, Role::Owner)
            .map_err(storage("opening the files of the layer"));
    }
    if let Some(files) = open_complete(&claim, header).map_err(storage("reading the layer"))? {
        let (file, recovered) = files;
        let role = Role::Reader;
        return Ok(Files { claim, role, fill: None, file, journal: None, recovered });
    }
    tracing::info!(path = %path.display(), "another process fills the layer: using a private copy");
    let claim = directory.private().map_err(storage("making a private copy beside"))?;
    let fill = claim.try_fill().map_err(storage("locking a private copy beside"))?;
    let Some(fill) = fill else { unreachable!("a private directory is ours alone") };
    open_owned(claim, fill, header, Role::Private).map_err(storage("opening a private copy beside"))
}

/// Become the one who fills. Who has just closed the layer may not have let go of it yet.
pub(crate) fn take_over(claim: &Claim) -> io::Result<Option<FillLock>> {
    for _ in 0..TAKE_OVER_TRIES {
        if let Some(fill) = claim.try_fill()? {
            return Ok(Some(fill));
        }
        std::thread::sleep(TAKE_OVER_DELAY);
    }
    claim.try_fill()
}

/// Together 50 ms: what closing takes on a busy machine, and what the second of two processes can
/// lose before its first read.
const TAKE_OVER_TRIES: u32 = 10;
const TAKE_OVER_DELAY: Duration = Duration::from_millis(5);

fn open_owned(claim: Claim, fill: FillLock, header: &Header, role: Role) -> io::Result<Files> {
    let path = claim.file(LAYER);
    let (mut file, kept) = LayerFile::open(&path, header.file_len)?;
    if kept == Kept::No {
        remove_if_there(&claim.file(JOURNAL))?;
    }
    let (journal, records) = Journal::open(&claim.file(JOURNAL), header)?;
    if records.is_empty() && kept == Kept::Yes {
        // Nobody vouches for these bytes; they would only take space.
        file = LayerFile::create(&path, header.file_len)?;
        remove_if_there(&claim.file(TAIL))?;
    }
    let recovered = recover(&records, header.span_count as usize, &found(&claim)?);
    // What is complete needs nobody to fill it.
    let fill = (!recovered.sealed).then_some(fill);
    Ok(Files { claim, role, fill, file, journal: Some(journal), recovered })
}

/// The files of another process, if it has finished them.
fn open_complete(claim: &Claim, header: &Header) -> io::Result<Option<(LayerFile, Recovered)>> {
    let records = Journal::peek(&claim.file(JOURNAL), header)?;
    let recovered = recover(&records, header.span_count as usize, &found(claim)?);
    if !recovered.sealed {
        return Ok(None);
    }
    let file = LayerFile::open_complete(&claim.file(LAYER), header.file_len)?;
    Ok(Some((file, recovered)))
}

fn found(claim: &Claim) -> io::Result<Found> {
    let stamp = |name| match Stamp::at(&claim.file(name)) {
        Ok(stamp) => Ok(Some(stamp)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    Ok(Found { layer: stamp(LAYER)?, ztoc: stamp(ZTOC)?, index: stamp(INDEX)? })
}

pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The zTOC beside the layer file, written anew unless the same bytes stand there. While a large one is
/// written, the layer's index can be made.
fn keep_ztoc(files: &Files, bytes: &Arc<[u8]>) -> io::Result<KeptZtoc> {
    let path = files.claim.file(ZTOC);
    let same = || std::fs::read(&path).is_ok_and(|kept| kept == bytes[..]);
    if files.recovered.ztoc_kept || same() {
        return Ok(File::open(&path)?.into());
    }
    if bytes.len() >= LARGE_ZTOC_LEN {
        let (path, bytes) = (path.clone(), Arc::clone(bytes));
        let thread = std::thread::Builder::new().name("ztoc".into());
        if let Ok(thread) = thread.spawn(move || replace(&path, &bytes)) {
            return Ok(thread.into());
        }
    }
    Ok(replace(&path, bytes)?.into())
}

/// 2 ms of copying.
const LARGE_ZTOC_LEN: usize = 4 << 20;
/// What is attempted then.
pub(super) const KEEPING_ZTOC: &str = "keeping the zTOC of the layer";

/// Write a file so that whoever opens it sees all of it or what was there before.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let mut file =
        File::options().read(true).write(true).create(true).truncate(true).open(&fresh)?;
    let renamed = file.write_all(bytes).and_then(|()| std::fs::rename(&fresh, path));
    if renamed.is_err() {
        drop(std::fs::remove_file(&fresh));
    }
    renamed.map(|()| file)
}

pub(super) fn assemble(
    works: &Arc<Works>,
    known: KnownLayer,
    table: SpanTable,
    files: Files,
    windows: Windows,
) -> Arc<Layer> {
    let Files { claim, role, fill, file, journal, recovered } = files;
    let count = table.spans().len();
    let lives = Lives::new(count);
    let events: &[_] = match recovered.sealed {
        true => &[Event::Claim, Event::Ask, Event::Believe],
        false => &[Event::Claim],
    };
    for span in (0..count).filter(|it| recovered.claims.get(*it).is_some_and(Option::is_some)) {
        for event in events {
            lives.advance(span, *event);
        }
    }
    let verification = match (recovered.sealed, known.diff_id) {
        (true, _) => Verification::Verified,
        (false, Some(_)) => Verification::Pending,
        (false, None) => Verification::Unverifiable,
    };
    let id = works.new_id();
    let layer = Arc::new_cyclic(|me| Layer {
        me: me.clone(),
        id,
        digest: *known.blob.digest(),
        diff_id: known.diff_id,
        ztoc_digest: known.ztoc_digest,
        blob: known.blob,
        table,
        works: works.clone(),
        claim,
        role,
        file,
        windows,
        lives,
        claims: recovered.claims.into(),
        touched: (0..count).map(|_| AtomicBool::new(false)).collect(),
        observers: RwLock::default(),
        followers: Followers::default(),
        shards: Shards::default(),
        writer: Mutex::new(Writer { journal, fill, ..Writer::default() }),
        verification: RwLock::new(verification),
        verifying: AtomicBool::new(false),
        complete: AtomicBool::new(recovered.sealed),
        blob_file: RwLock::default(),
        fault: OnceLock::new(),
        counters: Counters::default(),
    });
    works.enter(id, &layer);
    layer.check_left();
    layer
}

/// What stays of a layer that was found out.
#[derive(Serialize, Deserialize)]
struct Condemned {
    ztoc: Digest,
    reason: String,
}

/// Remove a condemned layer's files and leave the reason.
pub(super) fn leave_reason(claim: &Claim, ztoc: &Digest, reason: &str) {
    let condemned = Condemned { ztoc: *ztoc, reason: reason.to_owned() };
    let text = serde_json::to_vec_pretty(&condemned).unwrap_or_default();
    let left = replace(&claim.file(CONDEMNED), &text).map(drop);
    let removed = [LAYER, JOURNAL, ZTOC, SPANS, TAIL, INDEX, COMPRESSED]
        .into_iter()
        .map(|name| remove_if_there(&claim.file(name)))
        .fold(left, Result::and);
    if let Err(error) = removed {
        tracing::warn!(path = %claim.path().display(), %error, "files of a condemned layer stay");
    }
}

/// Refuse a layer that was found out with this zTOC; another zTOC is another chance.
fn check_condemned(claim: &Claim, layer: &Digest, ztoc: &Digest) -> Result<(), CacheError> {
    let Some(condemned) = condemned(claim.path()) else { return Ok(()) };
    if condemned.ztoc == *ztoc {
        return Err(CacheError::Condemned { layer: *layer, reason: condemned.reason });
    }
    let path = claim.file(CONDEMNED);
    remove_if_there(&path).map_err(CacheError::storage("forgetting an earlier verdict", &path))
}

fn condemned(directory: &Path) -> Option<Condemned> {
    // Unreadable or torn: then the layer is tried again, and found out again.
    serde_json::from_slice(&std::fs::read(directory.join(CONDEMNED)).ok()?).ok()
}

/// Why the layer in `directory` is not served any more.
pub(crate) fn condemned_reason(directory: &Path) -> Option<String> {
    condemned(directory).map(|condemned| condemned.reason)
}
