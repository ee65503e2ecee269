mod ahead;
mod frames;
mod golden;
mod random;
mod spans;

use std::sync::Arc;

use parking_lot::Mutex;
use spanfs_fetch::{Fetched, Priority};
use spanfs_layer::{Restart, SpanTable};

use super::*;
use crate::inflate::{Buffers, Decoder, HEADROOM, VerifiedSpan};

/// Build from `blob`, fed in pieces of `piece_len`; what came out, and the tar.
fn build(
    blob: &[u8],
    options: BuildOptions,
    piece_len: usize,
) -> Result<(Built, Vec<u8>), BuildError> {
    let (sink, tar) = gathering_sink();
    let mut builder = LayerBuilder::new(options, sink)?;
    for piece in blob.chunks(piece_len) {
        builder.feed(piece)?;
    }
    let built = builder.finish()?;
    let tar = std::mem::take(&mut *tar.lock());
    assert_eq!(built.blob_digest, Digest::of(blob));
    assert_eq!(built.blob_size, blob.len() as u64);
    assert_eq!(built.diff_id, Digest::of(&tar));
    assert_eq!(built.uncompressed_len, tar.len() as u64);
    Ok((built, tar))
}

/// A sink, and what it gathers.
fn gathering_sink() -> (impl Sink, Arc<Mutex<Vec<u8>>>) {
    let tar = Arc::new(Mutex::new(Vec::new()));
    let gathered = Arc::clone(&tar);
    let sink = move |at: UncompressedOffset, bytes: &[u8]| {
        let mut tar = gathered.lock();
        assert_eq!(at.0, tar.len() as u64);
        tar.extend_from_slice(bytes);
        Ok(())
    };
    (sink, tar)
}

/// Inflate every span of an encoded zTOC from only its range of the blob, and compare.
fn assert_spans_give(encoded: &[u8], blob: &[u8], tar: &[u8]) {
    let layer = Digest::of(blob);
    let table = SpanTable::from_ztoc(encoded).unwrap();
    let mut decoder = Decoder::new(Buffers::new(16 << 20));
    let mut at = 0;
    for (number, span) in table.spans().iter().enumerate() {
        let range = span.compressed.start.0 as usize..span.compressed.end.0 as usize;
        let bytes = [vec![0; HEADROOM].as_slice(), &blob[range]].concat();
        let fetched = Fetched { bytes, headroom: HEADROOM };
        let verified = VerifiedSpan::check(&layer, &table, number, fetched).unwrap();
        let window = match span.restart {
            Restart::Deflate { window_at, .. } if window_at > 0 => {
                Some(encoded[window_at as usize..].first_chunk().unwrap())
            }
            _ => None,
        };
        let inflated = decoder.inflate(verified, window).unwrap();
        assert_eq!(inflated.start().0, at as u64);
        let content = inflated.bytes_and_tail();
        assert!(content == &tar[at..at + content.len()], "span {number} differs");
        at += content.len();
    }
    assert!(at as u64 >= table.uncompressed_len());
}
