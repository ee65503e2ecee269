//! Figures of the transports beside one another, in one run: told, not judged.
//!
//! `SPANFS_MEASURE=1 cargo test -p spanfs-mount --test mounts -- --nocapture measure` measures; without
//! the variable the same code runs once on little, so that it cannot rot.

use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spanfs_cache::{Content, ReadError, ReadReply};
use spanfs_layer::UncompressedOffset;
use spanfs_mount::transport::{Privilege, Transport};
use spanfs_mount::{Busy, Mount, Mounter, MounterOptions, Parts};

use crate::conformance::{PATIENCE, Road};
use crate::content::{Handle, noise};
use crate::layers::Maker;
use crate::scratch::{Scratch, may_mount};

/// A layer file with all of its spans, which is never shown directly.
struct Local {
    file: std::fs::File,
    len: u64,
}

impl Content for Local {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_present(
        &self,
        offset: UncompressedOffset,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, ReadError> {
        let count = self.len.saturating_sub(offset.0).min(buffer.len() as u64) as usize;
        self.file.read_exact_at(&mut buffer[..count], offset.0).unwrap();
        Ok(Some(count))
    }

    fn fill(&self, _range: std::ops::Range<UncompressedOffset>, reply: ReadReply) {
        reply(Ok(()));
    }

    fn complete_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

const FILES: usize = 400;

/// How much is measured.
#[derive(Clone, Copy)]
struct Scale {
    directories: usize,
    big_len: usize,
    pages: u64,
    rounds: usize,
    mounts: usize,
}

const FULL: Scale =
    Scale { directories: 50, big_len: 1 << 30, pages: 10_000, rounds: 3, mounts: 100 };
const LITTLE: Scale = Scale { directories: 1, big_len: 20 << 20, pages: 50, rounds: 1, mounts: 3 };

fn layer(scale: Scale) -> Maker {
    let mut maker = Maker::default();
    for directory in 0..scale.directories {
        maker.directory(&directory.to_string(), 0o755);
        for file in 0..FILES {
            maker.file(&format!("{directory}/{file}"), 0o644, vec![file as u8; 8192]);
        }
    }
    let mut big = noise(16 << 20, 3);
    big.resize(scale.big_len, 1);
    maker.file("big", 0o644, big);
    maker
}

const ROADS: [Road; 5] = [
    Road::OverFuse(Parts::Hidden, Transport::Dev),
    Road::OverFuse(Parts::Hidden, Transport::Fuse3),
    Road::Inode(Privilege::Root, Transport::Dev),
    Road::Inode(Privilege::Root, Transport::Fuse3),
    Road::Inode(Privilege::User, Transport::Fuse3),
];

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Small files, random pages, one long read; each from a fresh mount and a cold page cache above
/// the layer file, which is in memory.
fn figures(mount: &dyn Fn() -> (Mount, Mounter), at: &Path, scale: Scale) -> [Duration; 3] {
    let with = |work: &dyn Fn()| {
        let (mount, _mounter) = mount();
        let time = timed(work);
        mount.unmount(PATIENCE, Busy::Abort).unwrap();
        time
    };
    let small = with(&|| {
        for directory in 0..scale.directories {
            for file in 0..FILES {
                let path = at.join(format!("{directory}/{file}"));
                assert_eq!(std::fs::read(path).unwrap(), vec![file as u8; 8192]);
            }
        }
    });
    let random = with(&|| {
        let big = std::fs::File::open(at.join("big")).unwrap();
        rustix::fs::fadvise(&big, 0, None, rustix::fs::Advice::Random).unwrap();
        let mut page = [0; 4096];
        for number in 0..scale.pages {
            let at = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (scale.big_len as u64 / 4096);
            big.read_exact_at(&mut page, at * 4096).unwrap();
        }
    });
    let long = with(&|| {
        let big = std::fs::File::open(at.join("big")).unwrap();
        let mut buffer = vec![0; 1 << 20];
        for number in 0..scale.big_len as u64 >> 20 {
            big.read_exact_at(&mut buffer, number << 20).unwrap();
        }
    });
    [small, random, long]
}

fn status(key: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().to_owned()
}

#[test]
fn measure() {
    if !may_mount("measure") {
        return;
    }
    let scratch = Scratch::new();
    let scale = if std::env::var_os("SPANFS_MEASURE").is_some() { FULL } else { LITTLE };
    let maker = layer(scale);
    let data = scratch.directory("layer").join("data");
    let (mut layer, content) = maker.layer(data.parent().unwrap(), None);
    let len = Handle(content).len();
    let tree = Arc::new(maker.tree());
    drop(maker);
    layer.content = Arc::new(Local { file: std::fs::File::open(&data).unwrap(), len });
    let at = scratch.directory("at");
    for round in 0..scale.rounds {
        for number in 0..ROADS.len() {
            let road = ROADS[(number + round) % ROADS.len()];
            let mount = || {
                let mut options = MounterOptions::new(scratch.path().join("state"));
                road.set(&mut options);
                let mounter = Mounter::new(options).unwrap();
                let mount = match road {
                    Road::Inode(privilege, _) => {
                        let layers = vec![(layer.name.clone(), Arc::clone(&layer.content))];
                        mounter.inodes(Arc::clone(&tree), layers, &at, privilege).unwrap()
                    }
                    _ => mounter.layer(&layer, &at).unwrap(),
                };
                (mount, mounter)
            };
            let [small, random, long] = figures(&mount, &at, scale).map(|time| time.as_secs_f64());
            eprintln!("{road:?}: small {small:.2} random {random:.2} long {long:.2}");
        }
    }
    for transport in [Transport::Dev, Transport::Fuse3] {
        let mut options = MounterOptions::new(scratch.path().join("state"));
        options.transport = Some(transport);
        let mounter = Mounter::new(options).unwrap();
        let before = status("VmRSS:");
        let mounts: Vec<Mount> = (0..scale.mounts)
            .map(|number| {
                let at = scratch.directory(&format!("many-{number}"));
                mounter.layer(&layer, &at).unwrap()
            })
            .collect();
        let (after, threads) = (status("VmRSS:"), status("Threads:"));
        eprintln!(
            "{transport}, {} mounts: {threads} threads, RSS {before} -> {after}",
            scale.mounts
        );
        drop(mounts);
    }
}
