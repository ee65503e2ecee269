use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::{Kind, Record, Time, UncompressedOffset};

/// Entry from a short text: kind letter, name, and for links `>` and the target.
pub(crate) fn entry(text: &str) -> Record {
    let (letter, rest) = text.split_once(' ').unwrap();
    let (name, link) = rest.split_once(" > ").unwrap_or((rest, ""));
    let kind = match letter {
        "f" => Kind::Regular,
        "d" => Kind::Directory,
        "l" => Kind::Symlink,
        "h" => Kind::Hardlink,
        "c" => Kind::CharDevice,
        "b" => Kind::BlockDevice,
        "p" => Kind::Fifo,
        other => panic!("no kind {other}"),
    };
    Record {
        name: name.as_bytes().to_vec(),
        kind,
        typeflag: b'0',
        link: link.as_bytes().to_vec(),
        mode: if kind == Kind::Directory { 0o700 } else { 0o640 },
        uid: 1,
        gid: 2,
        uname: vec![],
        gname: vec![],
        mtime: Time { seconds: 5, nanoseconds: 6 },
        devmajor: 1,
        devminor: 3,
        pax: vec![],
        header: UncompressedOffset(0),
        data: UncompressedOffset(512),
        size: 0,
        sparse: None,
    }
}

fn build_with(options: TreeOptions, records: &[Record]) -> Result<Tree, TreeError> {
    let mut builder = TreeBuilder::new(options);
    for record in records {
        builder.push(record)?;
    }
    builder.finish()
}

fn build(entries: &[&str]) -> Result<Tree, TreeError> {
    let records: Vec<_> = entries.iter().map(|text| entry(text)).collect();
    build_with(TreeOptions::default(), &records)
}

/// Every name with the letter of its kind and what is special about it.
fn listing(tree: &Tree) -> Vec<String> {
    let mut lines = vec![];
    let mut todo = vec![(String::new(), tree.root())];
    while let Some((path, id)) = todo.pop() {
        let node = tree.node(id).unwrap();
        let mut line = match node.kind() {
            NodeKind::Regular => format!("f {path}"),
            NodeKind::Directory => format!("d {path}"),
            NodeKind::Symlink => format!("l {path} > {}", node.link().escape_ascii()),
            NodeKind::CharDevice if node.is_whiteout() => format!("w {path}"),
            NodeKind::CharDevice => format!("c {path}"),
            NodeKind::BlockDevice => format!("b {path}"),
            NodeKind::Fifo => format!("p {path}"),
        };
        if node.is_opaque() {
            line += " opaque";
        }
        if node.is_implied() {
            line += " implied";
        }
        if node.kind() != NodeKind::Directory && node.nlink() > 1 {
            line += &format!(" x{} #{}", node.nlink(), id.0);
        }
        lines.push(line);
        let children: Vec<_> = tree.children(id).collect();
        for (name, child) in children.into_iter().rev() {
            assert_eq!(tree.lookup(id, name), Some(child));
            if let Some(parent) = tree.node(child).unwrap().parent() {
                assert_eq!(parent, id);
            }
            let slash = if path.is_empty() { "" } else { "/" };
            todo.push((format!("{path}{slash}{}", name.escape_ascii()), child));
        }
    }
    assert_eq!(lines.remove(0).split(" opaque").next(), Some("d "));
    lines
}

fn check(entries: &[&str], expected: &[&str]) {
    let tree = build(entries).unwrap_or_else(|error| panic!("{entries:?}: {error}"));
    assert_eq!(listing(&tree), expected, "{entries:?}");
}

fn check_refused(entries: &[&str], entry: &str, fault: &str) {
    let error = build(entries).expect_err(entry);
    assert_eq!(String::from_utf8_lossy(&error.entry), entry);
    assert!(error.fault.to_string().contains(fault), "{error} has no {fault:?}");
}

#[test]
fn names_are_cleaned_and_never_climb() {
    check(
        &["f ./a", "f /b", "f ../c", "f x/../d", "f e//f/./g"],
        &["f a", "f b", "f c", "f d", "d e implied", "d e/f implied", "f e/f/g"],
    );
    check(&["d ./", "d /", "f .", "f a/.."], &[]);
}

#[test]
fn the_last_entry_of_a_name_wins() {
    check(&["f a", "l a > x"], &["l a > x"]);
    check(&["d a", "f a/b", "f a"], &["f a"]);
    check(&["d a", "f a/b", "f a", "d a"], &["d a"]);
    check(&["f a", "d a", "f a/b"], &["d a", "f a/b"]);
    check(&["d a", "f a/b", "d a", "f a/c"], &["d a", "f a/b", "f a/c"]);
    check(&["f a/b", "d a"], &["d a", "f a/b"]);
    check(&["d a", "f a/b", "l a > c", "d c", "f a/d"], &["l a > c", "d c", "f c/d"]);
}

#[test]
fn directories_take_the_attributes_of_the_last() {
    let mut again = entry("d a");
    again.mode = 0o41_755;
    again.mtime = Time { seconds: 9, nanoseconds: 0 };
    again.pax = vec![(b"SCHILY.xattr.user.b".to_vec(), b"2".to_vec())];
    let mut first = entry("d a");
    first.pax = vec![
        (b"SCHILY.xattr.user.a".to_vec(), b"1".to_vec()),
        (b"SCHILY.xattr.user.b".to_vec(), b"1".to_vec()),
    ];
    let tree = build_with(TreeOptions::default(), &[first, entry("f a/x"), again]).unwrap();
    let node = tree.node(tree.resolve(b"a").unwrap()).unwrap();
    assert_eq!((node.permissions(), node.mtime().seconds), (0o1755, 9));
    let xattrs: Vec<_> = node.xattrs().collect();
    assert_eq!(xattrs, [(&b"user.a"[..], &b"1"[..]), (b"user.b", b"2")]);
    let root = tree.node(tree.root()).unwrap();
    assert_eq!((root.permissions(), root.uid(), root.nlink()), (0o755, 0, 3));
}

#[test]
fn parents_may_be_symlinks_of_the_layer() {
    check(&["d a", "l s > a", "f s/x"], &["d a", "f a/x", "l s > a"]);
    check(&["l s > /a/b", "f s/x"], &["d a implied", "d a/b implied", "f a/b/x", "l s > /a/b"]);
    check(&["l s > ../../..", "f s/x"], &["l s > ../../..", "f x"]);
    check(
        &["d a/b", "l a/b/s > ../c", "f a/b/s/x"],
        &["d a implied", "d a/b", "l a/b/s > ../c", "d a/c implied", "f a/c/x"],
    );
    check(&["l s > t", "l t > u", "d u", "f s/x"], &["l s > t", "l t > u", "d u", "f u/x"]);
    check_refused(&["l a > b", "l b > a", "f a/x"], "a/x", "255 symlinks");
    check_refused(&["f a", "f a/x"], "a/x", "\"a\" is not a directory");
    check_refused(&["f a", "l s > a", "f s/x"], "s/x", "\"a\" is not a directory");
}

#[test]
fn hard_links_share_their_target_in_any_order() {
    check(&["f a", "h b > a", "h c > ./b"], &["f a x3 #1", "f b x3 #1", "f c x3 #1"]);
    check(&["h a > b", "h b > c", "f c"], &["f a x3 #1", "f b x3 #1", "f c x3 #1"]);
    check(&["l a > x", "h b > a"], &["l a > x x2 #1", "l b > x x2 #1"]);
    check(&["f a", "h b > a", "f a", "h c > a"], &["f a x2 #1", "f b", "f c x2 #1"]);
    check(&["f a", "h b > ../../a"], &["f a x2 #1", "f b x2 #1"]);
    check(&["h a > nowhere", "f a"], &["f a"]);
    check(
        &["d d", "l s > d", "f d/x", "h y > s/x"],
        &["d d", "f d/x x2 #3", "l s > d", "f y x2 #3"],
    );
    check_refused(&["h a > b"], "a", "not in this layer");
    check_refused(&["h a > /"], "a", "which is a directory");
    check_refused(&["d d", "h a > d"], "a", "which is a directory");
    check_refused(&["h a > d", "d d"], "a", "which is a directory");
    check_refused(&["f a", "h a > a"], "a", "leads back");
    check_refused(&["h a > b", "h b > a"], "a", "leads back");
    check_refused(&["f .wh.b", "h a > b"], "a", "not in this layer");
}

#[test]
fn the_last_header_of_a_file_says_what_its_attributes_are() {
    let attribute = |name: &str, value: &str| {
        (format!("SCHILY.xattr.{name}").into_bytes(), value.as_bytes().to_vec())
    };
    let mut first = entry("f a");
    first.pax = vec![attribute("security.capability", "c"), attribute("user.a", "1")];
    let mut link = entry("h b > a");
    (link.mode, link.uid, link.gid) = (0o104_755, 7, 8);
    link.mtime = Time { seconds: 9, nanoseconds: 10 };
    link.pax = vec![attribute("user.b", "2")];
    let mut of_symlink = entry("h t > s");
    (of_symlink.mode, of_symlink.uid) = (0o600, 3);
    let records = [first, link, entry("l s > a"), of_symlink];
    let tree = build_with(TreeOptions::default(), &records).unwrap();
    let node = |name: &[u8]| tree.node(tree.resolve(name).unwrap()).unwrap();
    for name in [&b"a"[..], b"b"] {
        let node = node(name);
        assert_eq!((node.permissions(), node.uid(), node.gid()), (0o4755, 7, 8));
        assert_eq!(node.mtime(), Time { seconds: 9, nanoseconds: 10 });
        assert_eq!((node.kind(), node.nlink()), (NodeKind::Regular, 2));
        // chown(2) took the capability away.
        let xattrs: Vec<_> = node.xattrs().collect();
        assert_eq!(xattrs, [(&b"user.a"[..], &b"1"[..]), (b"user.b", b"2")]);
    }
    let symlink = tree.children(tree.root()).find(|(name, _)| *name == b"s").unwrap().1;
    let symlink = tree.node(symlink).unwrap();
    assert_eq!((symlink.permissions(), symlink.uid(), symlink.nlink()), (0o777, 3, 2));
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    check(&["f d/.wh.x"], &["d d implied", "w d/x"]);
    check(&["d d", "f d/.wh..wh..opq", "f d/x"], &["d d opaque", "f d/x"]);
    check(&["f a/b/.wh..wh..opq"], &["d a implied", "d a/b opaque implied"]);
    check(&["f .wh.x", "f x"], &["f x"]);
    check(&["f x", "f .wh.x"], &["f x"]);
    check(&["f .wh.x", "d x"], &["d x opaque"]);
    check(&["d x", "f .wh.x"], &["d x opaque"]);
    check(&["f .wh.x", "f x/y"], &["d x opaque implied", "f x/y"]);
    check(&["f .wh.x", "f x", "d x"], &["d x opaque"]);
    check(&["l .wh.x > y", "d .wh.z"], &["w x", "w z"]);
    check(
        &["f a/.wh..wh.plnk/1.2", "d .wh..wh.plnk", "f b/.wh.c/d"],
        &["d a implied", "d b implied"],
    );
    let tree = build(&["f .wh..wh..opq"]).unwrap();
    assert!(tree.node(tree.root()).unwrap().is_opaque());
    for name in [".wh.", "d/.wh..", ".wh..."] {
        check_refused(&[&format!("f {name}")], name, "whiteout names no entry");
    }
}

#[test]
fn bottom_layers_show_no_whiteouts() {
    let options = TreeOptions { whiteouts: Whiteouts::Suppress, ..Default::default() };
    let entries = ["f .wh.x", "d x", "f d/.wh.y", "f d/.wh..wh..opq"].map(entry);
    assert_eq!(listing(&build_with(options, &entries).unwrap()), ["d d implied", "d x"]);
}

#[test]
fn opaque_directories_carry_the_attribute_in_its_place() {
    let mut directory = entry("d a");
    directory.pax = ["security.x", "user.a", "user.z", "trusted.overlay.opaque", "user.overlay.x"]
        .map(|name| (format!("SCHILY.xattr.{name}").into_bytes(), b"1".to_vec()))
        .to_vec();
    for (opaque_xattr, expected) in [
        (OpaqueXattr::Trusted, ["security.x", "trusted.overlay.opaque", "user.a", "user.z"]),
        (OpaqueXattr::User, ["security.x", "user.a", "user.overlay.opaque", "user.z"]),
    ] {
        let options = TreeOptions { opaque_xattr, ..Default::default() };
        let entries = [directory.clone(), entry("f a/.wh..wh..opq")];
        let tree = build_with(options, &entries).unwrap();
        let node = tree.node(tree.resolve(b"a").unwrap()).unwrap();
        let names: Vec<_> = node.xattrs().map(|(name, _)| name.to_vec()).collect();
        assert_eq!(names, expected.map(|name| name.as_bytes().to_vec()));
        assert_eq!(node.xattr(opaque_xattr.name()), Some(&b"y"[..]));
        assert_eq!(node.xattr(b"user.z"), Some(&b"1"[..]));
    }
}

#[test]
fn landmarks_hide_in_the_root_only() {
    let names = ["f .prefetch.landmark", "f stargz.index.json", "f d/.no.prefetch.landmark"];
    let options = TreeOptions { landmarks: Landmarks::Hide, ..Default::default() };
    let tree = build_with(options, &names.map(entry)).unwrap();
    assert_eq!(listing(&tree), ["d d implied", "f d/.no.prefetch.landmark"]);
}

#[test]
fn numbers_are_checked_and_times_clamped() {
    let built = |change: fn(&mut Record)| {
        let mut record = entry("c a");
        change(&mut record);
        build_with(TreeOptions::default(), &[record])
    };
    let refused = |change, fault: &str| {
        let error = built(change).unwrap_err().to_string();
        assert!(error.contains(fault), "{error} has no {fault:?}");
    };
    refused(|record| record.uid = -1, "uid -1");
    refused(|record| record.gid = 0xffff_ffff, "gid 4294967295");
    refused(|record| record.devmajor = 1 << 32, "device major");
    let node_of = |change| {
        let tree = built(change).unwrap();
        let node = tree.node(NodeId(1)).unwrap();
        (node.uid(), node.device(), node.mtime())
    };
    let (uid, device, mtime) = node_of(|record| {
        (record.uid, record.devmajor, record.devminor) = (0xffff_fffe, 300, 70_000);
        record.mtime = Time { seconds: -1, nanoseconds: 750_000_000 };
    });
    assert_eq!((uid, device), (0xffff_fffe, Device { major: 300, minor: 70_000 }));
    assert_eq!(mtime, Time::default());
    let late = |nanoseconds| Time { seconds: 9_223_372_036, nanoseconds };
    assert_eq!(
        node_of(|record| record.mtime = Time { seconds: 9_223_372_036, nanoseconds: 854_775_807 })
            .2,
        late(854_775_807)
    );
    assert_eq!(
        node_of(|record| record.mtime = Time { seconds: 9_223_372_036, nanoseconds: 854_775_808 })
            .2,
        Time::default()
    );
}

#[test]
fn texts_that_linux_cannot_hold_are_refused() {
    let long = "x".repeat(256);
    check_refused(&[&format!("f {long}")], &long, "name of 256 bytes");
    check_refused(&[&format!("l s > {long}"), "f s/x"], "s/x", "name of 256 bytes");
    check_refused(&["f a\0b"], "a\0b", "NUL");
    check_refused(&["l a > "], "a", "symlink target is empty");
    let target = "x/".repeat(2048);
    check_refused(&[&format!("l a > {target}")], "a", "symlink target of 4096 bytes");
    let deep = "a/".repeat(1_000_000);
    check_refused(&[&format!("d {deep}")], &deep, "path of 1999999 bytes");
}

#[test]
fn nesting_has_an_end_also_through_symlinks() {
    let mut entries = vec![entry(&format!("d {}", ["d"; 1000].join("/")))];
    let mut link = entry("l s > x");
    link.link = ["d"; 1000].join("/").into_bytes();
    entries.push(link);
    entries.push(entry(&format!("d s/{}", ["e"; 1000].join("/"))));
    let error = build_with(TreeOptions::default(), &entries).unwrap_err();
    assert!(error.fault.to_string().contains("more than 1024 directories"), "{error}");
}

#[test]
fn counts_have_an_end() {
    let options = TreeOptions { entries_max: 10, ..Default::default() };
    let entries: Vec<_> = (0..20).map(|number| entry(&format!("f {number}"))).collect();
    let error = build_with(options, &entries).unwrap_err();
    assert_eq!(error.fault, Fault::TooMany { what: "inodes", max: 10 });
}

#[test]
fn sparse_runs_must_rise_inside_the_file() {
    let run = |file, len| SparseSegment {
        file: crate::FileOffset(file),
        data: UncompressedOffset(1024),
        len,
    };
    for (size, runs, is_good) in [
        (10, vec![], true),
        (10, vec![run(0, 4), run(4, 0), run(6, 4)], true),
        (10, vec![run(0, 4), run(3, 1)], false),
        (10, vec![run(6, 5)], false),
        (10, vec![run(u64::MAX, 5)], false),
    ] {
        let mut record = entry("f a");
        record.sparse = Some((size, runs.clone()));
        let outcome = build_with(TreeOptions::default(), &[record]);
        assert_eq!(outcome.is_ok(), is_good, "{runs:?}");
        if let Ok(tree) = outcome {
            let node = tree.node(NodeId(1)).unwrap();
            let kept: Vec<_> = runs.into_iter().filter(|run| run.len > 0).collect();
            assert_eq!((node.size(), node.extents().collect::<Vec<_>>()), (10, kept));
        }
    }
}

#[test]
fn paths_resolve_inside_the_root() {
    let tree =
        build(&["f a/b/f", "l a/up > ../..", "l abs > /a/b", "l loop > loop", "l f > abs/f"])
            .unwrap();
    let plain = tree.resolve(b"a/b/f").unwrap();
    for path in
        [&b"/a/b/f"[..], b"abs/f", b"f", b"a/up/a/../abs/./f", b"../../a//b/f", b"a/b/../../f"]
    {
        assert_eq!(tree.resolve(path), Ok(plain), "{}", path.escape_ascii());
    }
    assert_eq!(tree.resolve(b"/"), Ok(tree.root()));
    assert_eq!(tree.resolve(b"abs/.."), tree.resolve(b"a"));
    assert_eq!(tree.resolve(b"nothing"), Err(ResolveError::NotFound));
    assert_eq!(tree.resolve(b"f/x"), Err(ResolveError::NotADirectory));
    assert_eq!(tree.resolve(b"loop"), Err(ResolveError::TooManySymlinks));
}

fn check_merged(layers: &[&[&str]], expected: &[&str]) {
    let trees: Vec<_> = layers.iter().map(|entries| build(entries).unwrap()).collect();
    let merged = Tree::merge(&trees).unwrap();
    assert_eq!(listing(&merged), expected, "{layers:?}");
    assert_eq!(usize::from(merged.layer_count()), layers.len().max(1));
}

#[test]
fn layers_stack_as_overlayfs_stacks_them() {
    check_merged(&[], &[]);
    check_merged(
        &[&["f a", "f d/x"], &["f b", "f d/y"]],
        &["f a", "f b", "d d implied", "f d/x", "f d/y"],
    );
    check_merged(&[&["f a", "f d/x"], &["f .wh.a", "f d/.wh.x"]], &["d d implied"]);
    check_merged(&[&["f d/x"], &["f d/.wh..wh..opq", "f d/y"]], &["d d implied", "f d/y"]);
    check_merged(&[&["f d/x"], &["f .wh.d"], &["f d/y"]], &["d d implied", "f d/y"]);
    check_merged(&[&["f d/x"], &["f d"], &["f d/y"]], &["d d implied", "f d/y"]);
    check_merged(&[&["f d/x"], &["f .wh.d", "d d"]], &["d d"]);
    check_merged(&[&["f a"], &["f .wh..wh..opq", "f b"]], &["f b"]);
    check_merged(&[&["f d/x"], &["l d > e"]], &["l d > e"]);
    check_merged(&[&["f a", "h b > a"], &["f a"]], &["f a", "f b"]);
    check_merged(
        &[&["f a", "h b > a"], &["f c", "h d > c"]],
        &["f a x2 #1", "f b x2 #1", "f c x2 #2", "f d x2 #2"],
    );
}

#[test]
fn implied_directories_take_lower_attributes() {
    let lower = build(&["d d", "f d/x"]).unwrap();
    let upper = build(&["f d/y"]).unwrap();
    let merged = Tree::merge([&lower, &upper, &upper]).unwrap();
    let node = merged.node(merged.resolve(b"d").unwrap()).unwrap();
    assert_eq!((node.permissions(), node.uid(), node.is_implied()), (0o700, 1, false));
    let layer = |path| merged.node(merged.resolve(path).unwrap()).unwrap().layer();
    assert_eq!((layer(&b"d/x"[..]), layer(b"d/y"), merged.layer_count()), (0, 2, 3));
}

#[test]
fn implied_directories_have_the_group_that_their_parent_gives() {
    let mut parent = entry("d d");
    (parent.mode, parent.gid) = (0o2750, 7);
    let records = [parent, entry("f d/e/f/x"), entry("d d/g"), entry("f d/g/h/x")];
    let tree = build_with(TreeOptions::default(), &records).unwrap();
    for (path, gid) in [("d/e", 7), ("d/e/f", 0), ("d/g", 2), ("d/g/h", 0)] {
        let node = tree.node(tree.resolve(path.as_bytes()).unwrap()).unwrap();
        assert_eq!((node.gid(), node.permissions() & 0o2000), (gid, 0), "{path}");
    }
}

#[test]
fn a_large_layer_stays_small() {
    let mut builder = TreeBuilder::new(TreeOptions::default());
    for directory in 0..400 {
        builder.push(&entry(&format!("d usr/lib/package-{directory}"))).unwrap();
        for file in 0..250 {
            builder.push(&entry(&format!("f usr/lib/package-{directory}/file-{file}.js"))).unwrap();
        }
    }
    let tree = builder.finish().unwrap();
    assert_eq!(tree.name_count(), 2 + 400 * 251);
    let each = (tree.memory_bytes() - tree.text_bytes()) / tree.name_count() as usize;
    assert!(each <= 80, "{each} bytes for each entry");
}
