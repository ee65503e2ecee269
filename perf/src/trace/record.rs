//! Records the reads of a start: the pages that the kernel fetches for a container of a plain
//! overlayfs, whose page cache was emptied before.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{Header, Read, Reads, VERSION, joined};
use crate::bench::{Bench, Site};
use crate::kernel_trace::KernelTrace;

/// Pages of a large start: half a million.
const BUFFER_KIB: usize = 40 << 10;
const EVENT: &str = "filemap/mm_filemap_add_to_page_cache";
/// Where containerd's overlayfs keeps layers, below the node's `/var/lib`.
const SNAPSHOTS: &str = "lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";

/// Starts a workload with `bench`'s subject, which is overlayfs, and records what it reads until it is
/// ready.
pub(crate) fn record(bench: &Bench<'_>, scratch: &Path) -> Result<Reads> {
    let registry = bench.registry()?;
    let site = bench.site(&registry)?;
    let mut session = crate::bench::session(&site, bench.subject)?;
    session.pull(&bench.reference()).context("pulling")?;
    let files = files(&site)?;
    ensure!(!files.by_inode.is_empty(), "no file below {SNAPSHOTS}: not an overlayfs");
    crate::lab::drop_caches()?;
    let trace = KernelTrace::start(scratch, &[EVENT], BUFFER_KIB)?;
    let began = now();
    let mut started = bench.start_pulled(&mut *session, &site, Instant::now())?;
    let mut pipe = trace.lines()?;
    let (mut names, mut numbers) = (Vec::new(), HashMap::new());
    let mut pages = Vec::new();
    for line in pipe.take()? {
        let Some(page) = page(&line).filter(|page| page.device == files.device) else { continue };
        let Some(path) = files.by_inode.get(&page.inode) else { continue };
        let file = *numbers.entry(page.inode).or_insert_with(|| {
            names.push(path.clone());
            names.len() - 1
        });
        let at_ms = (page.seconds - began).max(0.0) * 1e3;
        pages.push(Read { at_ms, file, offset: page.offset, len: page.len });
    }
    // Whoever reads an instance keeps it.
    drop(pipe);
    drop(trace);
    session.stop(crate::bench::NAME, started.take_child()?)?;
    let warm = bench.warm(&mut *session, &site)?;
    ensure!(!pages.is_empty(), "the kernel told of no page that the start has read");
    Ok(Reads {
        header: Header {
            spanfs_reads: VERSION,
            workload: bench.workload.name.clone(),
            layers: bench.image.layers,
            compressed_bytes: bench.image.compressed_bytes,
            uncompressed_bytes: files.bytes,
            warm_ms: (warm * 1e3).round(),
            files: names,
        },
        reads: joined(pages),
    })
}

/// Files of all layers by inode.
struct Files {
    device: (u32, u32),
    by_inode: HashMap<u64, String>,
    bytes: u64,
}

fn files(site: &Site) -> Result<Files> {
    let root = site.node.path(SNAPSHOTS);
    let device = fs::metadata(&root).with_context(|| root.display().to_string())?.dev();
    let device = (rustix::fs::major(device), rustix::fs::minor(device));
    let mut files = Files { device, by_inode: HashMap::new(), bytes: 0 };
    for layer in fs::read_dir(&root)? {
        let top = layer?.path().join("fs");
        let mut directories = vec![top.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let Ok(meta) = entry.metadata() else { continue };
                if meta.is_dir() {
                    directories.push(entry.path());
                } else if meta.is_file() {
                    files.bytes += meta.len();
                    files.by_inode.insert(meta.ino(), shown(&top, &entry.path()));
                }
            }
        }
    }
    Ok(files)
}

fn shown(top: &Path, path: &Path) -> String {
    let below: PathBuf = path.strip_prefix(top).unwrap_or(path).to_owned();
    format!("/{}", below.display())
}

/// A page as the kernel tells of it.
#[derive(Debug, PartialEq)]
struct Page {
    seconds: f64,
    device: (u32, u32),
    inode: u64,
    offset: u64,
    len: u64,
}

/// `… 123.456789: mm_filemap_add_to_page_cache: dev 254:0 ino 1a pfn=0x1 ofs=4096 order=0`
fn page(line: &str) -> Option<Page> {
    let (before, fields) = line.split_once(": mm_filemap_add_to_page_cache: dev ")?;
    let seconds = before.split_whitespace().next_back()?.parse().ok()?;
    let mut words = fields.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let inode = words.by_ref().skip_while(|word| *word != "ino").nth(1)?;
    let mut offset = None;
    let mut order = 0;
    for word in words {
        if let Some(value) = word.strip_prefix("ofs=") {
            offset = value.parse().ok();
        } else if let Some(value) = word.strip_prefix("order=") {
            order = value.parse().ok().filter(|order| *order < 20)?;
        }
    }
    Some(Page {
        seconds,
        device: (major.parse().ok()?, minor.parse().ok()?),
        inode: u64::from_str_radix(inode, 16).ok()?,
        offset: offset?,
        len: 4096 << order,
    })
}

/// The clock of the trace.
fn now() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let line = "           sed-99      [001] .....   208.123456: mm_filemap_add_to_page_cache: \
                    dev 254:0 ino 1a pfn=0x10a ofs=8192 order=2";
        let expected =
            Page { seconds: 208.123_456, device: (254, 0), inode: 26, offset: 8192, len: 16384 };
        assert_eq!(page(line), Some(expected));
        assert_eq!(page("CPU:0 [LOST 12 EVENTS]"), None);
    }
}
