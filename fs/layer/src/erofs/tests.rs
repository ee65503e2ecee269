use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::tree::{NodeId, NodeKind, TreeBuilder, TreeOptions};
use crate::{FileOffset, Kind, Record, SparseSegment, Time, Tree, UncompressedOffset};

const DATA_LEN: u64 = 1 << 30;

fn record(kind: Kind, name: &str) -> Record {
    Record {
        name: name.as_bytes().to_vec(),
        kind,
        typeflag: b'0',
        link: vec![],
        mode: 0o4755,
        uid: 0,
        gid: 0,
        uname: vec![],
        gname: vec![],
        mtime: Time { seconds: 7, nanoseconds: 0 },
        devmajor: 300,
        devminor: 70_000,
        pax: vec![],
        header: UncompressedOffset(0),
        data: UncompressedOffset(512),
        size: 0,
        sparse: None,
    }
}

fn tree_of(records: &[Record]) -> Tree {
    let mut builder = TreeBuilder::new(TreeOptions::default());
    for record in records {
        // Refusals are the tree's matter; here only what is kept counts.
        let _ = builder.push(record);
    }
    builder.finish().unwrap()
}

fn index_of(tree: &Tree) -> Index {
    let devices = vec![Device { len: DATA_LEN, tag: b"tag" }; tree.layer_count().into()];
    write(tree, &devices).unwrap()
}

/// Walks index and tree side by side: every attribute must be the same in both.
fn check_equal(tree: &Tree) -> Index {
    let index = index_of(tree);
    assert_eq!(index, index_of(tree), "the same tree gives the same bytes");
    let reader = Reader::new(&index.bytes).unwrap();
    assert_eq!(reader.inode_count(), u64::from(tree.node_count()));
    let mut nids: BTreeMap<NodeId, u64> = BTreeMap::new();
    let mut todo = vec![(tree.root(), reader.root(), reader.root())];
    while let Some((id, nid, parent)) = todo.pop() {
        if let Some(known) = nids.insert(id, nid) {
            assert_eq!(known, nid, "one node, one inode");
            continue;
        }
        check_inode(tree, &reader, &index, id, nid);
        if tree.node(id).unwrap().kind() != NodeKind::Directory {
            continue;
        }
        let entries = reader.entries(&reader.inode(nid).unwrap()).unwrap();
        let mut dots = vec![];
        let mut names = tree.children(id);
        for entry in &entries {
            if entry.name == b"." || entry.name == b".." {
                dots.push(entry.nid);
                continue;
            }
            let (name, child) = names.next().unwrap();
            assert_eq!(entry.name, name);
            assert_eq!(entry.kind, tree.node(child).unwrap().kind());
            todo.push((child, entry.nid, nid));
        }
        assert_eq!(names.next(), None);
        assert_eq!(dots, [nid, parent]);
    }
    assert_eq!(nids.len(), tree.node_count() as usize);
    index
}

fn check_inode(tree: &Tree, reader: &Reader<'_>, index: &Index, id: NodeId, nid: u64) {
    let node = tree.node(id).unwrap();
    let inode = reader.inode(nid).unwrap();
    assert_eq!(inode.kind, node.kind());
    assert_eq!((inode.permissions, inode.uid), (node.permissions(), node.uid()));
    assert_eq!((inode.gid, inode.nlink), (node.gid(), node.nlink()));
    assert_eq!(inode.mtime, node.mtime());
    let mut xattrs = reader.xattrs(&inode).unwrap();
    xattrs.sort();
    let expected: Vec<_> = node.xattrs().map(|(name, value)| (name.to_vec(), value)).collect();
    assert_eq!(xattrs, expected);
    match node.kind() {
        NodeKind::Symlink => assert_eq!(reader.link(&inode).unwrap(), node.link()),
        NodeKind::CharDevice | NodeKind::BlockDevice => {
            assert_eq!(reader.device(&inode), node.device());
        }
        NodeKind::Regular => {
            assert_eq!(inode.size, node.size());
            check_content(reader, index, &node, &inode);
        }
        NodeKind::Directory | NodeKind::Fifo => {}
    }
}

/// Each stored byte of the file must be found, at its place in the tar or at a copy of it.
fn check_content(
    reader: &Reader<'_>,
    index: &Index,
    node: &crate::tree::Node<'_>,
    inode: &super::reader::Inode,
) {
    let found = reader.extents(inode).unwrap();
    if index.copies.is_empty() {
        let joined: Vec<_> = found.iter().map(|&(device, run)| (device, run)).collect();
        let mut expected: Vec<(u16, SparseSegment)> = vec![];
        for run in node.extents() {
            match expected.last_mut() {
                Some((_, last))
                    if last.file.0 + last.len == run.file.0
                        && last.data.0 + last.len == run.data.0 =>
                {
                    last.len += run.len;
                }
                _ => expected.push((node.layer(), run)),
            }
        }
        assert_eq!(joined, expected);
        return;
    }
    // Byte by byte: what the index finds at a place of the layer file, copies undone.
    let source = |device: u16, at: u64| {
        if at < DATA_LEN {
            return Some(at);
        }
        index.copies.iter().find_map(|copy| {
            let len = copy.from.end.0 - copy.from.start.0;
            let inside = copy.device == device && at >= copy.to.0 && at - copy.to.0 < len;
            inside.then(|| copy.from.start.0 + at - copy.to.0)
        })
    };
    for at in 0..node.size() {
        let covers = |run: &SparseSegment| (run.file.0..run.file.0 + run.len).contains(&at);
        let expected = node.extents().find(covers).map(|run| run.data.0 + at - run.file.0);
        let found = found
            .iter()
            .find(|(_, run)| covers(run))
            .and_then(|&(device, run)| source(device, run.data.0 + at - run.file.0));
        assert_eq!(found, expected, "byte {at} of node {:?}", node.id());
    }
}

#[test]
fn golden_layers_read_back_equal() {
    let mut seen = 0;
    for row in crate::fixtures::json("layers/layers.json").as_array().unwrap() {
        let file = row["file"].as_str().unwrap();
        if row.get("broken").is_some() || file.ends_with(".zst") || file.starts_with("mix-z") {
            continue;
        }
        let bytes = crate::fixtures::tar(file);
        let mut records = vec![];
        let mut reader = crate::tar::Reader::new(crate::tar::Limits::default());
        if reader.feed(&bytes, &mut records).is_err() {
            continue;
        }
        let mut builder = TreeBuilder::new(TreeOptions::default());
        for record in records {
            // Layers that must be refused have entries that may not be: those are compared too.
            let dangles = ["dangling-hard", "passwd", "shadow"].iter();
            if dangles.clone().all(|name| name.as_bytes() != record.name) {
                let _ = builder.push(&record);
            }
        }
        check_equal(&builder.finish().unwrap());
        seen += 1;
    }
    assert!(seen > 40, "only {seen} layers");
}

fn regular(name: &str, data: u64, size: u64) -> Record {
    Record { data: UncompressedOffset(data), size, ..record(Kind::Regular, name) }
}

#[test]
fn sizes_around_the_borders_of_a_chunk() {
    for size in [0, 1, 511, 512, 513, 1024, 1025, 4096, 65_535, 65_536, 65_537, 1 << 29] {
        let index = check_equal(&tree_of(&[regular("a", 1024, size)]));
        assert_eq!((index.copies, index.data_lens), (vec![], vec![DATA_LEN]));
    }
}

#[test]
fn huge_files_need_more_than_one_index() {
    let len = 3 << 40;
    let tree = tree_of(&[regular("a", 512, (1 << 40) + 5)]);
    assert!(matches!(
        write(&tree, &[Device { len, tag: b"" }]),
        Err(ErofsError::DeviceLength { device: 0, .. })
    ));
    let len = (1 << 40) + 4096;
    let index = write(&tree, &[Device { len, tag: b"" }]).unwrap();
    let reader = Reader::new(&index.bytes).unwrap();
    let root = reader.inode(reader.root()).unwrap();
    let inode = reader.inode(reader.lookup(&root, b"a").unwrap().unwrap()).unwrap();
    let run =
        SparseSegment { file: FileOffset(0), data: UncompressedOffset(512), len: (1 << 40) + 5 };
    assert_eq!(reader.extents(&inode).unwrap(), [(0, run)]);
}

#[test]
fn large_files_lie_in_devices_of_their_own() {
    let tree = tree_of(&[regular("small", 512, 99_999), regular("large", 1 << 20, 100_000)]);
    let device = Device { len: DATA_LEN, tag: b"tag" };
    let index = write_ways(&tree, &[device], 100_000).unwrap();
    assert_eq!(device_count(&index.bytes), Some(3));
    assert_eq!(device_count(&index_of(&tree).bytes), Some(1));
    assert_eq!(device_count(&[0; 2000]), None);
    assert_eq!(index.data_lens, [DATA_LEN]);
    let reader = Reader::new(&index.bytes).unwrap();
    assert_eq!(reader.devices().len(), 3);
    let entries = reader.entries(&reader.inode(reader.root()).unwrap()).unwrap();
    let device_of = |name: &[u8]| {
        let entry = entries.iter().find(|entry| entry.name == name).unwrap();
        let extents = reader.extents(&reader.inode(entry.nid).unwrap()).unwrap();
        extents.iter().map(|(device, run)| (*device, run.data.0, run.len)).collect::<Vec<_>>()
    };
    assert_eq!(device_of(b"small"), [(0, 512, 99_999)]);
    assert_eq!(device_of(b"large"), [(1, 1 << 20, 100_000)]);
}

/// The table behind an image, and the image with each of its chunks led to the last device.
fn leads(index: &Index) -> (Vec<Lead>, Vec<u8>) {
    let len = image_len(&index.bytes).unwrap() as usize;
    let (image, table) = index.bytes.split_at(len);
    let (table, []) = table.as_chunks() else { panic!("a table of {} bytes", table.len()) };
    let leads: Vec<Lead> = table.iter().map(Lead::decode).collect();
    let mut led = image.to_vec();
    for lead in &leads {
        let place = &mut led[lead.at as usize..][..2];
        assert_eq!(*place, lead.device.to_le_bytes(), "{lead:?}");
        place.copy_from_slice(&WAYS.to_le_bytes());
    }
    (leads, led)
}

#[test]
fn each_chunk_can_be_led_to_the_last_device() {
    let records = [
        regular("large", 1 << 21, (5 << 20) + 700),
        regular("small", 512, 99_999),
        Record { link: b"small".to_vec(), ..record(Kind::Hardlink, "link") },
        regular("empty", 512, 0),
    ];
    let device = Device { len: 8 << 20, tag: b"" };
    let index = write_ways(&tree_of(&records), &[device], 1 << 20).unwrap();
    let (leads, led) = leads(&index);
    let found: Vec<_> = leads.iter().map(|it| (it.first_block, it.blocks, it.device)).collect();
    let large = |chunk: u32, blocks| (4096 + chunk * CHUNK_BLOCKS, blocks, 2);
    let mut expected = vec![(1, 196, 1)];
    expected.extend((0..5).map(|chunk| large(chunk, CHUNK_BLOCKS as u16)));
    expected.push(large(5, 2));
    assert_eq!(found, expected);
    let reader = Reader::new(&led).unwrap();
    let root = reader.inode(reader.root()).unwrap();
    for (name, at, len) in [(&b"small"[..], 512, 99_999), (b"large", 1 << 21, (5 << 20) + 700)] {
        let inode = reader.inode(reader.lookup(&root, name).unwrap().unwrap()).unwrap();
        let run = SparseSegment { file: FileOffset(0), data: UncompressedOffset(at), len };
        assert_eq!(reader.extents(&inode).unwrap(), [(2, run)]);
    }
}

#[test]
fn holes_and_copies_are_led_nowhere() {
    let odd = Record { name: b"odd".to_vec(), ..sparse(9000, &[(7, 512, 9)]) };
    let tree = tree_of(&[sparse(3 << 20, &[(1 << 20, 512, 1 << 20)]), odd]);
    let index = write_ways(&tree, &[Device { len: DATA_LEN, tag: b"" }], 1 << 30).unwrap();
    assert!(!index.copies.is_empty());
    let found: Vec<_> = leads(&index).0.iter().map(|it| (it.first_block, it.blocks)).collect();
    assert_eq!(found, [(1, 2048)]);
    // Who leads knows one layer file.
    let plain = index_of(&tree);
    assert_eq!(image_len(&plain.bytes), Some(plain.bytes.len() as u64));
}

#[test]
fn content_outside_of_the_layer_file_is_refused() {
    let outside = |record| {
        let device = Device { len: DATA_LEN, tag: b"" };
        matches!(write(&tree_of(&[record]), &[device]), Err(ErofsError::Content { .. }))
    };
    assert!(outside(regular("a", DATA_LEN, 1)));
    assert!(outside(regular("a", DATA_LEN - 512, 513)));
    assert!(!outside(regular("a", DATA_LEN - 512, 512)));
}

fn sparse(size: u64, runs: &[(u64, u64, u64)]) -> Record {
    let run = |&(file, data, len): &(u64, u64, u64)| SparseSegment {
        file: FileOffset(file),
        data: UncompressedOffset(data),
        len,
    };
    let sparse = Some((size, runs.iter().map(run).collect()));
    Record { sparse, ..record(Kind::Regular, "sparse") }
}

#[test]
fn sparse_files_keep_their_place_where_blocks_allow_it() {
    for (size, runs, copies) in [
        (4096, &[][..], 0),
        (4096, &[(1024, 512, 512)], 0),
        (5000, &[(0, 512, 512), (4608, 1024, 392)], 0),
        (100, &[(0, 512, 100)], 0),
        (100, &[(0, 513, 100)], 1),
        (5000, &[(100, 512, 10), (1000, 522, 2000)], 2),
        (5000, &[(100, 512, 10), (110, 522, 2000)], 1),
    ] {
        let index = check_equal(&tree_of(&[sparse(size, runs)]));
        assert_eq!(index.copies.len(), copies, "{runs:?}");
        let is_longer = index.data_lens.iter().all(|&len| len > DATA_LEN);
        assert_eq!(is_longer, copies > 0);
    }
}

#[test]
fn a_nearly_empty_file_of_a_tebibyte_is_no_burden() {
    let size = 1 << 39;
    let index = index_of(&tree_of(&[sparse(size, &[(100, 512, 10), (size - 10, 600, 10)])]));
    assert!(index.bytes.len() < 16 << 20, "{} bytes", index.bytes.len());
}

#[test]
fn odd_shapes_read_back_equal() {
    let mut records = vec![record(Kind::Directory, "empty"), record(Kind::Fifo, "pipe")];
    for len in (1..4096).step_by(7).chain([255, 448, 449, 480, 481, 511, 512, 513, 4095]) {
        let link = vec![b'x'; len];
        records.push(Record { link, ..record(Kind::Symlink, &format!("link-{len}")) });
    }
    for number in 0..3000 {
        let mut one = regular(&format!("d/{:0width$}", number, width = number % 250 + 1), 512, 9);
        one.uid = if number % 3 == 0 { 70_000 } else { 0 };
        one.mtime.seconds = (number % 5) as i64;
        let shared = (b"SCHILY.xattr.user.shared".to_vec(), b"v".to_vec());
        let own = (format!("SCHILY.xattr.user.n{number}").into_bytes(), vec![0; number % 700]);
        one.pax = if number % 2 == 0 { vec![shared, own] } else { vec![] };
        records.push(one);
    }
    for name in ["!x", "-x", ".-", "...", "..a", ".a", "\u{1}"] {
        records.push(record(Kind::CharDevice, &format!("before/{name}")));
    }
    records.push(record(Kind::Regular, "wide/.wh..wh..opq"));
    records.push(record(Kind::Regular, "wide/.wh.gone"));
    check_equal(&tree_of(&records));
}

#[test]
fn merged_trees_address_each_layer_file() {
    let lower = tree_of(&[regular("a", 512, 100), regular("d/x", 1024, 700)]);
    let upper = tree_of(&[regular("d/y", 512, 5), record(Kind::Regular, ".wh.a")]);
    check_equal(&Tree::merge([&lower, &upper]).unwrap());
    let device = Device { len: DATA_LEN, tag: b"" };
    let refused = write(&lower, &[device, device]);
    assert!(matches!(refused, Err(ErofsError::DeviceCount { found: 2, needed: 1, .. })));
}

#[test]
fn attributes_that_cannot_be_stored_are_refused() {
    let with = |len| {
        let pax = vec![(b"SCHILY.xattr.user.a".to_vec(), vec![1; len])];
        let tree = tree_of(&[Record { pax, ..record(Kind::Regular, "a") }]);
        write(&tree, &[Device { len: 512, tag: b"" }]).map(drop)
    };
    assert_eq!(with(65_535), Ok(()));
    assert_eq!(with(65_536), Err(ErofsError::Xattr { len: 65_536 }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_layer_reads_back_equal(
        entries in proptest::collection::vec((0..7u8, "[a-c]{1,2}(/[a-c.]{1,3}){0,3}", 0..3000u64), 0..40),
    ) {
        let kinds = [
            Kind::Regular, Kind::Directory, Kind::Symlink, Kind::Hardlink, Kind::CharDevice,
            Kind::Fifo, Kind::Regular,
        ];
        let records: Vec<_> = entries
            .iter()
            .map(|(kind, name, number)| Record {
                link: name.bytes().rev().collect(),
                size: *number,
                uid: *number as i64 * 100,
                ..record(kinds[usize::from(*kind)], name)
            })
            .collect();
        let mut builder = TreeBuilder::new(TreeOptions::default());
        for record in &records {
            let _ = builder.push(record);
        }
        if let Ok(tree) = builder.finish() {
            check_equal(&tree);
        }
    }

    #[test]
    fn hostile_images_are_read_without_harm(flips in proptest::collection::vec((0..4096usize, any::<u8>()), 1..20)) {
        let long = Record { link: vec![b'y'; 700], ..record(Kind::Symlink, "link") };
        let mut records = vec![long, record(Kind::BlockDevice, "dev")];
        records.extend((0..60).map(|number| regular(&format!("d/file-{number}"), 512, number * 400)));
        let mut bytes = index_of(&tree_of(&records)).bytes;
        for (at, value) in flips {
            let len = bytes.len();
            bytes[at % len] = value;
        }
        let sum = superblock::checksum(&{
            let mut block = bytes[1024..1536].to_vec();
            block[4..8].fill(0);
            block
        });
        bytes[1028..1032].copy_from_slice(&sum.to_le_bytes());
        if let Ok(reader) = Reader::new(&bytes) {
            for nid in 0..bytes.len() as u64 / 32 + 2 {
                let Ok(inode) = reader.inode(nid) else { continue };
                let _ = (reader.entries(&inode), reader.link(&inode), reader.device(&inode));
                let _ = (reader.xattrs(&inode), reader.extents(&inode));
            }
            prop_assert!(reader.inode(u64::MAX).is_err());
        }
    }
}
