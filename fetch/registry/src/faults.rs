//! What goes wrong, by rule or by seed.

use std::collections::HashMap;
use std::time::Duration;

/// One way in which an answer goes wrong. Byte counts are of the answer's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status and no content, e.g. 401 (with the registry's challenge), 403, 404, 500, 503.
    Status(u16),
    /// 429 with Retry-After in whole seconds.
    TooManyRequests {
        /// When to come again.
        retry_after: Duration,
    },
    /// TCP reset after that many bytes.
    Reset {
        /// Bytes that still arrive; 0: not even the head.
        after: u64,
    },
    /// Nothing more after that many bytes, and the connection stays open.
    Stall {
        /// Bytes that still arrive; 0: not even the head.
        after: u64,
    },
    /// Orderly close after that many bytes of a longer Content-Length.
    Close {
        /// Bytes that still arrive.
        after: u64,
    },
    /// A shorter body whose Content-Length says so.
    Truncate {
        /// Bytes of the body.
        len: u64,
    },
    /// One bit wrong at this offset of the body (or at its end, if that is shorter).
    Flip {
        /// Which byte.
        at: u64,
    },
    /// 200 and the whole blob for a range.
    WholeForRange,
    /// 206 whose Content-Range is one byte off.
    WrongContentRange,
    /// 307 to itself, for ever.
    RedirectLoop,
    /// 307 to the blob store by a URL that has expired (blobs only).
    ExpiredRedirect,
    /// The body in drips.
    Drip {
        /// Bytes of a drip, at least 1.
        bytes: usize,
        /// Pause in front of each.
        every: Duration,
    },
    /// The head comes late.
    Late {
        /// How much.
        by: Duration,
    },
}

/// Which of the requests that match a rule get its fault; counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nth {
    /// All of them.
    Every,
    /// That one alone.
    Only(u64),
    /// That many at the beginning.
    First(u64),
    /// All behind that many.
    After(u64),
}

impl Nth {
    fn holds(self, count: u64) -> bool {
        match self {
            Self::Every => true,
            Self::Only(nth) => count == nth,
            Self::First(len) => count < len,
            Self::After(len) => count >= len,
        }
    }
}

/// A fault for the requests whose method and path match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `GET`, `HEAD`, …; `None` for any.
    pub method: Option<&'static str>,
    /// Part of the path: `/manifests/`, `/token`, a digest; empty for any.
    pub path: String,
    /// Which of the matching requests.
    pub nth: Nth,
    /// What happens to them.
    pub fault: Fault,
}

impl Rule {
    /// For GETs whose path contains `path`.
    pub fn get(path: impl Into<String>, nth: Nth, fault: Fault) -> Self {
        Self { method: Some("GET"), path: path.into(), nth, fault }
    }

    fn matches(&self, method: &str, path: &str) -> bool {
        self.method.is_none_or(|wanted| wanted == method) && path.contains(&self.path)
    }
}

/// Decides for each request whether and how it fails.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    rules: Vec<(Rule, u64)>,
    seeded: Option<Seeded>,
}

#[derive(Clone, Debug)]
struct Seeded {
    seed: u64,
    per_mille: u64,
    path: String,
    faults: Vec<Fault>,
    /// Requests seen, by what they asked for: so a decision doesn't hang on which of two
    /// connections was faster.
    seen: HashMap<u64, u64>,
}

impl Faults {
    /// Nothing goes wrong.
    pub fn none() -> Self {
        Self::default()
    }

    /// Faults by rule; the first rule that matches and whose turn it is wins.
    pub fn script(rules: impl IntoIterator<Item = Rule>) -> Self {
        Self { rules: rules.into_iter().map(|rule| (rule, 0)).collect(), seeded: None }
    }

    /// Of the requests whose path contains `path`, `per_mille` in a thousand get one of `faults`.
    /// The same seed and the same requests give the same faults, in whatever order they come.
    pub fn seeded(seed: u64, per_mille: u64, path: impl Into<String>, faults: &[Fault]) -> Self {
        assert!(!faults.is_empty(), "a seeded script needs faults to choose from");
        let seeded = Seeded {
            seed,
            per_mille,
            path: path.into(),
            faults: faults.to_vec(),
            seen: HashMap::new(),
        };
        Self { rules: Vec::new(), seeded: Some(seeded) }
    }

    /// The fault of this request, if any. `range` is the Range header.
    pub(crate) fn decide(&mut self, method: &str, path: &str, range: &str) -> Option<Fault> {
        for (rule, count) in &mut self.rules {
            if rule.matches(method, path) {
                *count += 1;
                if rule.nth.holds(*count - 1) {
                    return Some(rule.fault.clone());
                }
            }
        }
        self.seeded.as_mut()?.decide(method, path, range)
    }
}

impl Seeded {
    fn decide(&mut self, method: &str, path: &str, range: &str) -> Option<Fault> {
        if !path.contains(&self.path) {
            return None;
        }
        let asked = [method, path, range]
            .iter()
            .flat_map(|text| text.bytes().chain([0]))
            .fold(self.seed, |state, byte| mix(state ^ u64::from(byte)));
        let count = self.seen.entry(asked).or_default();
        let dice = mix(asked ^ mix(*count));
        *count += 1;
        let chosen = usize::try_from(mix(dice)).unwrap_or(usize::MAX) % self.faults.len();
        (dice % 1000 < self.per_mille).then(|| self.faults[chosen].clone())
    }
}

/// SplitMix64's finaliser: every bit of the input moves half of the output.
pub(crate) fn mix(mut state: u64) -> u64 {
    state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_count_their_own_requests() {
        let mut faults = Faults::script([
            Rule::get("/blobs/", Nth::Only(1), Fault::Status(503)),
            Rule::get("/blobs/", Nth::After(2), Fault::Status(404)),
        ]);
        let mut status = |method, path| match faults.decide(method, path, "") {
            Some(Fault::Status(status)) => status,
            _ => 200,
        };
        assert_eq!(status("GET", "/v2/a/blobs/x"), 200);
        assert_eq!(status("HEAD", "/v2/a/blobs/x"), 200);
        assert_eq!(status("GET", "/v2/a/manifests/x"), 200);
        assert_eq!(status("GET", "/v2/a/blobs/x"), 503);
        assert_eq!(status("GET", "/v2/a/blobs/x"), 200);
        assert_eq!(status("GET", "/v2/a/blobs/x"), 404);
    }

    #[test]
    fn seed_decides_whatever_the_order() {
        let kinds = [Fault::Status(500), Fault::Reset { after: 0 }];
        let outcome = |paths: &[String]| {
            let mut faults = Faults::seeded(7, 300, "", &kinds);
            let mut found: Vec<_> =
                paths.iter().map(|path| (path.clone(), faults.decide("GET", path, ""))).collect();
            found.sort_by(|a, b| a.0.cmp(&b.0));
            found
        };
        let mut paths: Vec<_> = (0..1000).map(|n| format!("/v2/a/blobs/{n:04}")).collect();
        let forward = outcome(&paths);
        paths.reverse();
        assert_eq!(forward, outcome(&paths));
        let faulty = forward.iter().filter(|(_, fault)| fault.is_some()).count();
        assert!((200..400).contains(&faulty), "{faulty} of 1000 at 300 per mille");
    }
}
