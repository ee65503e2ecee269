//! Short cuts: what stands in the layer file is read there by the kernel, and nothing else is.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::Advice;
use spanfs_mount::transport::Transport;
use spanfs_mount::{Busy, Ended, Mounter, MounterOptions, Parts, Shown};

use crate::conformance::{PATIENCE, Road};
use crate::content::{Fate, PAGE, noise};
use crate::layers::{Maker, rich};
use crate::scratch::{Scratch, may_mount};
use crate::snapshot;

const BIG: usize = 8 << 20;
const SMALL: usize = 3000;
const SMALLS: usize = 600;

/// A file of several chunks, and many of one.
fn maker() -> Maker {
    let mut maker = Maker::default();
    maker.file("big", 0o644, noise(BIG, 5)).directory("d", 0o755);
    for number in 0..SMALLS {
        maker.file(&format!("d/{number}"), 0o644, noise(SMALL, number as u64));
    }
    maker
}

fn mounter(scratch: &Scratch) -> Mounter {
    let mut options = MounterOptions::new(scratch.path().join("state"));
    Road::OverFuse(Parts::Visible, Transport::Dev).set(&mut options);
    Mounter::new(options).unwrap()
}

/// A read past all that the kernel kept of the mounted files.
pub(crate) fn read_cold(path: &Path, offset: usize, len: usize) -> std::io::Result<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset as u64)?;
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(bytes)
}

#[test]
fn what_stands_is_read_without_us_and_nothing_else() {
    if !may_mount("shortcuts") {
        return;
    }
    let (scratch, maker) = (Scratch::new(), maker());
    let (mounter, at) = (mounter(&scratch), scratch.directory("at"));
    let (layer, content) = maker.standing(&scratch.directory("layer"), Fate::Late);
    // Some of it stands there when it is mounted, the rest comes later.
    let pages = maker.bytes.len().div_ceil(PAGE);
    content.bring(0..pages / 2);
    let mount = mounter.layer(&layer, &at).unwrap();
    assert_eq!(mount.layers(), [Shown::ErofsOverFuse]);
    let left = std::fs::read_dir(scratch.path().join("layer")).unwrap().count();
    assert_eq!(left, 2, "the copy of the index has no name any more");
    content.bring(pages / 2..pages);
    content.refuses.store(true, Ordering::Relaxed);
    let (mut direct, mut refused) = (0, 0);
    for (path, seen) in maker.model.iter().filter(|(_, seen)| !seen.content.is_empty()) {
        let step = SMALL.max(seen.content.len() / 128);
        for offset in (0..seen.content.len()).step_by(step) {
            let len = step.min(4096).min(seen.content.len() - offset);
            match read_cold(&at.join(path), offset, len) {
                Ok(bytes) => {
                    assert!(bytes == seen.content[offset..offset + len], "{path} at {offset}");
                    direct += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(direct > SMALLS / 3 && refused > SMALLS / 3, "{direct} read, {refused} refused");
    assert_eq!(mount.unmount(PATIENCE, Busy::Leave).unwrap(), Ended::Gone);
}

#[test]
fn what_is_gone_is_asked_for_again() {
    if !may_mount("shortcuts_gone") {
        return;
    }
    let (scratch, maker) = (Scratch::new(), maker());
    let (mounter, at) = (mounter(&scratch), scratch.directory("at"));
    let (layer, content) = maker.standing(&scratch.directory("layer"), Fate::Late);
    let pages = maker.bytes.len().div_ceil(PAGE);
    let mount = mounter.layer(&layer, &at).unwrap();
    let fills = || content.fills.load(Ordering::Relaxed);
    let read_all = || {
        for number in 0..SMALLS {
            let bytes = read_cold(&at.join(format!("d/{number}")), 0, SMALL).unwrap();
            assert!(bytes == noise(SMALL, number as u64), "{number}");
        }
    };
    content.bring(0..pages);
    let before = fills();
    read_all();
    assert_eq!(fills(), before, "all is there");
    content.lose(0..pages);
    assert_eq!(content.all_standing(), Vec::<usize>::new());
    read_all();
    assert!(fills() > before, "what was lost was not asked for");
    assert_eq!(mount.unmount(PATIENCE, Busy::Leave).unwrap(), Ended::Gone);
}

#[test]
fn readers_see_the_same_bytes_while_they_come_and_go() {
    if !may_mount("shortcuts_race") {
        return;
    }
    let (scratch, maker) = (Scratch::new(), Arc::new(maker()));
    let (mounter, at) = (mounter(&scratch), scratch.directory("at"));
    let (layer, content) = maker.standing(&scratch.directory("layer"), Fate::Late);
    let mount = mounter.layer(&layer, &at).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let readers = (0..3_u64).map(|reader| {
        let (stop, at) = (Arc::clone(&stop), at.clone());
        std::thread::spawn(move || {
            let (big, mut state, mut reads) = (noise(BIG, 5), reader + 1, 0);
            while !stop.load(Ordering::Relaxed) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
                let (number, offset) = ((state >> 20) as usize % SMALLS, (state >> 30) as usize);
                let small = read_cold(&at.join(format!("d/{number}")), 0, SMALL).unwrap();
                assert!(small == noise(SMALL, number as u64), "d/{number}");
                let offset = offset % (BIG - 20_000);
                let part = read_cold(&at.join("big"), offset, 20_000).unwrap();
                assert!(part == big[offset..offset + 20_000], "big at {offset}");
                reads += 1;
            }
            reads
        })
    });
    let readers: Vec<_> = readers.collect();
    let until = Instant::now() + Duration::from_secs(4);
    let (pages, mut state) = (maker.bytes.len().div_ceil(PAGE), 7_u64);
    while Instant::now() < until {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
        let first = (state >> 33) as usize % (pages - 8);
        match state >> 63 {
            0 => content.lose(first..first + 8),
            _ => content.bring(first..first + 8),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    stop.store(true, Ordering::Relaxed);
    let reads: Vec<i32> = readers.into_iter().map(|it| it.join().unwrap()).collect();
    assert!(reads.iter().all(|&count| count > 10), "{reads:?} reads");
    assert_eq!(mount.unmount(PATIENCE, Busy::Leave).unwrap(), Ended::Gone);
}

#[test]
fn a_layer_looks_the_same_with_them() {
    if !may_mount("shortcuts_conformance") {
        return;
    }
    let (scratch, maker) = (Scratch::new(), rich());
    let (mounter, at) = (mounter(&scratch), scratch.directory("at"));
    let (layer, content) = maker.standing(&scratch.directory("layer"), Fate::Late);
    let mount = mounter.layer(&layer, &at).unwrap();
    for _ in 0..2 {
        // The second time much of it is read past us.
        snapshot::assert_same(&snapshot::of(&at), &maker.model, "with short cuts");
        assert!(!content.all_standing().is_empty());
        for (path, _) in maker.model.iter().filter(|(_, seen)| !seen.content.is_empty()) {
            let file = std::fs::File::open(at.join(path)).unwrap();
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        }
    }
    assert_eq!(mount.unmount(PATIENCE, Busy::Leave).unwrap(), Ended::Gone);
}
