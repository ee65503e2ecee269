//! Prefetch artifacts: spans of a layer to get before anybody asks.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use serde::Deserialize;

use crate::oci::{OciError, Writer, parse};
use crate::{Digest, Record, SpanTable, UncompressedOffset};

const VERSION: &str = "1.0";

/// Run of spans; both ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct SpanRun {
    /// First span.
    #[serde(rename = "start_span")]
    pub first: u32,
    /// Last span.
    #[serde(rename = "end_span")]
    pub last: u32,
    /// Nobody uses it yet; 0 is not written.
    #[serde(default)]
    pub priority: i64,
}

/// Spans of one layer to prefetch; never none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefetch {
    runs: Vec<SpanRun>,
}

/// Why bytes are not a prefetch artifact.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefetchError {
    /// Not the JSON that it must be.
    #[error("invalid prefetch artifact")]
    Json(#[from] OciError),
    /// Another version.
    #[error("prefetch artifact has version {found:?}, expected \"1.0\"")]
    Version {
        /// Version that it has.
        found: String,
    },
    /// No spans at all.
    #[error("prefetch artifact names no spans")]
    Empty,
    /// A run that ends before it begins.
    #[error("prefetch artifact has the run of spans {first} to {last}")]
    Run {
        /// First span.
        first: u32,
        /// Last span.
        last: u32,
    },
}

impl Prefetch {
    /// Read an artifact. Spans may be named that the layer does not have.
    pub fn parse(json: &[u8]) -> Result<Self, PrefetchError> {
        #[derive(Deserialize)]
        struct Artifact {
            #[serde(default)]
            version: String,
            #[serde(default)]
            prefetch_spans: Vec<SpanRun>,
        }
        let artifact: Artifact = parse("prefetch artifact", json)?;
        if artifact.version != VERSION {
            return Err(PrefetchError::Version { found: artifact.version });
        }
        let runs = artifact.prefetch_spans;
        if let Some(&SpanRun { first, last, .. }) = runs.iter().find(|run| run.first > run.last) {
            return Err(PrefetchError::Run { first, last });
        }
        if runs.is_empty() { Err(PrefetchError::Empty) } else { Ok(Self { runs }) }
    }

    /// Artifact of these runs, sorted, and merged where they overlap or touch; `None` without any.
    pub fn new(mut runs: Vec<SpanRun>) -> Option<Self> {
        runs.sort_by_key(|run| run.first);
        runs.dedup_by(|next, run| {
            let touches = next.first <= run.last.saturating_add(1);
            if touches {
                run.last = run.last.max(next.last);
            }
            touches
        });
        (!runs.is_empty()).then_some(Self { runs })
    }

    /// The spans that hold `record`. As peers do, the span behind its last byte is one of them.
    pub fn run_of(record: &Record, table: &SpanTable) -> Option<SpanRun> {
        let end = record.data.checked_add(record.size)?;
        let (first, last) = (span_at(table, record.data)?, span_at(table, end)?);
        Some(SpanRun { first, last, priority: 0 })
    }

    /// Runs in the artifact's order.
    pub fn runs(&self) -> &[SpanRun] {
        &self.runs
    }

    /// The bytes of the artifact.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.object(|writer| {
            writer.text("version", VERSION);
            writer.field("prefetch_spans", |writer| {
                writer.array(&self.runs, |writer, run| {
                    writer.object(|writer| {
                        writer.number("start_span", run.first);
                        writer.number("end_span", run.last);
                        if run.priority != 0 {
                            writer.number("priority", run.priority);
                        }
                    });
                });
            });
        });
        writer.finish()
    }
}

/// A layer in which files are looked for.
#[derive(Clone, Copy, Debug)]
pub struct PrefetchLayer<'a> {
    /// Digest of the layer's blob.
    pub digest: Digest,
    /// Its entries.
    pub records: &'a [Record],
    /// Its spans.
    pub table: &'a SpanTable,
}

/// Artifacts for the files of an image, by layer, lowest layer first; and the paths that no layer
/// has. A file is taken from the highest layer that names it; names are compared without a leading
/// `/` or `./`, and without a closing `/`.
pub fn prefetch_files<'p>(
    layers: &[PrefetchLayer<'_>],
    paths: &[&'p str],
) -> (Vec<(Digest, Prefetch)>, Vec<&'p str>) {
    let mut runs = vec![Vec::new(); layers.len()];
    let mut missing = Vec::new();
    for &path in paths {
        let named = |record: &&Record| bare(&record.name) == bare(path.as_bytes());
        let found = layers.iter().zip(&mut runs).rev().find_map(|(layer, runs)| {
            let record = layer.records.iter().rfind(named)?;
            Some((Prefetch::run_of(record, layer.table)?, runs))
        });
        match found {
            Some((run, runs)) => runs.push(run),
            None => missing.push(path),
        }
    }
    let artifacts = layers.iter().zip(runs);
    let artifacts =
        artifacts.filter_map(|(layer, runs)| Some((layer.digest, Prefetch::new(runs)?)));
    (artifacts.collect(), missing)
}

fn bare(name: &[u8]) -> &[u8] {
    let name = name.strip_prefix(b".").filter(|rest| rest.starts_with(b"/")).unwrap_or(name);
    let start = name.iter().position(|&byte| byte != b'/').unwrap_or(name.len());
    let name = name.get(start..).unwrap_or_default();
    name.strip_suffix(b"/").unwrap_or(name)
}

/// The last span that begins at or before an offset.
fn span_at(table: &SpanTable, offset: UncompressedOffset) -> Option<u32> {
    let behind = table.spans().partition_point(|span| span.uncompressed.start <= offset);
    u32::try_from(behind.checked_sub(1)?).ok()
}
