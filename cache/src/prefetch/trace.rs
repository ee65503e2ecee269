//! The spans that a start of an image read, in order: worth more than any other guess.
//!
//! A trace is a text file of JSON lines, so that it can be shipped, read and merged by anybody. The
//! first line names the format and the layers, each further line one run of a layer's uncompressed
//! tar, as `[layer, start, length]`; spans of any zTOC of the layer that overlap it are meant.
//!
//! ```text
//! {"spanfs_trace":1,"layers":["sha256:…","sha256:…"]}
//! [0,0,4194304]
//! [1,8388608,4194304]
//! ```

use std::fmt::Write as _;
use std::io;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};
use spanfs_layer::{Digest, UncompressedOffset};

/// Version of the format. Readers refuse others.
const VERSION: u32 = 1;
/// Longest trace that is read or kept.
pub(crate) const RUNS_MAX: usize = 1 << 16;
/// Layers that an image may have here; container engines stop at 127.
const LAYERS_MAX: usize = 1024;
/// Bytes of the longest such file.
const TEXT_BYTES_MAX: u64 = 8 << 20;

/// First reads of a start, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Layers by digest; runs give their index here.
    pub layers: Vec<Digest>,
    /// Layer and range of its uncompressed tar, in order of reading.
    pub runs: Vec<(usize, Range<UncompressedOffset>)>,
}

/// Why a text is no trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The first line is not that of a trace of our version.
    #[error("first line is not that of a trace of version {VERSION}")]
    Header,
    /// A line that is no run of one of the layers.
    #[error("line {line} is not a run of one of the {layers} layers")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// Layers that the first line names.
        layers: usize,
    },
    /// More than we keep.
    #[error("more than {max} {what}")]
    TooLong {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// The file can't be read or written.
    #[error("trace file")]
    File(#[from] io::Error),
}

#[derive(Serialize, Deserialize)]
struct Header {
    spanfs_trace: u32,
    layers: Vec<Digest>,
}

impl Trace {
    /// Parse the text form.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let mut lines = text.lines();
        let header: Header = lines
            .next()
            .and_then(|line| serde_json::from_str(line).ok())
            .ok_or(TraceError::Header)?;
        if header.spanfs_trace != VERSION {
            return Err(TraceError::Header);
        }
        let layers = header.layers;
        if layers.len() > LAYERS_MAX {
            return Err(TraceError::TooLong { what: "layers", max: LAYERS_MAX });
        }
        let mut runs = Vec::new();
        for (line, text) in (2..).zip(lines) {
            if runs.len() == RUNS_MAX {
                return Err(TraceError::TooLong { what: "runs", max: RUNS_MAX });
            }
            let bad = TraceError::Line { line, layers: layers.len() };
            let Ok((layer, start, len)) = serde_json::from_str::<(usize, u64, u64)>(text) else {
                return Err(bad);
            };
            let (true, Some(end)) = (layer < layers.len(), start.checked_add(len)) else {
                return Err(bad);
            };
            runs.push((layer, UncompressedOffset(start)..UncompressedOffset(end)));
        }
        Ok(Self { layers, runs })
    }

    /// The text form.
    pub fn to_text(&self) -> String {
        let header = Header { spanfs_trace: VERSION, layers: self.layers.clone() };
        let mut text = serde_json::to_string(&header).unwrap_or_default();
        text.push('\n');
        for (layer, run) in &self.runs {
            // Writing to a string can't fail.
            let _ = writeln!(text, "[{layer},{},{}]", run.start, run.end.0 - run.start.0);
        }
        text
    }

    /// Read a file; `None` if there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, TraceError> {
        use io::Read as _;
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut text = String::new();
        file.take(TEXT_BYTES_MAX).read_to_string(&mut text)?;
        Self::parse(&text).map(Some)
    }

    /// Write a file, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), TraceError> {
        if let Some(directory) = path.parent() {
            crate::cache::claim::make_directory(directory)?;
        }
        let fresh = path.with_extension(format!("new-{}", std::process::id()));
        std::fs::write(&fresh, self.to_text())?;
        Ok(std::fs::rename(&fresh, path)?)
    }

    /// This trace, and behind it what only `later` has: a start whose pages the kernel still held
    /// reads less than it needs, so nothing is forgotten.
    pub(crate) fn merged(mut self, later: &Self) -> Self {
        if self.layers != later.layers {
            return later.clone();
        }
        let known: std::collections::HashSet<_> =
            self.runs.iter().map(|(layer, run)| (*layer, run.start)).collect();
        let new = later.runs.iter().filter(|(layer, run)| !known.contains(&(*layer, run.start)));
        let new: Vec<_> = new.cloned().collect();
        self.runs.extend(new);
        self.runs.truncate(RUNS_MAX);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(layer: usize, start: u64, len: u64) -> (usize, Range<UncompressedOffset>) {
        (layer, UncompressedOffset(start)..UncompressedOffset(start + len))
    }

    fn trace(runs: Vec<(usize, Range<UncompressedOffset>)>) -> Trace {
        Trace { layers: vec![Digest::of(b"a"), Digest::of(b"b")], runs }
    }

    #[test]
    fn survives_its_text() {
        let trace = trace(vec![run(1, 0, 10), run(0, 4096, 0), run(0, u64::MAX, 0)]);
        assert_eq!(Trace::parse(&trace.to_text()).unwrap(), trace);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("traces/sha256/x.jsonl");
        assert!(Trace::read(&path).unwrap().is_none());
        trace.write(&path).unwrap();
        assert_eq!(Trace::read(&path).unwrap().unwrap(), trace);
    }

    #[test]
    fn refuses_what_is_none() {
        let header = trace(Vec::new()).to_text();
        for text in ["", "{}", "[0,0,0]", "{\"spanfs_trace\":2,\"layers\":[]}", "\u{0}"] {
            assert!(matches!(Trace::parse(text), Err(TraceError::Header)), "{text:?}");
        }
        for line in ["[2,0,1]", "[0,18446744073709551615,1]", "[0,-1,1]", "[0,0]", "x", ""] {
            let text = format!("{header}{line}\n");
            assert!(matches!(Trace::parse(&text), Err(TraceError::Line { line: 2, .. })), "{line}");
        }
        let long = header + &"[0,0,1]\n".repeat(RUNS_MAX + 1);
        assert!(matches!(Trace::parse(&long), Err(TraceError::TooLong { .. })));
    }

    #[test]
    fn merging_keeps_the_old_order_and_adds_what_is_new() {
        let old = trace(vec![run(1, 0, 10), run(0, 0, 10)]);
        let new = trace(vec![run(0, 0, 10), run(0, 10, 10)]);
        let merged = old.clone().merged(&new);
        assert_eq!(merged.runs, [run(1, 0, 10), run(0, 0, 10), run(0, 10, 10)]);
        let other = Trace { layers: vec![Digest::of(b"c")], runs: vec![run(0, 5, 5)] };
        assert_eq!(old.merged(&other), other);
    }
}
