//! A mount whose processes may have little memory: it is slower, and that is all.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use spanfs_registry::Registry;

use crate::node::put_tree;
use crate::peers::{able, run};
use crate::scratch::Scratch;

const FILES: usize = 16;
const FILE_BYTES: usize = 4 << 20;
/// Less than the image, whose layer file is page cache of whoever writes it.
const LIMIT: u64 = 56 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

/// A control group that limits memory; gone with the value.
struct Group(PathBuf);

impl Group {
    fn make() -> Option<Self> {
        let unified = Path::new("/sys/fs/cgroup");
        let controllers =
            fs::read_to_string(unified.join("cgroup.controllers")).unwrap_or_default();
        let (parent, limit) = match controllers.contains("memory") {
            true => (unified.to_owned(), "memory.max"),
            false => (unified.join("memory"), "memory.limit_in_bytes"),
        };
        let group = Self(parent.join(format!("spanfs-pressure-{}", std::process::id())));
        fs::create_dir(&group.0).ok()?;
        fs::write(group.0.join(limit), LIMIT.to_string()).ok()?;
        Some(group)
    }

    fn add(&self, pid: u64) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("a process of the mount");
    }

    /// How often the limit was met.
    fn hits(&self) -> u64 {
        let events = fs::read_to_string(self.0.join("memory.events")).unwrap_or_default();
        let hits = events.lines().find_map(|line| line.strip_prefix("max ")?.parse().ok());
        let old = fs::read_to_string(self.0.join("memory.failcnt"));
        hits.or_else(|| old.ok()?.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir(&self.0).is_err() && self.0.exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_small_control_group_makes_reads_slow_and_not_wrong() {
    if !able(&[], true) {
        return;
    }
    let Some(group) = Group::make() else {
        assert!(!crate::peers::strict(), "no memory control group can be made");
        return eprintln!("skipped: no memory control group can be made");
    };
    let registry = Registry::builder().start().expect("registry");
    let scratch = Scratch::new();
    let tree = scratch.path("tree");
    fs::create_dir_all(&tree).expect("directory");
    let contents: Vec<Vec<u8>> = (0..FILES).map(content).collect();
    for (number, content) in contents.iter().enumerate() {
        fs::write(tree.join(number.to_string()), content).expect("write");
    }
    put_tree(&registry, &scratch, &tree);
    let (plain, image) =
        (registry.reference("faults", "plain"), registry.reference("faults", "v2"));
    run(scratch.spanfs().args(["index", "--span-size", "1M", "--output", &image, &plain]));
    let root = scratch.mount(&image, &["--memory-limit", "32M", "--no-background"]);
    let pid = scratch.status_of(&root)["mounts"][0]["pid"].as_u64().expect("pid of the mount");
    group.add(pid);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (root, contents) = (&root, &contents);
            scope.spawn(move || {
                for number in (0..FILES).map(|it| (it + reader * 4) % FILES) {
                    let bytes = fs::read(root.join(number.to_string())).expect("read");
                    assert!(bytes == contents[number], "wrong bytes in {number}");
                }
            });
        }
    });
    assert!(start.elapsed() < PATIENCE, "reads took {:?}", start.elapsed());
    assert!(group.hits() > 0, "{LIMIT} bytes were enough for all: the test shows nothing");
    let still = scratch.status_of(&root)["mounts"][0]["pid"].as_u64();
    assert_eq!(still, Some(pid), "it was killed for want of memory");
    scratch.umount();
}

/// Half of it can be compressed.
fn content(seed: usize) -> Vec<u8> {
    let mut state = seed as u64 + 1;
    (0..FILE_BYTES)
        .map(|at| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            if at % 128 < 64 { b'=' } else { (state >> 56) as u8 }
        })
        .collect()
}
