//! What was decided about layers that containerd asked for, and why: for operators.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize, Serializer};

use super::Request;
use crate::daemon::log::rfc3339;

/// Layers of 30 large images; beyond, the oldest are forgotten.
const DECISIONS_MAX: usize = 4096;
/// An error with all its causes is shorter.
const REASON_LEN_MAX: usize = 1024;

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
#[derive(Clone, Debug, Serialize)]
pub struct Decided {
    /// When.
    #[serde(serialize_with = "as_text")]
    pub time: SystemTime,
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

fn as_text<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*time))
}

/// The latest decision about each layer of an image, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Decisions {
    latest: Mutex<VecDeque<Decided>>,
    /// Of all, since the start.
    counts: Mutex<BTreeMap<String, u64>>,
}

impl Decisions {
    pub(super) fn add(&self, request: &Request, outcome: Outcome, reason: &str) {
        let mut end = reason.len().min(REASON_LEN_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let decided = Decided {
            time: SystemTime::now(),
            image: request.image.to_string(),
            manifest: request.manifest.to_string(),
            layer: request.layer.to_string(),
            outcome,
            reason: reason.get(..end).unwrap_or_default().to_owned(),
        };
        // The name that it has in JSON.
        let name = serde_json::to_string(&outcome).unwrap_or_default();
        *self.counts.lock().entry(name.trim_matches('"').to_owned()).or_default() += 1;
        let mut all = self.latest.lock();
        let is_same = |it: &Decided| {
            it.layer == decided.layer
                && it.manifest == decided.manifest
                && it.image == decided.image
        };
        all.retain(|it| !is_same(it));
        if all.len() >= DECISIONS_MAX {
            all.pop_front();
        }
        all.push_back(decided);
    }

    pub(super) fn all(&self) -> Vec<Decided> {
        self.latest.lock().iter().cloned().collect()
    }

    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        self.counts.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use spanfs_layer::Digest;

    use super::*;

    #[test]
    fn the_latest_about_each_layer_is_kept_and_not_without_end() {
        let decisions = Decisions::default();
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
        decisions.add(&request(5), Outcome::Lazy, &"ä".repeat(REASON_LEN_MAX));
        let all = decisions.all();
        assert_eq!(all.len(), DECISIONS_MAX);
        assert_eq!(all.last().unwrap().outcome, Outcome::Lazy);
        assert!(all.last().unwrap().reason.len() <= REASON_LEN_MAX);
        assert_ne!(all[0].layer, request(0).layer.to_string(), "the oldest went");
        assert_eq!(decisions.counts()["deferred"], DECISIONS_MAX as u64 + 1);
        let text = serde_json::to_string(&all[0]).unwrap();
        assert!(text.contains("\"outcome\":\"deferred\""), "{text}");
    }
}
