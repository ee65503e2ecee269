//! The bytes of a blob in order: from the network through memory, or through a file.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use spanfs_fetch::buffer::{BufferError, Download, DownloadOptions, Growing, Slot, Stream};
use spanfs_fetch::{Blob, Class};

use super::{Buffer, STOP_POLL, WholeSpec};
use crate::CacheError;
use crate::cache::claim::Claim;
use crate::cache::directory::BLOB;

/// Times in a row that a chunk is asked for again, after the engine gave up on it.
const RETRIES_MAX: u32 = 2;
/// Bytes read at once from the file of a blob.
const PIECE_LEN: usize = 1 << 20;

/// Give all bytes of the blob to `take`, in order. The complete download, if they came through a file.
pub(super) fn feed(
    spec: &WholeSpec<'_>,
    claim: &Claim,
    take: impl FnMut(&[u8]) -> Result<(), CacheError>,
) -> Result<Option<Download>, CacheError> {
    match (&spec.local, spec.buffer) {
        (Some(local), _) => through_memory(spec, local, take).map(|()| None),
        (None, Buffer::Memory) => through_memory(spec, &spec.blob, take).map(|()| None),
        (None, Buffer::File) => through_file(spec, claim, take).map(Some),
    }
}

/// Whether a later pass may go on with what came of the blob.
pub(super) fn is_resumable(error: &CacheError) -> bool {
    match error {
        CacheError::Unavailable { source, .. } => source.class() == Class::Retry,
        CacheError::Stopped { .. } => true,
        _ => false,
    }
}

/// What a download's failure is to the cache.
pub(super) fn failed(spec: &WholeSpec<'_>, error: BufferError) -> CacheError {
    let layer = spec.layer();
    match error {
        BufferError::Fetch { source, .. } => CacheError::Unavailable { layer, source },
        BufferError::Stopped { .. } => CacheError::Stopped { layer },
        BufferError::Busy { .. } => CacheError::InUse { layer },
        BufferError::NoSpace { path, source, .. } => {
            CacheError::Storage { doing: "reserving space for a blob in", path, source }
        }
        BufferError::Disk { path, action, source } => {
            CacheError::Storage { doing: action, path, source }
        }
    }
}

fn through_memory(
    spec: &WholeSpec<'_>,
    blob: &Arc<dyn Blob>,
    mut take: impl FnMut(&[u8]) -> Result<(), CacheError>,
) -> Result<(), CacheError> {
    let _turns = wait_for_turn(spec, || true)?;
    let mut stream = Stream::new(Arc::clone(blob), 0..blob.size(), spec.stream.clone());
    let mut retries = 0;
    loop {
        spec.check_stop()?;
        match stream.poll_in_order(STOP_POLL) {
            Poll::Pending => {}
            Poll::Ready(None) => return Ok(()),
            Poll::Ready(Some(Ok(chunk))) => {
                retries = 0;
                let data = chunk.fetched.data();
                take(data)?;
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

fn through_file(
    spec: &WholeSpec<'_>,
    claim: &Claim,
    take: impl FnMut(&[u8]) -> Result<(), CacheError>,
) -> Result<Download, CacheError> {
    let options = DownloadOptions { stream: spec.stream.clone(), failures_max: RETRIES_MAX + 1 };
    let download = Download::open(&claim.file(BLOB), &*spec.blob, options);
    let mut download = download.map_err(|error| failed(spec, error))?;
    let resumed = download.recorded_bytes();
    if resumed > 0 {
        tracing::info!(layer = %spec.layer(), bytes = resumed, "an interrupted download goes on");
    }
    let growing = download.growing();
    let given_up = AtomicBool::new(false);
    let stop = || given_up.load(Ordering::Relaxed) || spec.stop.load(Ordering::Relaxed);
    let (downloaded, read) = std::thread::scope(|scope| {
        let downloading = || download.run(&spec.blob, &stop);
        let thread = std::thread::Builder::new().name("download".to_owned());
        let thread = thread.spawn_scoped(scope, downloading).map_err(CacheError::Threads)?;
        let read = read_growing(spec, &growing, take);
        given_up.store(read.is_err(), Ordering::Relaxed);
        let downloaded = thread.join().unwrap_or_else(|it| std::panic::resume_unwind(it));
        Ok::<_, CacheError>((downloaded, read))
    })?;
    match (downloaded, read) {
        // Whoever takes the bytes refused them, or was stopped.
        (_, Err(error)) => Err(error),
        (Err(error), Ok(())) => Err(failed(spec, error)),
        (Ok(()), Ok(())) => Ok(download),
    }
}

/// Read the file of a download as it grows; ends early with the download.
fn read_growing(
    spec: &WholeSpec<'_>,
    growing: &Growing,
    mut take: impl FnMut(&[u8]) -> Result<(), CacheError>,
) -> Result<(), CacheError> {
    let len = spec.blob.size();
    // It comes meanwhile; a download that failed needs no turn.
    let goes_on = || len == 0 || growing.wait(len - 1, Duration::ZERO).is_some();
    let Some(_turns) = wait_for_turn(spec, goes_on)? else { return Ok(()) };
    let mut buffer = vec![0; PIECE_LEN];
    let mut at = 0;
    while at < len {
        spec.check_stop()?;
        let Some(front) = growing.wait(at, STOP_POLL) else { return Ok(()) };
        while at < front {
            let piece_len = usize::try_from(front - at).unwrap_or(PIECE_LEN).min(PIECE_LEN);
            let piece = buffer.get_mut(..piece_len).unwrap_or_default();
            let read = growing.file().read_exact_at(piece, at);
            read.map_err(|source| CacheError::Storage {
                doing: "reading the blob of a layer below",
                path: std::path::PathBuf::from(spec.layer().to_string()),
                source,
            })?;
            take(piece)?;
            at += piece_len as u64;
            (spec.progress)(at);
            spec.check_stop()?;
        }
    }
    Ok(())
}

/// Wait until this layer may be decoded, as long as that is of use: then `None`.
fn wait_for_turn(
    spec: &WholeSpec<'_>,
    is_of_use: impl Fn() -> bool,
) -> Result<Option<Vec<Slot>>, CacheError> {
    let mut turns = Vec::new();
    for limit in spec.unpacks {
        let turn = loop {
            if let Some(turn) = limit.take_within(STOP_POLL) {
                break turn;
            }
            spec.check_stop()?;
            if !is_of_use() {
                return Ok(None);
            }
        };
        turns.push(turn);
    }
    Ok(Some(turns))
}
