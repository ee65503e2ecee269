//! Frames of zstd that helpers decode: the same comes out as in order, whatever they are.

use std::io::Write as _;

use proptest::prelude::*;

use super::ahead::{all_ahead, content, in_order, mangle, pool, shapes, with_pool};
use super::*;

fn options(span_size: u64) -> BuildOptions {
    BuildOptions { compression: Some(Compression::Zstd), span_size, ..BuildOptions::default() }
}

/// How frames are written: bytes of content of each, whether their length and a checksum are told, and what stands
/// behind each of them.
#[derive(Clone, Copy, Debug)]
struct Writing {
    len: usize,
    has_len: bool,
    has_checksum: bool,
    skippable_len: Option<u8>,
}

fn writings() -> impl Strategy<Value = Writing> {
    let lens = prop_oneof![3 => 500..20_000_usize, 1 => 20_000..400_000_usize];
    (lens, any::<bool>(), any::<bool>(), proptest::option::of(any::<u8>())).prop_map(
        |(len, has_len, has_checksum, skippable_len)| Writing {
            len,
            has_len,
            has_checksum,
            skippable_len,
        },
    )
}

fn compress(tar: &[u8], writing: Writing) -> Vec<u8> {
    let mut blob = Vec::new();
    for piece in tar.chunks(writing.len) {
        let mut encoder = ::zstd::Encoder::new(&mut blob, 1).unwrap();
        encoder.include_checksum(writing.has_checksum).unwrap();
        if writing.has_len {
            encoder.set_pledged_src_size(Some(piece.len() as u64)).unwrap();
        }
        encoder.write_all(piece).unwrap();
        encoder.finish().unwrap();
        if let Some(len) = writing.skippable_len {
            blob.extend([0x53, 0x2a, 0x4d, 0x18, len, 0, 0, 0]);
            blob.extend(std::iter::repeat_n(0xfd, usize::from(len)));
        }
    }
    blob
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_frames_come_out_as_in_order(
        seed: u32,
        len in 100_000..900_000_usize,
        writing in writings(),
        span_size in prop_oneof![Just(1_u64), 1..200_000_u64],
        shape in shapes(),
    ) {
        let tar = random::tar_around(&content(seed, len));
        let (blob, options) = (compress(&tar, writing), options(span_size));
        let expected = in_order(&blob, &options);
        prop_assert!(expected.as_ref().is_ok_and(|outcome| outcome.tar == tar));
        prop_assert!(all_ahead(&blob, shape, &options).0 == expected);
        prop_assert!(with_pool(&blob, shape, &options, &pool()) == expected);
    }

    /// What is damaged gets the same verdict.
    #[test]
    fn mangled_frames_get_the_same_verdict(
        seed: u32,
        writing in writings(),
        flips in proptest::collection::vec((0..400_000_usize, 1..=255_u8), 1..3),
        cut in proptest::option::of(0..400_000_usize),
        shape in shapes(),
    ) {
        let tar = random::tar_around(&content(seed, 300_000));
        let mut blob = compress(&tar, writing);
        mangle(&mut blob, &flips, cut);
        let options = options(70_000);
        let expected = in_order(&blob, &options);
        prop_assert!(all_ahead(&blob, shape, &options).0 == expected);
        prop_assert!(with_pool(&blob, shape, &options, &pool()) == expected);
    }
}

#[test]
fn most_frames_are_decoded_ahead() {
    let tar = random::tar_around(&content(7, 4_000_000));
    let writing = Writing { len: 30_000, has_len: true, has_checksum: true, skippable_len: None };
    let blob = compress(&tar, writing);
    let shape = Shape { piece_len: 16 << 10, stretch_pieces: 4, held_max: 6 };
    let (outcome, len_ahead) = all_ahead(&blob, shape, &options(1 << 20));
    assert!(outcome.is_ok_and(|outcome| outcome.tar == tar));
    assert!(len_ahead > 200_000, "{len_ahead} bytes ahead");
}

/// Of a run from which too much would come, the scan says what is to be said.
#[test]
fn a_bomb_is_left_to_the_scan() {
    let content = [content(3, 100_000), vec![0; 40 << 20], content(5, 100_000)].concat();
    let tar = random::tar_around(&content);
    let writing =
        Writing { len: 30 << 20, has_len: false, has_checksum: false, skippable_len: None };
    let blob = compress(&tar, writing);
    let shape = Shape { piece_len: 2000, stretch_pieces: 2, held_max: 6 };
    let options = options(1 << 20);
    assert!(all_ahead(&blob, shape, &options).0 == in_order(&blob, &options));
    let options = BuildOptions { uncompressed_bytes_max: 35 << 20, ..options };
    let verdict = all_ahead(&blob, shape, &options).0;
    assert!(verdict.is_err() && verdict == in_order(&blob, &options));
}
