//! What the options of `spanfs mount` promise, and what `spanfs status` and `spanfs trace` tell.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use spanfs_registry::{Fault, Faults, Nth, Rule};

use crate::node::{self, Node, REPOSITORY};
use crate::peers::{able, fixture, run};
use crate::scratch::Scratch;
use crate::trees::{self, look};

const PATIENCE: Duration = Duration::from_secs(60);

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_writable_mount_takes_changes_and_forgets_them() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    for front in ["erofs", "inode"] {
        let root = node.mount(&["--front", front, "--rw"]);
        fs::write(root.join("new"), "new").expect("a new file");
        fs::write(root.join("data/07"), "changed").expect("a changed file");
        fs::remove_file(root.join("data/08")).expect("a removed file");
        fs::rename(root.join("data/09"), root.join("moved")).expect("a moved file");
        assert_eq!(fs::read(root.join("data/07")).expect("read"), b"changed");
        assert!(!root.join("data/08").exists() && root.join("moved").exists());
        node.scratch.umount();
        let left: Vec<_> = fs::read_dir(node.scratch.path("cache"))
            .expect("cache")
            .map(|entry| entry.expect("entry").file_name())
            .filter(|name| name.to_string_lossy().starts_with("changes-"))
            .collect();
        assert!(left.is_empty(), "{front}: {left:?}");

        let root = node.mount(&["--front", front]);
        trees::assert_same(&node.expected, &look(&root));
        let refused = fs::write(root.join("new"), "new").expect_err("a read-only mount");
        assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()), "{front}");
        node.scratch.umount();
        node.scratch.forget();
    }
}

#[test]
fn the_transport_that_is_asked_for_carries_the_mount_and_status_says_so() {
    if !able(&[], true) {
        return;
    }
    // A kernel without the parameter has no FUSE over io_uring; this switches it on where it is off.
    let has_uring = Path::new("/sys/module/fuse/parameters/enable_uring").exists();
    let ways: [(&str, &[&str], &str, &str); 5] = [
        ("erofs", &[], "dev", "successor"),
        ("inode", &[], "dev", "successor"),
        ("inode", &["--transport", "fuse3"], "fuse3", "asked for"),
        ("erofs", &["--transport", "dev"], "dev", "asked for"),
        ("inode", &["--transport", "uring", "--enable-uring"], "uring", "asked for"),
    ];
    let node = Node::new();
    for (front, options, transport, reason) in ways {
        if transport == "uring" && !has_uring {
            eprintln!("skipped half: no FUSE over io_uring");
            continue;
        }
        let root = node.mount(&[&["--front", front, "--no-background"], options].concat());
        let status = node.scratch.status_of(&root);
        let mount = &status["mounts"][0];
        assert_eq!((&mount["front"], &mount["transport"]), (&front.into(), &transport.into()));
        assert!(
            mount["transport_reason"].as_str().is_some_and(|it| it.contains(reason)),
            "{mount}"
        );
        trees::assert_same(&node.expected, &look(&root));
        let told = run(node.scratch.spanfs().arg("status").arg(&root));
        assert!(told.contains(&format!("carried   by {transport}: ")), "{told}");
        node.scratch.umount();
        node.scratch.forget();
    }
}

#[test]
fn what_was_read_needs_nobody_and_status_says_so() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let root = node.mount(&["--front", "erofs", "--no-background"]);
    let past_us = || -> Vec<u64> {
        let status = node.scratch.status_of(&root);
        let layers = status["mounts"][0]["layers"].as_array().expect("layers").clone();
        layers.iter().filter_map(|layer| layer["past_us"].as_u64()).collect()
    };
    assert!(past_us().iter().any(|&percent| percent < 100), "{:?}", past_us());
    trees::assert_same(&node.expected, &look(&root));
    wait_until("that all is read past us", || past_us().iter().all(|&percent| percent == 100));
    let told = run(node.scratch.spanfs().arg("status").arg(&root));
    assert!(told.contains("over one-file FUSE, 100 % past it"), "{told}");
    node.scratch.umount();
    node.scratch.forget();
}

#[test]
fn one_layer_is_shown_alone_with_its_whiteouts() {
    if !able(&[], true) {
        return;
    }
    let scratch = Scratch::new();
    let image = format!("oci:{}:fixture", fixture("images/plain").display());
    let report = run(scratch.spanfs().args(["--json", "inspect", &image]));
    let report: Value = serde_json::from_str(&report).expect("JSON");
    let layers = report["layers"].as_array().expect("layers");
    let golden = trees::golden();
    let mut whiteouts = 0;
    for (number, layer) in layers.iter().enumerate() {
        let digest = layer["digest"].as_str().expect("digest");
        let blob = fixture("images/plain/blobs/sha256").join(digest.trim_start_matches("sha256:"));
        let extracted = scratch.path(&format!("layer-{number}"));
        fs::create_dir(&extracted).expect("directory");
        run(Command::new("tar")
            .arg("-xzf")
            .arg(&blob)
            .args(["--delay-directory-restore", "--numeric-owner", "-p"])
            .args(["--xattrs", "--xattrs-include=*", "-C"])
            .arg(&extracted));
        // A directory that the layer only implies has no attributes of its own.
        let listed = run(Command::new("tar").arg("-tzf").arg(&blob));
        let listed: Vec<&str> = listed.lines().map(|it| it.trim_matches(&['.', '/'][..])).collect();
        let implied = |path: &Path| !listed.contains(&path.to_str().expect("text"));
        let mut expected = look(&extracted);
        // tar leaves a file as its first header says, the image has the last one decide.
        for (path, seen) in expected.iter_mut().filter(|(_, seen)| seen.nlink > 1) {
            let of_image = &golden[path];
            (seen.mode, seen.owner, seen.mtime) = (of_image.mode, of_image.owner, of_image.mtime);
        }
        for front in ["erofs", "inode"] {
            let root = scratch.mount(&image, &["--front", front, "--layer", digest]);
            let mut found = look(&root);
            for (path, seen) in &expected {
                let name = path.file_name().expect("name").as_bytes();
                let Some(hidden) = name.strip_prefix(b".wh.") else {
                    let shown = found.remove(path);
                    if implied(path) && shown.as_ref().is_some_and(|it| it.kind == "directory") {
                        continue;
                    }
                    assert_eq!(shown.as_ref(), Some(seen), "{front}: {}", path.display());
                    continue;
                };
                whiteouts += 1;
                if hidden == b".wh..opq" {
                    let directory = root.join(path.parent().expect("parent"));
                    let mut value = [0; 8];
                    let len = rustix::fs::getxattr(directory, "trusted.overlay.opaque", &mut value);
                    assert_eq!(len.map(|len| value[..len].to_vec()), Ok(b"y".to_vec()), "{front}");
                    continue;
                }
                let hidden = path.with_file_name(std::ffi::OsStr::from_bytes(hidden));
                let meta = root.join(&hidden).symlink_metadata().expect("a whiteout");
                assert!(
                    meta.file_type().is_char_device() && meta.rdev() == 0,
                    "{front}: {hidden:?}"
                );
                found.remove(&hidden);
            }
            assert!(found.is_empty(), "{front} shows more: {:?}", found.keys());
            scratch.umount();
        }
    }
    assert!(whiteouts > 0, "no layer of the image hides anything");
    let other = format!("sha256:{}", "0".repeat(64));
    let mut missing = scratch.spanfs();
    missing.args(["mount", &image, "--layer", &other]).arg(scratch.path("mnt"));
    let missing = missing.output().expect("spanfs starts");
    assert_eq!(missing.status.code(), Some(3), "{}", String::from_utf8_lossy(&missing.stderr));
}

#[test]
fn the_cache_keeps_to_its_size_whatever_was_used_last() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let root = node.mount(&[]);
    trees::assert_same(&node.expected, &look(&root));
    node.scratch.umount();
    let first = node.scratch.path("cache/layers/sha256").join(node.layer.hex().to_string());
    let ztoc = node.scratch.path("cache/ztocs").join(node.documents().ztoc.hex().to_string());
    assert!(first.exists() && ztoc.exists(), "the layer is not kept");
    // What nobody has used for a while goes first; what is in use stays, whatever the size.
    let old = ["-exec", "touch", "-h", "-d", "2 hours ago", "{}", "+"];
    run(Command::new("find").arg(node.scratch.path("cache")).args(old));
    let second = node.scratch.path("second");
    fs::create_dir_all(second.join("tree")).expect("directory");
    fs::write(second.join("tree/file"), vec![7; 3 << 20]).expect("write");
    let tar = second.join("layer.tar");
    run(Command::new("tar").arg("-C").arg(second.join("tree")).arg("-cf").arg(&tar).arg("."));
    node::put_image(&node.registry, "second", &[&tar]);
    let other = node::index(&node.registry, &node.scratch, "second", "second-indexed");
    let root = node.scratch.mount(&other, &["--cache-size", "1M"]);
    wait_until("the eviction of the first image", || !first.exists() && !ztoc.exists());
    assert_eq!(fs::read(root.join("file")).expect("read"), vec![7; 3 << 20]);
    node.scratch.umount();
    // Nothing of the first is left, and it is as good as new.
    let root = node.mount(&[]);
    trees::assert_same(&node.expected, &look(&root));
    node.scratch.umount();
}

#[test]
fn memory_and_background_keep_to_their_limits() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let root = node.mount(&["--memory-limit", "32M", "--no-background"]);
    let status = || node.scratch.status_of(&node.scratch.path("mnt"))["mounts"][0].clone();
    std::thread::sleep(Duration::from_secs(1));
    let before = status()["fetched_bytes"].as_u64().expect("bytes");
    assert!(before < 1 << 20, "{before} bytes came that nobody read");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| trees::assert_same(&node.expected, &look(&root)));
        }
    });
    let pid = status()["pid"].as_i64().expect("pid");
    let memory = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    let peak: u64 = peak.trim().trim_end_matches(" kB").trim().parse().expect("a number");
    assert!(peak < (32 + 64) << 10, "{peak} KiB at its peak");
    node.scratch.umount();
    node.scratch.forget();

    let root = node.mount(&["--background-bandwidth", "200K"]);
    std::thread::sleep(Duration::from_secs(2));
    let fetched = status()["fetched_bytes"].as_u64().expect("bytes");
    let all = status()["compressed_bytes"].as_u64().expect("bytes");
    assert!(fetched > 0 && fetched < all / 2, "{fetched} of {all} bytes after two seconds");
    trees::assert_same(&node.expected, &look(&root));
    node.scratch.umount();
}

#[test]
fn two_mounts_of_an_image_share_a_cache_and_end_by_themselves() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let places = ["one", "two"].map(|name| node.scratch.path(name));
    for place in &places {
        fs::create_dir(place).expect("directory");
        run(node.scratch.spanfs().args(["mount", "--no-background", &node.image]).arg(place));
    }
    std::thread::scope(|scope| {
        for place in &places {
            scope.spawn(|| trees::assert_same(&node.expected, &look(place)));
        }
    });
    let listed: Value =
        serde_json::from_str(&run(node.scratch.spanfs().args(["status", "--json"]))).expect("JSON");
    let here = |place: &Path| {
        let mounts = listed["mounts"].as_array().expect("mounts").iter();
        mounts.filter(|it| it["directory"].as_str() == place.to_str()).count()
    };
    assert_eq!(places.each_ref().map(|place| here(place)), [1, 1], "{listed}");
    run(node.scratch.spanfs().arg("umount").arg(&places[0]));
    trees::assert_same(&node.expected, &look(&places[1]));
    run(node.scratch.spanfs().arg("umount").arg(&places[1]));
    // Whoever comes next finds one sound cache.
    trees::assert_same(&node.expected, &look(&node.mount(&[])));
    node.scratch.umount();
}

#[test]
fn status_tells_how_readers_fare_and_what_was_proved() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let blob = format!("/blobs/{}", node.layer);
    let late = Fault::Late { by: Duration::from_millis(100) };
    node.registry.set_faults(Faults::script([Rule::get(blob, Nth::Every, late)]));
    let root = node.mount(&["--no-background"]);
    let report = || node.scratch.status_of(&root)["mounts"][0].clone();
    fs::read(root.join("data/20")).expect("read");
    let first = report();
    assert!(first["on_demand"]["count"].as_u64() > Some(0), "{first}");
    assert!(first["on_demand"]["p99_ms"].as_f64() >= Some(50.0), "{first}");
    assert!(first["on_demand"]["p99_ms"].as_f64() >= first["on_demand"]["p50_ms"].as_f64());
    assert_eq!(first["layers"][0]["verification"], "not verified yet", "{first}");
    trees::assert_same(&node.expected, &look(&root));
    wait_until("the proof", || report()["layers"][0]["verification"] == "verified");
    let text = run(node.scratch.spanfs().arg("status").arg(&root));
    for word in ["waited", "verified", "shown by", &node.image] {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
    node.scratch.umount();
    let gone = node.scratch.spanfs().arg("status").arg(&root).output().expect("spanfs starts");
    assert_eq!(gone.status.code(), Some(3));
}

#[test]
fn a_trace_travels_to_another_machine() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let trace = node.scratch.path("trace");
    let export = |scratch: &Scratch, file: &Path| {
        let mut command = scratch.spanfs();
        command.args(["trace", "export", &node.image]).arg(file).output().expect("spanfs starts")
    };
    let none = export(&node.scratch, &trace);
    assert_eq!(none.status.code(), Some(3), "{}", String::from_utf8_lossy(&none.stderr));
    let root = node.mount(&["--no-background"]);
    fs::read(root.join("data/30")).expect("read");
    node.scratch.umount();
    let exported = export(&node.scratch, &trace);
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    let text = fs::read_to_string(&trace).expect("trace");
    assert!(text.starts_with("{\"spanfs_trace\":1,") && text.contains(&node.layer.to_string()));
    assert_eq!(run(node.scratch.spanfs().args(["trace", "export", &node.image])), text);

    let other = Scratch::new();
    run(other.spanfs().args(["trace", "import", &node.image]).arg(&trace));
    let root = other.mount(&node.image, &["--no-background"]);
    let report = || other.status_of(&root)["mounts"][0].clone();
    assert!(report()["trace_runs"].as_u64() > Some(0), "{}", report());
    wait_until("the replay", || {
        report()["spans_present"].as_u64() >= report()["trace_runs"].as_u64()
    });
    other.umount();

    // A trace of another image, and what is none.
    let tar = node.scratch.path("other.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(node.scratch.path("tree/data"))
        .arg("-cf")
        .arg(&tar)
        .arg("00"));
    node::put_image(&node.registry, "other", &[&tar]);
    let image = node.registry.reference(REPOSITORY, "other");
    let refused = other.spanfs().args(["trace", "import", &image]).arg(&trace).output();
    assert_eq!(refused.expect("spanfs starts").status.code(), Some(5));
    fs::write(&trace, "no trace").expect("write");
    let refused = other.spanfs().args(["trace", "import", &node.image]).arg(&trace).output();
    assert_eq!(refused.expect("spanfs starts").status.code(), Some(5));
}

#[test]
fn a_registry_that_is_unplugged_is_named_and_waited_for() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let root = node.mount(&["--no-background"]);
    fs::read(root.join("data/00")).expect("read");
    let Node { registry, scratch, image, .. } = node;
    let port = registry.addr().port();
    drop(registry);
    let start = Instant::now();
    let error = fs::read(root.join("data/39")).expect_err("nobody can have it");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    assert!(start.elapsed() < PATIENCE * 2, "EIO after {:?}", start.elapsed());
    // Names and attributes never need it, nor does what was read before.
    assert!(fs::read_dir(root.join("data")).expect("directory").count() == 40);
    fs::read(root.join("data/00")).expect("kept");
    let start = Instant::now();
    let other = scratch.spanfs().args(["inspect", &image]).output().expect("spanfs starts");
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert_eq!(other.status.code(), Some(1), "{said}");
    assert!(said.contains("reached") && start.elapsed() < PATIENCE, "{said}");
    assert!(
        said.contains(&format!("127.0.0.1:{port}")) || said.contains(&format!("localhost:{port}"))
    );
    scratch.umount();
}
