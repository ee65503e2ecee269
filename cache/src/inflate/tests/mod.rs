mod golden;
mod hostile;
mod pool;

use spanfs_fetch::Fetched;
use spanfs_layer::{CompressedOffset, Digest, Restart, Span, UncompressedOffset};

use super::*;
use crate::sys::{Format, Inflater, Stop};

/// All members of `gz`, by the streaming decoder.
fn gunzip(gz: &[u8]) -> Vec<u8> {
    let mut decoder = Inflater::new(Format::Gzip).unwrap();
    let (mut rest, mut out, mut room) = (gz, Vec::new(), vec![0; 1 << 20]);
    while !rest.is_empty() {
        let progress = decoder.step(rest, &mut room, Stop::End).unwrap();
        assert!(!progress.is_stuck(), "truncated");
        rest = &rest[progress.consumed..];
        out.extend_from_slice(&room[..progress.produced]);
        if progress.end {
            decoder.reset(Format::Gzip);
        }
    }
    out
}

/// The span as the fetcher would deliver it, with `headroom` bytes of rubbish in front.
fn span_of(blob: &[u8], span: &Span, number: usize, end: End, headroom: usize) -> VerifiedSpan {
    let range = span.compressed.start.0 as usize..span.compressed.end.0 as usize;
    let mut bytes = vec![0xa5; headroom];
    bytes.extend_from_slice(&blob[range]);
    let fetched = Fetched { bytes, headroom };
    assert_eq!(Digest::of(fetched.data()), span.digest);
    let (layer, span) = (Digest::of(blob), span.clone());
    VerifiedSpan { layer, number, span, end, bytes: fetched.bytes, headroom }
}

fn window_before(tar: &[u8], out: u64) -> Box<[u8; WINDOW_LEN]> {
    let mut window = Box::new([0; WINDOW_LEN]);
    let from = &tar[(out as usize).saturating_sub(WINDOW_LEN)..out as usize];
    window[WINDOW_LEN - from.len()..].copy_from_slice(from);
    window
}
