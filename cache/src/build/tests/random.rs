//! Random layers by random compressors: what is built inflates, and nothing hostile hurts.

use std::io::Write;

use proptest::prelude::*;

use super::*;

/// A tar of one file whose content compresses in parts.
fn tar_of(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let mut content = Vec::with_capacity(len);
    while content.len() < len {
        let run = 1 + next() as usize % 5000;
        match next() % 3 {
            0 => content.extend((0..run).map(|_| next() as u8)),
            1 => content.resize(content.len() + run, next() as u8),
            _ => {
                let from = next() as usize % (content.len() + 1);
                let copy = content[from..].iter().take(run).copied().collect::<Vec<_>>();
                content.extend(copy);
            }
        }
    }
    content.truncate(len);
    tar_around(&content)
}

/// A tar of one file.
pub(super) fn tar_around(content: &[u8]) -> Vec<u8> {
    let len = content.len();
    let mut header = [0_u8; 512];
    header[..4].copy_from_slice(b"file");
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{len:011o}\0").as_bytes());
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = [header.as_slice(), content].concat();
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    /// One member; a flush every so many bytes, if any.
    Gzip {
        level: u32,
        flush: Option<usize>,
    },
    /// A member every so many bytes.
    Members {
        level: u32,
        len: usize,
    },
    /// A frame every so many bytes.
    Frames {
        len: usize,
    },
    Stored,
}

fn gzip(content: &[u8], level: u32, flush: Option<usize>) -> Vec<u8> {
    let level = flate2::Compression::new(level);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
    for piece in content.chunks(flush.unwrap_or(usize::MAX)) {
        encoder.write_all(piece).unwrap();
        if flush.is_some() {
            encoder.flush().unwrap();
        }
    }
    encoder.finish().unwrap()
}

fn compress(tar: &[u8], shape: Shape) -> Vec<u8> {
    match shape {
        Shape::Gzip { level, flush } => gzip(tar, level, flush),
        Shape::Members { level, len } => {
            tar.chunks(len).flat_map(|piece| gzip(piece, level, None)).collect()
        }
        Shape::Frames { len } => {
            tar.chunks(len).flat_map(|piece| ::zstd::encode_all(piece, 3).unwrap()).collect()
        }
        Shape::Stored => tar.to_vec(),
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    let flush = proptest::option::of(1000..100_000_usize);
    prop_oneof![
        4 => (0..10_u32, flush).prop_map(|(level, flush)| Shape::Gzip { level, flush }),
        2 => (0..10_u32, 1000..200_000_usize).prop_map(|(level, len)| Shape::Members { level, len }),
        1 => (1000..200_000_usize).prop_map(|len| Shape::Frames { len }),
        1 => Just(Shape::Stored),
    ]
}

fn span_sizes() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1), 1..200_000_u64, Just(SPAN_SIZE)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn what_is_built_inflates(
        seed: u32,
        len in 0..600_000_usize,
        shape in shapes(),
        span_size in span_sizes(),
        piece_len in 1..300_000_usize,
    ) {
        let tar = tar_of(seed, len);
        let blob = compress(&tar, shape);
        // Spans of one byte are many.
        let span_size = if matches!(shape, Shape::Stored) { span_size.max(4096) } else { span_size };
        let options = BuildOptions { span_size, ..BuildOptions::default() };
        let (built, found) = build(&blob, options, piece_len).unwrap();
        prop_assert!(found == tar);
        prop_assert_eq!(built.archive.size, tar.len() as u64);
        if let Toc::Lazy(ztoc) = built.toc {
            assert_spans_give(&ztoc.encode(), &blob, &tar);
        } else {
            let is_one_frame = matches!(shape, Shape::Frames { len } if len >= tar.len());
            prop_assert!(is_one_frame);
        }
    }

    /// A mangled blob is an error or yields what its own digests say; never a panic, a hang or more
    /// bytes than allowed.
    #[test]
    fn mangled_blobs_do_no_harm(
        seed: u32,
        shape in shapes(),
        at in 0..100_000_usize,
        flip in 1..=255_u8,
        cut in proptest::option::of(0..100_000_usize),
    ) {
        let tar = tar_of(seed, 60_000);
        let mut blob = compress(&tar, shape);
        let at = at % blob.len();
        blob[at] ^= flip;
        if let Some(cut) = cut {
            blob.truncate(cut % blob.len());
        }
        let options = BuildOptions {
            span_size: 10_000,
            uncompressed_bytes_max: 1 << 20,
            ..BuildOptions::default()
        };
        if let Ok((built, found)) = build(&blob, options, 7000) {
            prop_assert!(found.len() <= 1 << 20);
            if let Toc::Lazy(ztoc) = built.toc {
                assert_spans_give(&ztoc.encode(), &blob, &found);
            }
        }
    }
}
