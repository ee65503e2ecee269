//! How fast hosts bring bytes, so that a connection which lags far behind its kin is given up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Action, Plan, Transfer};

/// How often a transfer's speed is looked at: a lost packet or two must not count.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

impl Plan {
    pub(super) fn note_speed(&mut self, transfer: &Transfer, now: Instant) {
        // Who wants nothing for a while makes a stream slow.
        if let Some(blob) = self.blobs.get(&transfer.blob).filter(|_| transfer.stream.is_none()) {
            let took = now.saturating_duration_since(transfer.began);
            self.speeds.note(&blob.host, transfer.received, took);
        }
    }

    /// When to look at a transfer's speed next.
    pub(super) fn look_at(&self) -> Option<Instant> {
        let watched = self.transfers.values().filter(|transfer| transfer.is_watched());
        watched.map(|transfer| transfer.looked_at.0 + LOOK_INTERVAL).min()
    }

    /// End the transfers that lag; what they brought is kept, the rest is requested anew. No failure
    /// of the host: if it is the link, each finds it allowed to be slower than the one before.
    pub(super) fn abandon_laggards(&mut self, now: Instant) {
        for (&id, transfer) in &mut self.transfers {
            let (since, before) = transfer.looked_at;
            let passed = now.saturating_duration_since(since);
            if !transfer.is_watched() || passed < LOOK_INTERVAL {
                continue;
            }
            transfer.looked_at = (now, transfer.received);
            let Some(blob) = self.blobs.get_mut(&transfer.blob) else { continue };
            let least = self.speeds.least(&blob.host) as f64 * passed.as_secs_f64();
            let brought = transfer.received - before;
            // Before the first byte it is the reply's deadline that counts, and where nothing comes at
            // all the connection's own: both are failures of the host.
            if before > 0 && brought > 0 && (brought as f64) < least {
                transfer.abandoned = true;
                if !transfer.progressed {
                    blob.trouble_since.get_or_insert(now);
                }
                self.speeds.halve(&blob.host);
                self.actions.push_back(Action::Abandon(id));
            }
        }
    }
}

impl Transfer {
    fn is_watched(&self) -> bool {
        self.stream.is_none() && !self.abandoned
    }
}

/// Bytes per second of the best of a host's late transfers.
#[derive(Debug, Default)]
pub(super) struct Speeds(BTreeMap<String, f64>);

/// More than one image needs; forgetting a host costs nothing.
const HOSTS_MAX: usize = 64;
/// Shorter transfers tell of round trips, not of speed.
const BYTES_MIN: u64 = 64 << 10;
/// Eight connections that share a link differ by less than this factor, also with TLS and a slow
/// start; one that drips is orders of magnitude behind.
const LAG_MAX: f64 = 64.0;
/// What remains of the best with each slower transfer: links change.
const FADE: f64 = 0.98;

impl Speeds {
    /// A transfer from the host brought `bytes` in `took`.
    pub(super) fn note(&mut self, host: &str, bytes: u64, took: Duration) {
        if bytes < BYTES_MIN {
            return;
        }
        let found = bytes as f64 / took.as_secs_f64().max(1e-6);
        if self.0.len() >= HOSTS_MAX && !self.0.contains_key(host) {
            self.0.pop_first();
        }
        let best = self.0.entry(host.to_owned()).or_default();
        *best = found.max(*best * FADE);
    }

    /// A transfer was too slow. If it is the link, the next one has it easier.
    pub(super) fn halve(&mut self, host: &str) {
        if let Some(best) = self.0.get_mut(host) {
            *best /= 2.0;
        }
    }

    /// Bytes per second that a transfer from the host must bring; 0 where nothing is known.
    pub(super) fn least(&self, host: &str) -> u64 {
        self.0.get(host).map_or(0, |best| (best / LAG_MAX) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_counts_fades_and_halves() {
        let mut speeds = Speeds::default();
        assert_eq!(speeds.least("a"), 0);
        speeds.note("a", 1 << 10, Duration::from_nanos(1));
        assert_eq!(speeds.least("a"), 0, "a short transfer says nothing");
        speeds.note("a", 64_000_000, Duration::from_secs(1));
        assert_eq!((speeds.least("a"), speeds.least("b")), (1_000_000, 0));
        speeds.note("a", 6_400_000, Duration::from_secs(1));
        assert_eq!(speeds.least("a"), 980_000);
        speeds.halve("a");
        assert_eq!(speeds.least("a"), 490_000);
        (0..1000).for_each(|_| speeds.halve("a"));
        assert_eq!(speeds.least("a"), 0);
        (0..1000).for_each(|host| speeds.note(&host.to_string(), 1 << 20, Duration::from_secs(1)));
        assert!(speeds.0.len() <= HOSTS_MAX);
    }
}
