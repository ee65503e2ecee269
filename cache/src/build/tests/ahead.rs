//! With helpers, the same comes out as in order, whatever they guessed.

use std::io::Write as _;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::build::scan::run_alone;
use crate::inflate::{Pool, PoolOptions};

/// What is to be the same.
#[derive(Debug, PartialEq)]
pub(super) struct Outcome {
    ztoc: Result<Vec<u8>, String>,
    digests: [Digest; 2],
    sizes: [u64; 2],
    sums: Vec<SpanSum>,
    pub(super) tar: Vec<u8>,
}

/// Errors are told apart as far as anybody acts by them.
pub(super) type Verdict = Result<Outcome, std::mem::Discriminant<BuildError>>;

fn verdict(result: Result<(Built, Vec<u8>), BuildError>) -> Verdict {
    let (built, tar) = result.map_err(|error| std::mem::discriminant(&error))?;
    Ok(Outcome {
        ztoc: match built.toc {
            Toc::Lazy(ztoc) => Ok(ztoc.encode()),
            Toc::Whole { reason, .. } => Err(reason.to_string()),
        },
        digests: [built.blob_digest, built.diff_id],
        sizes: [built.blob_size, built.uncompressed_len],
        sums: built.span_sums,
        tar,
    })
}

fn options(span_size: u64) -> BuildOptions {
    BuildOptions { compression: Some(Compression::Gzip), span_size, ..BuildOptions::default() }
}

/// All helpers first, then the scan; and how much helpers did.
pub(super) fn all_ahead(blob: &[u8], shape: Shape, options: &BuildOptions) -> (Verdict, u64) {
    let (sink, tar) = gathering_sink();
    let built = run_alone(blob, shape, true, options.clone(), Box::new(sink));
    let len_ahead = built.as_ref().map_or(0, |built| built.len_ahead);
    (verdict(built.map(|built| (built, std::mem::take(&mut *tar.lock())))), len_ahead)
}

pub(super) fn in_order(blob: &[u8], options: &BuildOptions) -> Verdict {
    verdict(build(blob, options.clone(), blob.len().max(1)))
}

pub(super) fn with_pool(blob: &[u8], shape: Shape, options: &BuildOptions, pool: &Pool) -> Verdict {
    let (sink, tar) = gathering_sink();
    let mut builder = LayerBuilder::cut_as(shape, options.clone(), sink).unwrap().helped_by(pool);
    let built = builder.feed(blob).and_then(|()| builder.finish());
    verdict(built.map(|built| (built, std::mem::take(&mut *tar.lock()))))
}

pub(super) fn pool() -> Pool {
    Pool::new(&PoolOptions::for_threads(4)).unwrap()
}

fn shape(piece_len: usize, stretch_pieces: usize) -> Shape {
    Shape { piece_len, stretch_pieces, held_max: 40 }
}

/// Each shape that the field's compressors write.
#[test]
fn layers_come_out_as_in_order() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/layers"));
    let (pool, mut len_ahead) = (pool(), 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "gz") {
            continue;
        }
        let (blob, name) = (std::fs::read(&path).unwrap(), path.display());
        let options = options(64 << 10);
        let expected = in_order(&blob, &options);
        for shape in [shape(16 << 10, 4), shape(8 << 10, 1), shape(32 << 10, 2)] {
            let (found, len) = all_ahead(&blob, shape, &options);
            assert!(found == expected, "{name}, {shape:?}");
            len_ahead += len;
            assert!(with_pool(&blob, shape, &options, &pool) == expected, "{name}, {shape:?}");
        }
    }
    assert!(len_ahead > 1 << 20, "only {len_ahead} bytes were decoded ahead");
}

/// Text, of which copies of copies never get known, and noise, which soon does.
pub(super) fn content(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize
    };
    let mut content: Vec<u8> = Vec::with_capacity(len + 400);
    let is_text = next() % 2 == 0;
    while content.len() < len {
        let run = 1 + next() % 400;
        match next() % if is_text { 8 } else { 3 } {
            0 => content.extend((0..run).map(|_| next() as u8)),
            1 => content.extend((0..run).map(|_| b"etaoin shrdlu\n"[next() % 14])),
            _ => {
                let distance = 1 + next() % content.len().clamp(1, 40_000);
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

/// Members of so many bytes, with flushes in between.
fn gzip(tar: &[u8], level: u32, flush: usize, member: usize) -> Vec<u8> {
    let encode = |content: &[u8]| {
        let level = flate2::Compression::new(level);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
        for piece in content.chunks(flush) {
            encoder.write_all(piece).unwrap();
            encoder.flush().unwrap();
        }
        encoder.finish().unwrap()
    };
    tar.chunks(member).flat_map(encode).collect()
}

/// Flip bits of some bytes, and cut off the rest.
pub(super) fn mangle(blob: &mut Vec<u8>, flips: &[(usize, u8)], cut: Option<usize>) {
    let len = blob.len();
    for &(at, flip) in flips {
        blob[at % len] ^= flip;
    }
    blob.truncate(cut.map_or(len, |cut| cut % len));
}

pub(super) fn shapes() -> impl Strategy<Value = Shape> {
    (2000..30_000_usize, 1..5_usize).prop_map(|(piece, count)| shape(piece, count))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_layers_come_out_as_in_order(
        seed: u32,
        len in 100_000..900_000_usize,
        level in 0..10_u32,
        flush in prop_oneof![Just(1_000_000), 3000..100_000_usize],
        member in prop_oneof![Just(1_000_000), 20_000..300_000_usize],
        shape in shapes(),
    ) {
        let tar = random::tar_around(&content(seed, len));
        let blob = gzip(&tar, level, flush, member);
        let options = options(70_000);
        let expected = in_order(&blob, &options);
        prop_assert!(expected.as_ref().is_ok_and(|outcome| outcome.tar == tar));
        prop_assert!(all_ahead(&blob, shape, &options).0 == expected);
        prop_assert!(with_pool(&blob, shape, &options, &pool()) == expected);
    }

    /// What is damaged gets the same verdict.
    #[test]
    fn mangled_layers_get_the_same_verdict(
        seed: u32,
        level in 1..10_u32,
        flips in proptest::collection::vec((0..400_000_usize, 1..=255_u8), 1..3),
        cut in proptest::option::of(0..400_000_usize),
        shape in shapes(),
    ) {
        let tar = random::tar_around(&content(seed, 300_000));
        let mut blob = gzip(&tar, level, 50_000, 200_000);
        mangle(&mut blob, &flips, cut);
        let options = options(70_000);
        let expected = in_order(&blob, &options);
        prop_assert!(all_ahead(&blob, shape, &options).0 == expected);
        prop_assert!(with_pool(&blob, shape, &options, &pool()) == expected);
    }
}

/// A stretch of which too much comes is left to the scan where it was cut off.
#[test]
fn a_bomb_is_cut_off() {
    let mut tar_content = content(1, 200_000);
    tar_content.resize(40 << 20, 0);
    let tail = content(2, 200_000);
    tar_content.extend(&tail);
    let tar = random::tar_around(&tar_content);
    let blob = gzip(&tar, 6, 100_000, usize::MAX);
    let options = options(4 << 20);
    let shape = shape(16 << 10, 1);
    let expected = in_order(&blob, &options);
    let (found, len_ahead) = all_ahead(&blob, shape, &options);
    assert!(found == expected && expected.is_ok());
    assert!(len_ahead > 0 && len_ahead < tar.len() as u64);
    let options = BuildOptions { uncompressed_bytes_max: 20 << 20, ..options };
    let expected = std::mem::discriminant(&BuildError::TooLong { max: 0 });
    assert_eq!(all_ahead(&blob, shape, &options).0, Err(expected));
}

/// Whoever is refused, or gives up, may do with the sink's file what he likes.
#[test]
fn nothing_goes_to_the_sink_of_a_builder_that_is_gone() {
    let tar = random::tar_around(&content(3, 2_000_000));
    let blob = gzip(&tar, 6, usize::MAX, usize::MAX);
    let pool = pool();
    for fed in [blob.len() / 3, blob.len()] {
        let (sink, tar) = gathering_sink();
        let shape = shape(16 << 10, 2);
        let mut builder =
            LayerBuilder::cut_as(shape, options(1 << 20), sink).unwrap().helped_by(&pool);
        builder.feed(&blob[..fed]).unwrap();
        drop(builder);
        // The sink is gone, too.
        assert_eq!(Arc::strong_count(&tar), 1);
    }
}

/// A layer that nobody wants any more is left, however much waits.
#[test]
fn a_stopped_build_ends() {
    let stop = AtomicBool::new(true);
    let blob = gzip(&vec![0; 64 << 20], 6, usize::MAX, usize::MAX);
    let (sink, _) = gathering_sink();
    let shape = shape(1000, 1);
    let builder = LayerBuilder::cut_as(shape, options(1 << 20), sink).unwrap();
    let mut builder = builder.stopped_by(&stop);
    let fed = builder.feed(&blob).and_then(|()| builder.finish().map(drop));
    assert!(matches!(fed, Err(BuildError::Stopped | BuildError::Tar(_))), "{fed:?}");
}
