//! Bad input on its whole way: what a registry, a disk or a layer may hold ends in an error that names
//! it, or in the right bytes.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use spanfs_layer::{Digest, Ztoc};
use spanfs_registry::Registry;
use spanfs_tests::tars::{Attributes, Tar};
use tar::EntryType;

use crate::node::{self, Node, REPOSITORY};
use crate::peers::{able, fixture};
use crate::scratch::{Scratch, SmallDisk};
use crate::trees::{self, look};

const PATIENCE: Duration = Duration::from_secs(60);

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// It failed as it should: with this code, naming what is wrong, within a minute, in good order.
fn check_failure(output: &Output, codes: &[i32], names: &str, what: &str) {
    let said = said(output);
    let code = output.status.code().unwrap_or_else(|| panic!("{what}: {}: {said}", output.status));
    assert!(codes.contains(&code), "{what}: {code}: {said}");
    assert!(said.contains(names), "{what}: no {names:?} in {said}");
    assert!(!said.contains("panicked"), "{what}: {said}");
}

fn try_mount(scratch: &Scratch, image: &str) -> Output {
    let root = scratch.path("mnt");
    fs::create_dir_all(&root).expect("directory");
    scratch.spanfs().arg("mount").arg(image).arg(root).output().expect("spanfs starts")
}

#[test]
fn ztocs_that_are_none_are_refused_by_name() {
    if !able(&["curl"], true) {
        return;
    }
    let node = Node::new();
    let half = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    let other = |_| fs::read(fixture("ztoc/links-tar.4k.ztoc")).expect("fixture");
    let resized = |bytes: Vec<u8>| {
        let mut ztoc = Ztoc::decode(&bytes).expect("our own zTOC");
        ztoc.compressed_size += 1;
        ztoc.encode()
    };
    type Edit<'a> = &'a dyn Fn(Vec<u8>) -> Vec<u8>;
    let cases: [(&str, Edit<'_>); 5] = [
        ("empty", &|_| Vec::new()),
        ("garbage", &|bytes| bytes.iter().map(|byte| byte ^ 0x5a).collect()),
        ("half", &half),
        ("of-another-layer", &other),
        ("resized", &resized),
    ];
    for (what, edit) in cases {
        let image = node.with_ztoc(what, edit);
        let start = Instant::now();
        let output = try_mount(&node.scratch, &image);
        check_failure(&output, &[5], &node.layer.to_string(), what);
        assert!(start.elapsed() < PATIENCE, "{what}: {:?}", start.elapsed());
        node.scratch.forget();
    }
    // The layer itself is as good as ever.
    trees::assert_same(&node.expected, &look(&node.mount(&[])));
    node.scratch.umount();
}

#[test]
fn a_ztoc_of_an_equally_long_layer_gives_errors_and_no_bytes() {
    if !able(&["curl"], true) {
        return;
    }
    let node = Node::new();
    // Digests of another layer's spans: as if the zTOC had been made of it.
    let image = node.with_ztoc("foreign", |bytes| {
        let mut ztoc = Ztoc::decode(&bytes).expect("our own zTOC");
        for (number, digest) in ztoc.span_digests.iter_mut().enumerate() {
            *digest = Digest::of(&[number as u8]);
        }
        ztoc.encode()
    });
    let root = node.scratch.mount(&image, &["--no-background"]);
    for name in ["00", "20", "39"] {
        let error =
            fs::read(root.join("data").join(name)).expect_err("bytes that nobody vouches for");
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{name}");
    }
    assert!(node.log().contains("span"), "no span in the log: {}", node.log());
    node.scratch.umount();
}

#[test]
fn a_ztoc_that_lies_is_found_out_and_the_layer_no_longer_served() {
    if !able(&["curl"], true) {
        return;
    }
    let node = Node::new();
    type Lie<'a> = (&'a str, &'a dyn Fn(&mut Ztoc), &'a str);
    let at = |ztoc: &Ztoc, name: &str| {
        ztoc.records.iter().position(|it| it.name.ends_with(name.as_bytes())).expect("an entry")
    };
    let lies: [Lie<'_>; 6] = [
        (
            "names",
            &|ztoc| {
                let (a, b) = (at(ztoc, "data/10"), at(ztoc, "data/11"));
                let name = ztoc.records[a].name.clone();
                ztoc.records[a].name = std::mem::replace(&mut ztoc.records[b].name, name);
            },
            "name",
        ),
        ("setuid", &|ztoc| ztoc.records.iter_mut().for_each(|it| it.mode |= 0o4000), "mode"),
        ("owner", &|ztoc| ztoc.records.iter_mut().for_each(|it| it.uid += 1), "owner"),
        (
            "attribute",
            &|ztoc| {
                let entry = at(ztoc, "data/10");
                let pax = &mut ztoc.records[entry].pax;
                pax.push((b"SCHILY.xattr.user.lie".to_vec(), b"1".to_vec()));
                pax.sort();
            },
            "attribute",
        ),
        (
            "missing",
            &|ztoc| {
                let entry = at(ztoc, "data/10");
                ztoc.records.remove(entry);
            },
            "entries",
        ),
        (
            "window",
            // Of every checkpoint: where the bytes before a span are, its content comes out wrong.
            &|ztoc| {
                let len = ztoc.checkpoints.len();
                for at in (0..len).filter(|at| at % 64 == 63) {
                    if ztoc.checkpoints[at] == b'=' {
                        ztoc.checkpoints[at] = b'!';
                    }
                }
            },
            "digest",
        ),
    ];
    for (what, lie, reason) in lies {
        let image = node.with_ztoc(what, |bytes| {
            let mut ztoc = Ztoc::decode(&bytes).expect("our own zTOC");
            lie(&mut ztoc);
            ztoc.encode()
        });
        let root = node.scratch.mount(&image, &[]);
        let verification = || {
            let status = node.scratch.status_of(&root);
            status["mounts"][0]["layers"][0]["verification"].as_str().expect("text").to_owned()
        };
        let end = Instant::now() + PATIENCE;
        while !verification().starts_with("corrupt: ") {
            assert!(Instant::now() < end, "{what} is not found out: {}", verification());
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(verification().contains(reason), "{what}: no {reason:?} in {}", verification());
        // Read for the first time now: it must not come from anywhere.
        let error = fs::read(root.join("data/39")).expect_err(what);
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{what}");
        assert!(node.log().contains(reason), "{what}: no {reason:?} in {}", node.log());
        node.scratch.umount();
        // Nor does it come back with the next mount.
        check_failure(&try_mount(&node.scratch, &image), &[5], reason, what);
        node.scratch.forget();
    }
}

#[test]
fn damaged_files_of_the_cache_cost_time_alone() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let fill = || {
        trees::assert_same(&node.expected, &look(&node.mount(&[])));
        let end = Instant::now() + PATIENCE;
        let root = node.scratch.path("mnt");
        while node.scratch.status_of(&root)["mounts"][0]["layers"][0]["verification"] != "verified"
        {
            assert!(Instant::now() < end, "the layer is not proved");
            std::thread::sleep(Duration::from_millis(20));
        }
        node.scratch.umount();
    };
    fill();
    let files = files(&node.scratch.path("cache"));
    assert!(files.len() > 5, "a cache of {files:?}");
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("emptied", |path| fs::write(path, []).expect("write")),
        ("halved", |path| {
            let file = fs::File::options().write(true).open(path).expect("open");
            file.set_len(file.metadata().expect("metadata").len() / 2).expect("truncate");
        }),
        ("changed", |path| {
            let file = fs::File::options().read(true).write(true).open(path).expect("open");
            let len = file.metadata().expect("metadata").len();
            for at in (0..len).step_by(1 + len as usize / 7) {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).expect("read");
                file.write_all_at(&[byte[0] ^ 0x40], at).expect("write");
            }
        }),
        ("removed", |path| fs::remove_file(path).expect("remove")),
    ];
    for path in files {
        let name = path.file_name().expect("name").to_string_lossy().into_owned();
        for (damage, apply) in damages {
            if !path.exists() {
                continue; // A lock or a note that this run had no use for.
            }
            apply(&path);
            if name == "version" && damage != "removed" && damage != "emptied" {
                // Another format, it seems: not ours to touch.
                let output = try_mount(&node.scratch, &node.image);
                check_failure(&output, &[4], "--cache-dir", damage);
                fs::remove_file(&path).expect("remove");
                continue;
            }
            let output = try_mount(&node.scratch, &node.image);
            assert!(output.status.success(), "{name} {damage}: {}", said(&output));
            trees::assert_same(&node.expected, &look(&node.scratch.path("mnt")));
            node.scratch.umount();
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("directory") {
        let path = entry.expect("entry").path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

/// A tar of one file below so many directories, by a PAX path.
fn deep_tar(levels: usize) -> Vec<u8> {
    let mut tar = Tar::default();
    let path = "a/".repeat(levels) + "file";
    tar.entry(EntryType::Regular, &path, &Attributes::default(), &[]);
    tar.finish()
}

/// A tar of directories, each below the one before.
fn nested_tar(levels: usize) -> Vec<u8> {
    let mut tar = Tar::default();
    let mut path = String::new();
    for _ in 0..levels {
        path += "d/";
        let attributes = Attributes { mode: 0o755, ..Attributes::default() };
        tar.entry(EntryType::Directory, &path, &attributes, &[]);
    }
    tar.finish()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("compress");
    encoder.finish().expect("compress")
}

#[test]
fn layers_that_are_no_good_are_refused_by_name() {
    if !able(&[], true) {
        return;
    }
    let scratch = Scratch::new();
    let registry = Registry::builder().start().expect("registry");
    let good = fs::read(fixture("layers/mix-gzip6.tar.gz")).expect("fixture");
    let tar = fs::read(fixture("layers/mix-tar.tar")).expect("fixture");
    let cases: Vec<(&str, Digest, Vec<u8>)> = vec![
        ("cut", Digest::of(&tar), good[..good.len() / 2].to_vec()),
        ("garbage", Digest::of(b"x"), b"this was never a layer".repeat(1000)),
        ("of-another-diff-id", Digest::of(b"x"), good.clone()),
        ("no-tar", Digest::of(&[7; 100_000]), gzip(&[7; 100_000])),
        // A million levels have a path that no tar may carry, half a million one that it may.
        ("million-levels", Digest::of(&deep_tar(1_000_000)), gzip(&deep_tar(1_000_000))),
        ("half-million-levels", Digest::of(&deep_tar(500_000)), gzip(&deep_tar(500_000))),
        ("nested", Digest::of(&nested_tar(1500)), gzip(&nested_tar(1500))),
    ];
    for (what, diff_id, blob) in cases {
        let layer = node::put_blobs(&registry, what, vec![(diff_id, blob)])[0].to_string();
        let image = registry.reference(REPOSITORY, what);
        let start = Instant::now();
        check_failure(&try_mount(&scratch, &image), &[5], &layer, what);
        let index = scratch.spanfs().args(["index", "--min-layer-size", "0", &image]).output();
        let index = index.expect("spanfs starts");
        // A tree that nobody can show may still have a zTOC, and a layer without one is no mistake.
        check_failure(&index, &[0, 1, 4, 5], "", what);
        assert!(start.elapsed() < PATIENCE, "{what}: {:?}", start.elapsed());
        assert!(fs::read_dir(scratch.path("mnt")).expect("directory").next().is_none(), "{what}");
    }
    // Deep, but not too deep for any program.
    let tar = nested_tar(1000);
    node::put_blobs(&registry, "deep", vec![(Digest::of(&tar), gzip(&tar))]);
    let root = scratch.mount(&registry.reference(REPOSITORY, "deep"), &[]);
    let mut level = rustix::fs::open(&root, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty());
    for number in 0..1000 {
        let above = level.unwrap_or_else(|error| panic!("level {number}: {error}"));
        level = rustix::fs::openat(above, "d", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty());
    }
    level.expect("the deepest directory");
    scratch.umount();
}

#[test]
fn names_that_lead_out_stay_inside() {
    if !able(&[], true) {
        return;
    }
    let scratch = Scratch::new();
    let registry = Registry::builder().start().expect("registry");
    for name in ["hostile", "names-odd", "links"] {
        let blob = fs::read(fixture(&format!("layers/{name}.tar.gz"))).expect("fixture");
        let mut tar = Vec::new();
        let mut decoder = flate2::read::MultiGzDecoder::new(&blob[..]);
        std::io::Read::read_to_end(&mut decoder, &mut tar).expect("gzip");
        node::put_blobs(&registry, name, vec![(Digest::of(&tar), blob)]);
        let image = registry.reference(REPOSITORY, name);
        if name == "hostile" {
            // Its links lead in circles: no engine unpacks it.
            check_failure(&try_mount(&scratch, &image), &[5], "symlinks on the way", name);
            continue;
        }
        let mut seen = Vec::new();
        for front in ["erofs", "inode"] {
            let root = scratch.mount(&image, &["--front", front]);
            let tree = look(&root);
            let outside =
                tree.keys().find(|path| path.components().any(|it| it.as_os_str() == ".."));
            assert_eq!(outside, None, "{name}, {front}");
            seen.push(tree);
            scratch.umount();
        }
        trees::assert_same(&seen[0], &seen[1]);
        // `cat` follows the image's links inside the image.
        for path in ["../../../../etc/passwd", "/etc/../../../../proc/self/status"] {
            let output =
                scratch.spanfs().args(["cat", &image, path]).output().expect("spanfs starts");
            let shown = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(!shown.contains("root:x:0:0"), "{name}: {path}: {shown}");
            assert!(!shown.contains("VmRSS"), "{name}: {path}: {shown}");
        }
    }
}

#[test]
fn bombs_take_neither_memory_nor_disk() {
    if !able(&[], true) {
        return;
    }
    const BOMB_LEN: usize = 300 << 20;
    let scratch = Scratch::new();
    let registry = Registry::builder().start().expect("registry");
    // Behind the archive's end: nothing that a reader ever sees.
    let mut tar = nested_tar(3);
    tar.resize(tar.len() + BOMB_LEN, 0);
    let (diff_id, blob) = (Digest::of(&tar), gzip(&tar));
    drop(tar);
    assert!(blob.len() < 4 << 20, "a bomb of {} bytes", blob.len());
    let layer = node::put_blobs(&registry, "bomb", vec![(diff_id, blob)])[0];
    let image = registry.reference(REPOSITORY, "bomb");
    let output = try_mount(&scratch, &image);
    if output.status.success() {
        let root = scratch.path("mnt");
        assert_eq!(look(&root).len(), 3);
        let pid = scratch.status_of(&root)["mounts"][0]["pid"].as_i64().expect("pid");
        let memory = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        let peak: u64 = peak.trim().trim_end_matches(" kB").trim().parse().expect("a number");
        assert!(peak < 200 << 10, "{peak} KiB at its peak");
        scratch.umount();
    } else {
        check_failure(&output, &[5], &layer.to_string(), "bomb");
    }
    let du =
        Command::new("du").args(["-s", "-B1"]).arg(scratch.path("cache")).output().expect("du");
    let kept = String::from_utf8_lossy(&du.stdout).into_owned();
    let kept: u64 = kept.split_whitespace().next().expect("a number").parse().expect("a number");
    assert!(kept < 32 << 20, "{kept} bytes on disk");
}

#[test]
fn sigterm_ends_a_mount_in_good_order() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    for options in [&["--front", "erofs"][..], &["--front", "inode"], &["--rw"]] {
        let root = node.mount(options);
        trees::assert_same(&node.expected, &look(&root));
        let status: Value = node.scratch.status_of(&root);
        let process = status["mounts"][0]["pid"].as_i64().expect("pid");
        let held = fs::File::open(root.join("data/05")).expect("open");
        let pid = Pid::from_raw(process.try_into().expect("a pid")).expect("a pid");
        kill_process(pid, Signal::TERM).expect("kill");
        let end = Instant::now() + PATIENCE;
        while Path::new(&format!("/proc/{process}")).exists() {
            assert!(Instant::now() < end, "{options:?}: the process stays");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        assert!(!mounts.contains(root.to_str().expect("text")), "{options:?}: {mounts}");
        assert!(fs::read_dir(&root).expect("directory").next().is_none());
        drop(held);
        let gone = node.scratch.spanfs().arg("status").arg(&root).output().expect("spanfs starts");
        assert_eq!(gone.status.code(), Some(3), "{options:?}: its socket stays");
    }
    // What it had is believed by the next.
    node.registry.reset_stats();
    trees::assert_same(&node.expected, &look(&node.mount(&["--no-background"])));
    node.scratch.umount();
    let sent = node.registry.stats().bytes_sent;
    assert!(sent < 1 << 20, "{sent} bytes were fetched again");
}

#[test]
fn a_full_disk_gives_right_bytes_or_a_clear_error() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let cache = node.scratch.path("cache");
    node.scratch.forget();
    let _disk = SmallDisk::mount(&cache, c"size=3m");
    // The kernel reads no EROFS from tmpfs, which is said.
    let refused = {
        let root = node.scratch.path("mnt");
        fs::create_dir_all(&root).expect("directory");
        let mut command = node.scratch.spanfs();
        command.args(["mount", "--front", "erofs", &node.image]).arg(root);
        command.output().expect("spanfs starts")
    };
    check_failure(&refused, &[1], "tmpfs", "EROFS on tmpfs");
    // Span by span there is another way: memory.
    trees::assert_same(&node.expected, &look(&node.mount(&["--no-background"])));
    let status = node.scratch.status_of(&node.scratch.path("mnt"));
    let layer = &status["mounts"][0]["layers"][0];
    let error = layer["disk_error"].as_str().unwrap_or_default();
    assert!(error.contains("No space left"), "{status}");
    node.scratch.umount();
    // A whole layer has to be somewhere.
    let plain = node.registry.reference(REPOSITORY, "plain");
    check_failure(&try_mount(&node.scratch, &plain), &[1], "No space left", "a whole layer");
}
