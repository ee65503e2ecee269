//! Held against zlib, block by block: what it accepts, where its blocks begin, what it refuses.

use std::io::Write as _;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::sys::{Format, Inflater, Stop};

/// What a decoder made of a blob.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    bytes: Vec<u8>,
    /// Where blocks begin: in the blob, their bits, in the output.
    blocks: Vec<(u64, u8, u64)>,
    /// Where members end.
    ends: Vec<u64>,
    is_bad: bool,
}

/// Ours, fed in pieces, with so much room between two clearings of the buffer.
fn ours(blob: &[u8], piece_len: usize, room: usize) -> Outcome {
    let window_len = DISTANCE_MAX as usize;
    let (mut bytes, mut blocks, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    let mut decoder = Inflate::new();
    // Whatever stands there before the first byte must never be copied.
    let mut buffer = vec![0xa5; window_len + room];
    let mut filled = window_len;
    for mut input in blob.chunks(piece_len) {
        loop {
            if filled == buffer.len() {
                buffer.copy_within(room.., 0);
                filled = window_len;
            }
            let from = filled;
            let event = decoder.step(&mut input, &mut buffer, &mut filled);
            bytes.extend_from_slice(&buffer[from..filled]);
            match event {
                Ok(Event::NeedsInput) => break,
                Ok(Event::NeedsRoom) => assert_eq!(filled, buffer.len()),
                Ok(Event::Block(Place { at, bits })) => blocks.push((at, bits, bytes.len() as u64)),
                Ok(Event::End { at }) => ends.push(at),
                Err(_) => return Outcome { bytes, blocks, ends, is_bad: true },
            }
        }
        assert!(input.is_empty(), "it asks for input and has some");
    }
    Outcome { bytes, blocks, ends, is_bad: false }
}

fn zlibs(blob: &[u8]) -> Outcome {
    let (mut bytes, mut blocks, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    let mut decoder = Inflater::new(Format::Gzip).unwrap();
    let (mut rest, mut room) = (blob, vec![0; 64 << 10]);
    loop {
        let Ok(progress) = decoder.step(rest, &mut room, Stop::Block) else {
            return Outcome { bytes, blocks, ends, is_bad: true };
        };
        rest = &rest[progress.consumed..];
        bytes.extend_from_slice(&room[..progress.produced]);
        let at = (blob.len() - rest.len()) as u64;
        if progress.end {
            ends.push(at);
            decoder.reset(Format::Gzip);
        } else if let Some(bits) = progress.block {
            blocks.push((at, bits, bytes.len() as u64));
        } else if progress.is_stuck() {
            return Outcome { bytes, blocks, ends, is_bad: false };
        }
    }
}

fn assert_same(blob: &[u8], piece_len: usize, room: usize) {
    let (ours, mut zlibs) = (ours(blob, piece_len, room), zlibs(blob));
    if ours.is_bad && zlibs.is_bad {
        // How much of a block comes out before it turns out to be bad is nobody's business.
        let len = ours.bytes.len().min(zlibs.bytes.len());
        assert!(ours.bytes[..len] == zlibs.bytes[..len], "other bytes before the fault");
        zlibs.bytes.clone_from(&ours.bytes);
    }
    assert!(ours.bytes == zlibs.bytes, "{} bytes, not {}", ours.bytes.len(), zlibs.bytes.len());
    assert_eq!(ours.blocks, zlibs.blocks);
    assert_eq!((ours.ends, ours.is_bad), (zlibs.ends, zlibs.is_bad));
}

/// Each shape that the field's compressors write, sound or broken, however it comes and goes.
#[test]
fn layers_of_many_compressors_come_out_as_from_zlib() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/layers"));
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "gz") {
            let blob = std::fs::read(&path).unwrap();
            for (piece_len, room) in [(blob.len(), 512 << 10), (4097, 1000), (31, 299), (1, 70_000)]
            {
                assert_same(&blob, piece_len, room);
            }
            count += 1;
        }
    }
    assert!(count > 20, "only {count} layers");
}

/// Headers with all their parts, and each way in which they can be wrong.
#[test]
fn headers_are_read_as_zlib_reads_them() {
    let content = [0x63, 0x00, 0x00, 0x8d, 0xef, 0x02, 0xd2, 0x01, 0x00, 0x00, 0x00];
    for flags in 0..=255_u8 {
        for (is_crc_right, extra_len) in [(true, 0_u16), (true, 5), (false, 300)] {
            let mut head = vec![0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 255];
            if flags & 4 != 0 {
                head.extend(extra_len.to_le_bytes());
                head.extend((0..extra_len).map(|at| at as u8));
            }
            if flags & 8 != 0 {
                head.extend(b"name\0");
            }
            if flags & 16 != 0 {
                head.extend(b"\0");
            }
            if flags & 2 != 0 {
                let crc = crate::sys::crc32_append(0, &head) as u16;
                head.extend((if is_crc_right { crc } else { !crc }).to_le_bytes());
            }
            let blob = [head.as_slice(), &content, &head, &content].concat();
            assert_same(&blob, 7, 1000);
            if flags & 0xe0 == 0 && (is_crc_right || flags & 2 == 0) {
                assert_eq!(ours(&blob, 1, 1000).bytes, [0, 0], "flags {flags}");
            }
        }
    }
    for blob in [
        &[0x1f][..],
        &[0x1f, 0x8c],
        &[0x1e],
        &[0x1e, 0x8b],
        &[0x1f, 0x8b, 9],
        &[0x1f, 0x8b, 9, 0],
        &[],
    ] {
        assert_same(blob, 1, 1000);
    }
}

/// A member may not refer to what an earlier one wrote, nor to what is not there.
#[test]
fn no_copy_reaches_behind_its_member() {
    // Fixed codes: a literal, then a length of 3 at distance 2.
    let reaches_back = [0x63, 0x02, 0x11, 0x00];
    let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let first = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(b"some text that stands before").unwrap();
        encoder.finish().unwrap()
    };
    for blob in [[&head[..], &reaches_back].concat(), [&first, &head[..], &reaches_back].concat()] {
        assert!(zlibs(&blob).is_bad);
        assert_same(&blob, blob.len(), 1000);
        // The fast loop must see it, too.
        assert_same(&[blob, vec![0; 100]].concat(), 1000, 512 << 10);
    }
}

/// Content that makes literals, runs, near and far copies.
fn content(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize
    };
    let mut content: Vec<u8> = Vec::with_capacity(len);
    while content.len() < len {
        let run = 1 + next() % [20, 300, 3000][next() % 3];
        match next() % 4 {
            0 => content.extend((0..run).map(|_| next() as u8)),
            1 => content.extend((0..run).map(|_| b"etaoin shrdlu\n"[next() % 14])),
            _ => {
                let distance = 1 + next() % content.len().clamp(1, [4, 40, 40_000][next() % 3]);
                for _ in 0..run {
                    let at = content.len().checked_sub(distance);
                    content.push(at.map_or(7, |at| content[at]));
                }
            }
        }
    }
    content.truncate(len);
    content
}

fn gzip(content: &[u8], level: u32, flush: usize) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    for piece in content.chunks(flush) {
        encoder.write_all(piece).unwrap();
        encoder.flush().unwrap();
    }
    encoder.finish().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_content_comes_out_as_from_zlib(
        seed: u32,
        len in 0..300_000_usize,
        level in 0..10_u32,
        flush in 1000..400_000_usize,
        piece_len in 1..100_000_usize,
        room in 1..100_000_usize,
    ) {
        let content = content(seed, len);
        let blob = gzip(&content, level, flush);
        assert_same(&blob, piece_len, room);
        prop_assert!(ours(&blob, piece_len, room).bytes == content);
    }

    /// What is refused is what zlib refuses.
    #[test]
    fn mangled_content_gets_the_same_verdict(
        seed: u32,
        level in 0..10_u32,
        flips in proptest::collection::vec((0..40_000_usize, 1..=255_u8), 1..4),
        cut in 0..40_000_usize,
        piece_len in 1..50_000_usize,
    ) {
        let mut blob = gzip(&content(seed, 50_000), level, 20_000);
        let len = blob.len();
        for (at, flip) in flips {
            blob[at % len] ^= flip;
        }
        assert_same(&blob, piece_len, 64 << 10);
        blob.truncate(cut % len);
        assert_same(&blob, piece_len, 1000);
    }
}
