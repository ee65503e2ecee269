//! Replays the reads of a start against a mount, without the container: each range as long after the
//! one before as it was, everything else being the mount's.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::Reads;
use crate::bench::{Bench, Stop};

/// A read that takes longer than this waited for something.
const STALL_MIN: Duration = Duration::from_millis(1);
/// Of one read; a mount's own deadlines are shorter.
const PIECE: usize = 1 << 20;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Replayed {
    /// From the mount's command to the last byte.
    pub(crate) seconds: f64,
    /// Of it, what the mount took.
    pub(crate) mount: f64,
    /// Of it, what the program itself had taken between its reads.
    pub(crate) thinking: f64,
    /// Of it, reads that waited, and how many.
    pub(crate) stalled: f64,
    pub(crate) stalls: usize,
    pub(crate) bytes: u64,
    /// Bytes on the link.
    pub(crate) fetched: u64,
    /// Files of the trace that this image does not have.
    pub(crate) missing: usize,
}

/// Until an image is mounted, or taken away again.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(120);

/// Mounts the bench's image on a node behind its link and replays `reads` there.
pub(crate) fn replay_mounted(
    reads: &Reads,
    bench: &Bench<'_>,
    spanfs: &Path,
    options: &[String],
) -> Result<Replayed> {
    crate::lab::forget_all_but(&bench.image.layout, bench.scratch.path())?;
    let registry = bench.registry()?;
    let site = bench.site(&registry)?;
    let shown = site.node.path("run/shown");
    std::fs::create_dir_all(&shown)?;
    let mut mount = site.command("snapshotter", &[])?;
    mount.arg(spanfs).arg("mount").args(options).arg(bench.reference()).arg("/run/shown");
    mount.env("SPANFS_CACHE_DIR", site.node.path("lib/spanfs"));
    registry.reset_stats();
    let began = Instant::now();
    site.run(&mut mount, COMMAND_TIME_MAX)?;
    let took = began.elapsed();
    // The mount is the node's; from here its root is reached through its first process.
    let root = format!("/proc/{}/root/run/shown", site.node.init());
    let mut replayed = replay(reads, Path::new(&root), took, bench.stop)?;
    replayed.fetched = registry.bytes_sent();
    let mut umount = site.command("snapshotter", &[])?;
    umount.arg(spanfs).args(["umount", "/run/shown"]);
    site.run(&mut umount, COMMAND_TIME_MAX)?;
    Ok(replayed)
}

/// Replays `reads` below `root`, which has just been mounted in `mount`.
fn replay(reads: &Reads, root: &Path, mount: Duration, stop: &Stop) -> Result<Replayed> {
    let mut files: HashMap<usize, Option<File>> = HashMap::new();
    let mut found = Replayed {
        seconds: 0.0,
        mount: mount.as_secs_f64(),
        thinking: 0.0,
        stalled: 0.0,
        stalls: 0,
        bytes: 0,
        fetched: 0,
        missing: 0,
    };
    let began = Instant::now();
    let mut before = reads.reads.first().map_or(0.0, |read| read.at_ms);
    let mut buffer = vec![0; PIECE];
    for read in &reads.reads {
        stop.check()?;
        let gap = Duration::from_secs_f64((read.at_ms - before).max(0.0) / 1e3);
        before = before.max(read.at_ms);
        std::thread::sleep(gap);
        found.thinking += gap.as_secs_f64();
        let file = files.entry(read.file).or_insert_with(|| {
            let path = reads.header.files.get(read.file)?;
            File::open(root.join(path.trim_start_matches('/'))).ok()
        });
        let Some(file) = file else { continue };
        let at = Instant::now();
        let (mut offset, end) = (read.offset, read.offset + read.len);
        while offset < end {
            let len = usize::try_from(end - offset).unwrap_or(PIECE).min(PIECE);
            let piece = buffer.get_mut(..len).unwrap_or_default();
            let count = file.read_at(piece, offset).with_context(|| {
                let path = reads.header.files.get(read.file).map_or("", String::as_str);
                format!("reading {path} at {offset}")
            })?;
            if count == 0 {
                break;
            }
            found.bytes += count as u64;
            offset += count as u64;
        }
        let took = at.elapsed();
        if took > STALL_MIN {
            found.stalls += 1;
            found.stalled += took.as_secs_f64();
        }
    }
    found.seconds = mount.as_secs_f64() + began.elapsed().as_secs_f64();
    found.missing = files.values().filter(|file| file.is_none()).count();
    ensure!(
        found.missing < files.len().max(1),
        "none of the trace's files is in this image: a trace of another image?"
    );
    Ok(found)
}
