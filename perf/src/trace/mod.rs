//! What a start reads: ranges of files, with the time. Recorded once, replayed against any transport
//! and link without the container, and the load of `perf simulate`.
//!
//! A text file of JSON lines. The first names the image, its sizes and its files; each further line is
//! a range, as `[milliseconds, file, offset, length]`, in the order in which the kernel asked for them.
//!
//! ```text
//! {"spanfs_reads":1,"workload":"redis","compressed_bytes":66000000,"uncompressed_bytes":…,"warm_ms":280,"files":["/usr/bin/redis-server",…]}
//! [12,0,0,131072]
//! ```

mod record;
mod replay;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

pub(crate) use record::record;
pub(crate) use replay::replay_mounted;

/// Version of the format. Readers refuse others.
const VERSION: u32 = 1;
/// Files and ranges of the longest trace that is kept.
const FILES_MAX: usize = 1 << 18;
const READS_MAX: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    spanfs_reads: u32,
    pub(crate) workload: String,
    pub(crate) layers: usize,
    pub(crate) compressed_bytes: u64,
    pub(crate) uncompressed_bytes: u64,
    /// From the making of the container to ready, everything local.
    pub(crate) warm_ms: f64,
    pub(crate) files: Vec<String>,
}

/// A range of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Read {
    pub(crate) at_ms: f64,
    /// Index into [`Header::files`].
    pub(crate) file: usize,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reads {
    pub(crate) header: Header,
    pub(crate) reads: Vec<Read>,
}

impl Reads {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading the trace {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("reading the trace {}", path.display()))
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let header: Header =
            lines.next().and_then(|line| serde_json::from_str(line).ok()).with_context(|| {
                format!("the first line is not that of a trace of version {VERSION}")
            })?;
        ensure!(
            header.spanfs_reads == VERSION,
            "a trace of version {}, this program reads {VERSION}",
            header.spanfs_reads
        );
        ensure!(header.files.len() <= FILES_MAX, "more than {FILES_MAX} files");
        let mut reads = Vec::new();
        for (number, line) in lines.enumerate() {
            let read = serde_json::from_str(line).ok().map(|(at_ms, file, offset, len)| Read {
                at_ms,
                file,
                offset,
                len,
            });
            let read = read.filter(|read| {
                read.file < header.files.len()
                    && read.at_ms >= 0.0
                    && read.offset.checked_add(read.len).is_some()
            });
            let number = number + 2;
            reads.push(read.with_context(|| format!("line {number} is no range of its files"))?);
            ensure!(reads.len() <= READS_MAX, "more than {READS_MAX} ranges");
        }
        Ok(Self { header, reads })
    }

    pub(crate) fn text(&self) -> Result<String> {
        let mut text = serde_json::to_string(&self.header)?;
        text.push('\n');
        for Read { at_ms, file, offset, len } in &self.reads {
            let _ = writeln!(text, "[{at_ms:.0},{file},{offset},{len}]");
        }
        Ok(text)
    }

    /// Bytes that are read, uncompressed.
    pub(crate) fn bytes(&self) -> u64 {
        self.reads.iter().map(|read| read.len).sum()
    }
}

/// Ranges in the order of time, with those put together that continue one another.
fn joined(pages: impl IntoIterator<Item = Read>) -> Vec<Read> {
    /// Pages of one readahead come within this time.
    const TOGETHER_MS: f64 = 5.0;
    let mut reads: Vec<Read> = Vec::new();
    for page in pages {
        match reads.last_mut() {
            Some(last)
                if last.file == page.file
                    && last.offset + last.len == page.offset
                    && page.at_ms - last.at_ms <= TOGETHER_MS =>
            {
                last.len += page.len;
            }
            _ => reads.push(page),
        }
    }
    reads
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(at_ms: f64, file: usize, offset: u64, len: u64) -> Read {
        Read { at_ms, file, offset, len }
    }

    #[test]
    fn neighbours_are_joined() {
        let pages = [
            read(0.0, 0, 0, 4096),
            read(0.1, 0, 4096, 4096),
            read(0.2, 1, 8192, 4096),
            read(90.0, 1, 12288, 4096),
        ];
        let expected =
            [read(0.0, 0, 0, 8192), read(0.2, 1, 8192, 4096), read(90.0, 1, 12288, 4096)];
        assert_eq!(joined(pages), expected);
    }

    #[test]
    fn text_is_read_back_and_checked() {
        let header = Header {
            spanfs_reads: VERSION,
            workload: "w".to_owned(),
            layers: 2,
            compressed_bytes: 1,
            uncompressed_bytes: 3,
            warm_ms: 10.0,
            files: vec!["/a".to_owned()],
        };
        let reads = Reads { header, reads: vec![read(1.0, 0, 0, 4096)] };
        let text = reads.text().unwrap();
        assert_eq!(Reads::parse(&text).unwrap(), reads);
        for wrong in ["[1,1,0,1]", "[1,0,18446744073709551615,1]", "x"] {
            assert!(Reads::parse(&format!("{text}{wrong}\n")).is_err(), "{wrong}");
        }
        assert!(Reads::parse("").is_err());
    }
}
