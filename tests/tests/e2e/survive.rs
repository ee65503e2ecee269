//! A background mount whose process is killed: another goes on with it, and readers see a pause.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::Advice;
use rustix::process::{Pid, Signal, kill_process};

use crate::node::Node;
use crate::peers::{able, run};
use crate::scratch::Scratch;

const PATIENCE: Duration = Duration::from_secs(60);
const READERS: usize = 4;
const KILLS: u32 = 8;
/// Shorter than a successor waits for a registry that is gone.
const END_TIME_MAX: Duration = Duration::from_secs(10);
/// Servers that die at once, again and again, are not replaced for ever.
const KILL_EVERY: Duration = Duration::from_millis(500);

/// The process that serves, and the one that starts its successors.
fn processes(scratch: &Scratch, root: &Path) -> (Pid, Pid) {
    let until = Instant::now() + PATIENCE;
    loop {
        let pid = scratch.status_of(root)["mounts"][0]["pid"].as_i64();
        let parent = pid.and_then(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
        });
        let process = |pid: i64| Pid::from_raw(i32::try_from(pid).expect("a pid"));
        if let (Some(server), Some(parent)) = (pid.and_then(process), parent.and_then(process)) {
            return (server, parent);
        }
        assert!(Instant::now() < until, "nobody serves {}", root.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn kill_both(scratch: &Scratch, root: &Path) {
    let (server, parent) = processes(scratch, root);
    kill_process(parent, Signal::KILL).expect("kill");
    kill_process(server, Signal::KILL).expect("kill");
}

#[test]
fn readers_outlive_the_process_that_serves_them() {
    if !able(&[], true) {
        return;
    }
    for front in ["erofs", "inode"] {
        let node = Node::new();
        let root = node.mount(&["--front", front]);
        let names: Vec<_> = fs::read_dir(root.join("data"))
            .expect("names")
            .map(|entry| entry.expect("entry").path())
            .collect();
        let contents: Vec<_> = names
            .iter()
            .map(|path| {
                let name = path.strip_prefix(&root).expect("below");
                fs::read(node.scratch.path("tree").join(name)).expect("its source")
            })
            .collect();
        let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
        let (names, contents, reads, stop) = (&names, &contents, &reads, &stop);
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..READERS)
                .map(|reader| {
                    scope.spawn(move || {
                        let mut number = reader * 7;
                        while !stop.load(Ordering::Relaxed) {
                            number = (number * 5 + 3) % names.len();
                            let file = File::open(&names[number]).expect("open");
                            let mut bytes = vec![0; contents[number].len()];
                            file.read_exact_at(&mut bytes, 0).expect("read");
                            assert!(bytes == contents[number], "wrong bytes in {number}");
                            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).expect("advice");
                            reads.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..KILLS {
                    std::thread::sleep(KILL_EVERY);
                    progress(reads);
                    let (server, parent) = processes(&node.scratch, &root);
                    kill_process(server, Signal::KILL).expect("kill");
                    progress(reads);
                    let until = Instant::now() + PATIENCE;
                    while processes(&node.scratch, &root).0 == server {
                        assert!(Instant::now() < until, "no successor came");
                    }
                    assert_eq!(processes(&node.scratch, &root).1, parent);
                }
                progress(reads);
            }));
            stop.store(true, Ordering::Relaxed);
            readers.into_iter().for_each(|reader| reader.join().expect("every byte is right"));
            killed.expect("readers go on");
        });
        node.scratch.umount();
        assert!(fs::read_dir(&root).expect("it is empty").next().is_none());
    }
}

fn progress(reads: &AtomicU64) {
    let (before, until) = (reads.load(Ordering::Relaxed), Instant::now() + PATIENCE);
    while reads.load(Ordering::Relaxed) < before + 2 * READERS as u64 {
        assert!(Instant::now() < until, "readers hang");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The first server was killed before its zTOC was kept, and its successor asked the registry for it.
#[test]
fn a_successor_needs_no_registry_for_what_is_there() {
    if !able(&[], true) {
        return;
    }
    for front in ["erofs", "inode"] {
        let node = Node::new();
        let root = node.mount(&["--front", front]);
        let (server, supervisor) = processes(&node.scratch, &root);
        wait_until_complete(&node.scratch, &root);
        let Node { registry, scratch, .. } = node;
        drop(registry);
        kill_process(server, Signal::KILL).expect("kill");
        let file = File::open(root.join("data/39")).expect("open");
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).expect("advice");
        let expected = fs::read(scratch.path("tree/data/39")).expect("its source");
        let mut found = vec![0; expected.len()];
        file.read_exact_at(&mut found, 0).expect("read");
        assert!(found == expected);
        drop(file);
        scratch.umount();
        wait_for_end(supervisor);
    }
}

fn wait_until_complete(scratch: &Scratch, root: &Path) {
    let until = Instant::now() + PATIENCE;
    loop {
        let mount = &scratch.status_of(root)["mounts"][0];
        if mount["spans_present"]
            .as_u64()
            .is_some_and(|it| Some(it) == mount["span_count"].as_u64())
        {
            return;
        }
        assert!(Instant::now() < until, "the background does not bring all: {mount}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn wait_for_end(process: Pid) {
    let until = Instant::now() + END_TIME_MAX;
    let stat = format!("/proc/{}/stat", process.as_raw_nonzero());
    // Its parent may be one that never asks what became of its children.
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < until, "{process:?} lives on after the end of its mount");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A successor waits for its registry, which is gone with all that it needs of the image.
fn with_a_waiting_successor(front: &str) -> (Scratch, PathBuf, Pid) {
    let node = Node::new();
    let root = node.mount(&["--front", front, "--no-background"]);
    let (server, supervisor) = processes(&node.scratch, &root);
    let Node { registry, scratch, .. } = node;
    drop(registry);
    // What it is about to keep it must not keep any more.
    kill_process(server, Signal::STOP).expect("stop");
    fs::remove_dir_all(scratch.path("cache/ztocs")).expect("the zTOC can go");
    kill_process(server, Signal::KILL).expect("kill");
    (scratch, root, supervisor)
}

/// Successors were started for minutes after the end of their mount.
#[test]
fn umount_ends_the_supervisor_of_a_mount_that_nobody_serves() {
    if !able(&[], true) {
        return;
    }
    for front in ["erofs", "inode"] {
        let (scratch, root, supervisor) = with_a_waiting_successor(front);
        scratch.umount();
        wait_for_end(supervisor);
        assert!(fs::read_dir(&root).expect("it is empty").next().is_none());
    }
}

/// A signal went to the server of the moment alone, and the next one was started.
#[test]
fn a_supervisor_that_is_told_to_end_ends_the_mount() {
    if !able(&[], true) {
        return;
    }
    for front in ["erofs", "inode"] {
        let (scratch, root, supervisor) = with_a_waiting_successor(front);
        kill_process(supervisor, Signal::TERM).expect("kill");
        wait_for_end(supervisor);
        let status = scratch.spanfs().args(["status"]).arg(&root).output().expect("spanfs starts");
        assert_eq!(status.status.code(), Some(3), "nothing is left to tell of: {status:?}");
        assert!(fs::read_dir(&root).expect("it is empty").next().is_none());
    }
}

#[test]
fn with_all_killed_umount_frees_who_waits() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let root = node.mount(&["--front", "inode", "--no-background"]);
    kill_both(&node.scratch, &root);
    let path = root.join("data/39");
    let reader = std::thread::spawn(move || fs::read(path).map(drop));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!reader.is_finished(), "it waits for a successor");
    run(node.scratch.spanfs().arg("umount").arg(&root));
    assert!(reader.join().expect("no panic").is_err());
    assert!(fs::read_dir(&root).expect("it is empty").next().is_none());
}
