//! What was decided about layers that containerd asked for, and why: for operators.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Request;
use crate::daemon::log::rfc3339;

/// Layers of 30 large images; beyond, the oldest are forgotten.
const DECISIONS_MAX: usize = 4096;
/// An error with all its causes is shorter.
const REASON_LEN_MAX: usize = 1024;
/// Then the file is written anew.
const LINES_MAX: usize = 2 * DECISIONS_MAX;
/// Names and reason in their longest form, quoted.
const FILE_LEN_MAX: u64 = (LINES_MAX as u64) * (8 << 10);

/// What became of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Its content comes on demand.
    Lazy,
    /// It was fetched whole, by us.
    Whole,
    /// The same, side by side with the others of its image.
    Parallel,
    /// containerd fetches and unpacks it.
    Deferred,
    /// Nobody could have it.
    Failed,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// When, by RFC 3339.
    pub time: String,
    /// Image as it was asked for.
    pub image: String,
    /// Its manifest.
    pub manifest: String,
    /// The layer's blob.
    pub layer: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Why.
    pub reason: String,
}

/// The latest decision about each layer of an image, the oldest first. They outlive the process: layers
/// left to containerd have no note that would tell.
#[derive(Debug)]
pub(super) struct Decisions {
    latest: Mutex<Latest>,
    /// Of all, since the start.
    counts: Mutex<BTreeMap<String, u64>>,
}

#[derive(Debug)]
struct Latest {
    all: VecDeque<Decided>,
    path: PathBuf,
    /// None where the disk refuses.
    file: Option<File>,
    /// Lines in the file, those of older decisions included.
    lines: usize,
}

impl Decisions {
    /// Those in the file at `path`, a line each, and those to come. A line that a power cut tore says
    /// nothing; a disk that refuses costs the memory of decisions and nothing else.
    pub(super) fn open(path: PathBuf) -> Self {
        let mut latest = Latest { all: VecDeque::new(), path, file: None, lines: 0 };
        if let Err(error) = latest.read() {
            let path = latest.path.display();
            tracing::warn!(%path, %error, "earlier decisions are forgotten");
        }
        latest.rewrite();
        Self { latest: Mutex::new(latest), counts: Mutex::default() }
    }

    pub(super) fn add(&self, request: &Request, outcome: Outcome, reason: &str) {
        let mut end = reason.len().min(REASON_LEN_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let decided = Decided {
            time: rfc3339(SystemTime::now()),
            image: request.image.to_string(),
            manifest: request.manifest.to_string(),
            layer: request.layer.to_string(),
            outcome,
            reason: reason.get(..end).unwrap_or_default().to_owned(),
        };
        // The name that it has in JSON.
        let name = serde_json::to_string(&outcome).unwrap_or_default();
        *self.counts.lock().entry(name.trim_matches('"').to_owned()).or_default() += 1;
        let mut latest = self.latest.lock();
        latest.write(&decided);
        latest.put(decided);
    }

    pub(super) fn all(&self) -> Vec<Decided> {
        self.latest.lock().all.iter().cloned().collect()
    }

    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        self.counts.lock().clone()
    }
}

impl Latest {
    fn put(&mut self, decided: Decided) {
        let is_same = |it: &Decided| {
            it.layer == decided.layer
                && it.manifest == decided.manifest
                && it.image == decided.image
        };
        self.all.retain(|it| !is_same(it));
        if self.all.len() >= DECISIONS_MAX {
            self.all.pop_front();
        }
        self.all.push_back(decided);
    }

    fn read(&mut self) -> io::Result<()> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        for line in BufReader::new(file.take(FILE_LEN_MAX)).split(b'\n') {
            if let Ok(decided) = serde_json::from_slice(&line?) {
                self.put(decided);
            }
        }
        Ok(())
    }

    fn write(&mut self, decided: &Decided) {
        let Some(file) = &mut self.file else { return };
        let text = serde_json::to_string(decided).unwrap_or_default() + "\n";
        self.lines += 1;
        if let Err(error) = file.write_all(text.as_bytes()) {
            tracing::warn!(path = %self.path.display(), %error, "a decision will be forgotten");
        }
        if self.lines >= LINES_MAX {
            self.rewrite();
        }
    }

    /// Write the file anew, without what is out of date.
    fn rewrite(&mut self) {
        let fresh = self.path.with_extension("new");
        let write = || -> io::Result<File> {
            let mut options = File::options();
            let mut file =
                options.create(true).write(true).truncate(true).mode(0o600).open(&fresh)?;
            for decided in &self.all {
                writeln!(file, "{}", serde_json::to_string(decided)?)?;
            }
            std::fs::rename(&fresh, &self.path)?;
            Ok(file)
        };
        let written = write();
        self.lines = self.all.len();
        self.file = written
            .inspect_err(|error| {
                let path = self.path.display();
                tracing::warn!(%path, %error, "decisions will be forgotten at the end");
            })
            .ok();
    }
}

#[cfg(test)]
mod tests {
    use spanfs_layer::Digest;

    use super::*;

    #[test]
    fn the_latest_about_each_layer_is_kept_and_not_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("decisions");
        let decisions = Decisions::open(path.clone());
        let request = |number: usize| Request {
            image: "r.example/a:1".parse().unwrap(),
            manifest: Digest::of(b"m"),
            layer: Digest::of(number.to_string().as_bytes()),
            index: None,
            size: None,
            namespace: None,
        };
        for number in 0..DECISIONS_MAX + 1 {
            decisions.add(&request(number), Outcome::Deferred, "no index");
        }
        let kept = decisions.all();
        decisions.add(&request(5), Outcome::Lazy, &"ä".repeat(REASON_LEN_MAX));
        let all = decisions.all();
        assert_eq!(all.len(), DECISIONS_MAX);
        assert_eq!(all.last().unwrap().outcome, Outcome::Lazy);
        assert!(all.last().unwrap().reason.len() <= REASON_LEN_MAX);
        assert_ne!(all[0].layer, request(0).layer.to_string(), "the oldest went");
        assert_eq!(decisions.counts()["deferred"], DECISIONS_MAX as u64 + 1);
        let text = serde_json::to_string(&all[0]).unwrap();
        assert!(text.contains("\"outcome\":\"deferred\""), "{text}");
        drop(decisions);
        // The end of the last line, as a power cut may take it.
        let file = File::options().write(true).open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        file.set_len(len - 3).unwrap();
        assert_eq!(Decisions::open(path.clone()).all(), kept, "times included");
        let again = Decisions::open(path);
        again.add(&request(7), Outcome::Failed, "gone");
        assert_eq!(again.latest.lock().lines, kept.len() + 1, "the torn line went");
    }
}
