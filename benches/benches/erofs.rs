//! Records → tree → layer index. The promises: 1,000,000 entries make a tree in at most 1 s, 300,000
//! an index in at most 0.5 s, and 200,000 entries both within 0.4 s.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use spanfs_layer::erofs::{self, Device};
use spanfs_layer::tree::{TreeBuilder, TreeOptions};
use spanfs_layer::{Kind, Record, Time, Tree, UncompressedOffset};

/// Files in a directory, as in large language runtimes.
const FILES_PER_DIRECTORY: usize = 12;
const FILE_BYTES: u64 = 4000;
/// Header block and content, padded.
const ENTRY_BYTES: u64 = 512 + 4096;

fn main() {
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    // `cargo test --benches` runs each once: keep that short.
    let is_test = !std::env::args().any(|argument| argument == "--bench");
    let scale = if is_test { 1000 } else { 1 };
    tree(&mut criterion, 1_000_000 / scale);
    index(&mut criterion, 300_000 / scale);
    both(&mut criterion, 200_000 / scale);
    criterion.final_summary();
}

fn tree(criterion: &mut Criterion, count: usize) {
    let records = records(count);
    let mut group = criterion.benchmark_group("tree");
    group.throughput(Throughput::Elements(count as u64));
    group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
        bencher.iter(|| tree_of(black_box(&records)));
    });
    let tree = tree_of(&records);
    let beside_names = (tree.memory_bytes() - tree.text_bytes()) / tree.name_count() as usize;
    assert!(beside_names <= 150, "{beside_names} bytes for each entry beside its name");
}

fn index(criterion: &mut Criterion, count: usize) {
    let tree = tree_of(&records(count));
    let mut group = criterion.benchmark_group("index");
    group.throughput(Throughput::Elements(count as u64));
    group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
        bencher.iter(|| index_of(black_box(&tree), count));
    });
}

fn both(criterion: &mut Criterion, count: usize) {
    let records = records(count);
    let mut group = criterion.benchmark_group("records to index");
    group.throughput(Throughput::Elements(count as u64));
    group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
        bencher.iter(|| index_of(&tree_of(black_box(&records)), count));
    });
}

fn tree_of(records: &[Record]) -> Tree {
    let mut builder = TreeBuilder::new(TreeOptions::default());
    for record in records {
        builder.push(record).expect("a good entry");
    }
    builder.finish().expect("a good layer")
}

fn index_of(tree: &Tree, count: usize) -> usize {
    let len = count as u64 * ENTRY_BYTES;
    let index = erofs::write(tree, &[Device { len, tag: b"bench" }]).expect("an index");
    index.bytes.len()
}

/// Directories in a tree of their own, each followed by its files.
fn records(count: usize) -> Vec<Record> {
    let entry = |number: usize| {
        let (package, place) = (number / FILES_PER_DIRECTORY, number % FILES_PER_DIRECTORY);
        let parent = format!("usr/lib/modules/{:03}/package-{package}", package / 256);
        let (kind, name) = match place {
            0 => (Kind::Directory, format!("{parent}/")),
            place => (Kind::Regular, format!("{parent}/lib-file-{place}.js")),
        };
        let header = number as u64 * ENTRY_BYTES;
        Record {
            name: name.into_bytes(),
            kind,
            typeflag: if kind == Kind::Directory { b'5' } else { b'0' },
            link: Vec::new(),
            mode: 0o755,
            uid: 0,
            gid: 0,
            uname: Vec::new(),
            gname: Vec::new(),
            mtime: Time { seconds: 1_700_000_000 + number as i64 % 50, nanoseconds: 0 },
            devmajor: 0,
            devminor: 0,
            pax: Vec::new(),
            header: UncompressedOffset(header),
            data: UncompressedOffset(header + 512),
            size: if kind == Kind::Directory { 0 } else { FILE_BYTES },
            sparse: None,
        }
    };
    (0..count).map(entry).collect()
}
