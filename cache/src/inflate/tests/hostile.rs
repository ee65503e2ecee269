//! Tables and bytes that lie.

use super::*;

const TEXT_LEN: usize = 300_000;

/// Bytes that compress, without repeating.
fn text() -> Vec<u8> {
    let mut state = 1_u32;
    let next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b"etaoinshrdlu \n{}"[(state >> 28) as usize]
    };
    std::iter::repeat_with(next).take(TEXT_LEN).collect()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::new(6).unwrap());
    let mut out = vec![0; compressor.gzip_compress_bound(content.len())];
    let len = compressor.gzip_compress(content, &mut out).unwrap();
    out.truncate(len);
    out
}

/// The only span of a gzip blob, said to hold `len` bytes.
fn only_span(blob: &[u8], len: u64) -> VerifiedSpan {
    let span = Span {
        compressed: CompressedOffset(10)..CompressedOffset(blob.len() as u64),
        uncompressed: UncompressedOffset(0)..UncompressedOffset(len),
        digest: Digest::of(&blob[10..]),
        restart: Restart::Deflate { bits: 0, window_at: 0 },
    };
    span_of(blob, &span, 0, End::Blob, HEADROOM)
}

fn inflate(span: VerifiedSpan) -> Result<InflatedSpan, InflateFault> {
    Decoder::new(Buffers::new(8 << 20)).inflate(span, None).map_err(|error| error.fault)
}

#[test]
fn a_longer_promise_is_an_error() {
    let blob = gzip(&text());
    let fault = inflate(only_span(&blob, TEXT_LEN as u64 + 1)).err().unwrap();
    let expected = TEXT_LEN as u64 + 1;
    assert_eq!(fault, InflateFault::WrongLength { found: TEXT_LEN as u64, expected });
}

#[test]
fn what_follows_the_archive_is_its_tail() {
    let text = text();
    // A tail that fits the first guess, and one that does not.
    for len in [TEXT_LEN - 10_000, 1000, 0] {
        let inflated = inflate(only_span(&gzip(&text), len as u64)).unwrap();
        assert!(inflated.bytes() == &text[..len]);
        assert!(inflated.tail() == &text[len..]);
    }
}

#[test]
fn a_bomb_is_refused_before_memory_is_taken() {
    let blob = gzip(&text());
    let fault = inflate(only_span(&blob, 1 << 40)).err().unwrap();
    assert!(matches!(fault, InflateFault::Implausible { .. }), "{fault}");
    let zeros = gzip(&vec![0; TAIL_BYTES_MAX as usize + 1]);
    let fault = inflate(only_span(&zeros, 0)).err().unwrap();
    assert_eq!(fault, InflateFault::LongTail { max: TAIL_BYTES_MAX });
}

#[test]
fn a_wrong_trailer_of_a_later_member_is_an_error() {
    let text = text();
    let mut blob = [gzip(&text), gzip(&text), gzip(&[])].concat();
    assert!(inflate(only_span(&blob, 2 * TEXT_LEN as u64)).unwrap().tail().is_empty());
    // The last member is empty: ten bytes of header, two of data, eight of trailer.
    let at = blob.len() - 20 - 8;
    blob[at] ^= 1;
    let fault = inflate(only_span(&blob, 2 * TEXT_LEN as u64)).err().unwrap();
    assert!(matches!(fault, InflateFault::Stream(_)), "{fault}");
}

#[test]
fn junk_and_truncation_are_errors() {
    let text = text();
    let blob = gzip(&text);
    for mangled in [
        [blob.as_slice(), &[0; 512]].concat(),
        [blob.as_slice(), b"junk"].concat(),
        blob[..blob.len() - 1].to_vec(),
        blob[..blob.len() / 2].to_vec(),
        blob[..11].to_vec(),
        blob[..10].to_vec(),
    ] {
        assert!(inflate(only_span(&mangled, TEXT_LEN as u64 / 4)).is_err());
    }
}

#[test]
fn a_flipped_bit_is_an_error_or_other_bytes_of_the_same_length() {
    let text = text();
    let blob = gzip(&text);
    for at in (10..blob.len()).step_by(blob.len() / 500) {
        let mut mangled = blob.clone();
        mangled[at] ^= 1 << (at % 8);
        if let Ok(inflated) = inflate(only_span(&mangled, TEXT_LEN as u64)) {
            assert_eq!(inflated.bytes().len(), TEXT_LEN);
        }
    }
}

#[test]
fn zstd_frames_inflate_to_exactly_what_was_promised() {
    let text = text();
    let frame = |content: &[u8]| ::zstd::encode_all(content, 3).unwrap();
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    let blob = [&skippable, frame(&text).as_slice(), &frame(&[]), &frame(&text)].concat();
    let check = |blob: &[u8], len: usize, end| {
        let span = Span {
            compressed: CompressedOffset(0)..CompressedOffset(blob.len() as u64),
            uncompressed: UncompressedOffset(0)..UncompressedOffset(len as u64),
            digest: Digest::of(blob),
            restart: Restart::ZstdFrame,
        };
        inflate(span_of(blob, &span, 0, end, 0))
    };
    let both = text.repeat(2);
    assert!(check(&blob, both.len(), End::Inside(0)).unwrap().bytes() == both);
    assert!(check(&blob, 1000, End::Blob).unwrap().tail() == &both[1000..]);
    assert!(check(&blob, both.len() - 1, End::Inside(0)).is_err());
    assert!(check(&blob, both.len() + 1, End::Blob).is_err());
    assert!(check(&blob[..blob.len() - 1], both.len(), End::Blob).is_err());
    assert!(check(&[&blob, b"junk".as_slice()].concat(), both.len(), End::Blob).is_err());
}
