//! Where a blob's bytes come from: finding targets, and what to do when one disappoints.

use std::time::{Duration, Instant};

use super::{Action, BlobId, Failure, FailureKind, GaveUp, Plan, Transfer, WantId};
use crate::blob::Class;

/// State of a blob's target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// There is none.
    Unknown,
    /// Somebody looks for one.
    Locating {
        /// When we stop believing in an answer.
        until: Instant,
    },
    /// There is one.
    Ready,
}

/// Longer than a locator's own deadline may sensibly be.
const LOCATE_MAX: Duration = Duration::from_secs(60);

/// Failures of the same target before the locator is asked for another: a keep-alive connection that
/// broke says little about its host.
const STRIKES_BEFORE_LOCATE: u32 = 2;

/// A target that brings some bytes and then none, time and again, is not one to wait for: as many
/// transfers in a row that broke before they brought [`DRIP_BYTES`].
const DRIPS_BEFORE_LOCATE: u32 = 3;

/// Who brings so much before it breaks is used as it is: some hosts end each connection after a megabyte.
const DRIP_BYTES: u64 = 256 << 10;

/// Within this, complaints are about what the target of the first one had under way.
const DISTRUST_ONCE: Duration = Duration::from_secs(2);

/// A second request as the old target expires would be wasted.
const EXPIRY_MARGIN: Duration = Duration::from_secs(5);

/// What the plan needs to know of a target.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    /// Key under which missing ranges are remembered.
    pub(crate) host: String,
    pub(crate) expires: Option<Instant>,
    /// It is another one than that which failed.
    pub(crate) changed: bool,
}

impl Plan {
    /// Answer to `Action::Locate`; an answer to an earlier question is dropped and said so by `false`.
    pub(crate) fn handle_located(
        &mut self,
        id: BlobId,
        generation: u64,
        result: Result<Located, GaveUp>,
        now: Instant,
    ) -> bool {
        let Some(blob) = self.blobs.get_mut(&id) else { return false };
        let asked = matches!(blob.source, Source::Locating { .. });
        if !asked || blob.generation != generation {
            return false;
        }
        blob.generation += 1;
        match result {
            Ok(located) => {
                blob.source = Source::Ready;
                // A target that was born expired would be asked for in a circle.
                blob.expires = located.expires.filter(|&at| at > now + EXPIRY_MARGIN);
                blob.host = located.host;
                if blob.strikes == 0 {
                    // From here on it waits for its turn alone, which is no trouble.
                    blob.trouble_since = None;
                }
                if located.changed {
                    blob.not_before = None;
                }
            }
            Err(gave_up) => {
                blob.source = Source::Unknown;
                let Class::Retry = gave_up.class else {
                    self.fail_all(id, &gave_up);
                    return true;
                };
                self.strike(id, Failure::transport(gave_up.message), now);
            }
        }
        true
    }

    /// What the blob's target brought was not the blob's: look for another one.
    pub(crate) fn handle_distrust(&mut self, id: BlobId, now: Instant) {
        let Some(blob) = self.blobs.get_mut(&id) else { return };
        let recent = blob.distrusted_at.is_some_and(|at| now - at < DISTRUST_ONCE);
        if blob.source != Source::Ready || recent {
            return;
        }
        blob.distrusted_at = Some(now);
        self.locate(id, Some(Failure::bad_reply("bytes that are not the blob's")), now);
    }

    pub(super) fn handle_success(&mut self, transfer: &Transfer, now: Instant) {
        self.note_speed(transfer, now);
        if transfer.progressed {
            self.clear_trouble(transfer.blob);
        }
        if let Some(blob) = self.blobs.get_mut(&transfer.blob) {
            blob.drips = 0;
        }
    }

    pub(super) fn handle_failure(&mut self, transfer: &Transfer, failure: Failure, now: Instant) {
        if failure.kind == FailureKind::Abandoned {
            return;
        }
        if transfer.progressed {
            self.clear_trouble(transfer.blob);
        }
        let Some(blob) = self.blobs.get_mut(&transfer.blob) else { return };
        if blob.generation != transfer.generation {
            // Another target has been found since; the old one's failures say nothing about it.
            return;
        }
        if matches!(blob.source, Source::Locating { .. }) {
            // Sent together with the one for which another target is being looked for: nothing new.
            return;
        }
        match failure.kind {
            _ if transfer.received >= DRIP_BYTES => blob.drips = 0,
            FailureKind::Transport if transfer.progressed => blob.drips += 1,
            _ => {}
        }
        if failure.kind == FailureKind::NoRanges {
            let until = now + self.options.no_ranges_memory;
            if self.whole_hosts.len() >= WHOLE_HOSTS_MAX {
                self.whole_hosts.pop_first();
            }
            self.whole_hosts.insert(blob.host.clone(), until);
            if transfer.stream.is_none() {
                return;
            }
        }
        self.strike(transfer.blob, failure, now);
    }

    pub(super) fn clear_trouble(&mut self, blob: BlobId) {
        if let Some(blob) = self.blobs.get_mut(&blob) {
            blob.strikes = 0;
            blob.trouble_since = None;
            blob.failure = None;
        }
    }

    /// True if a request for the blob can be sent now; asks for a target where there is none.
    pub(super) fn source_is_ready(&mut self, id: BlobId, now: Instant) -> bool {
        let Some(blob) = self.blobs.get_mut(&id) else { return false };
        if blob.not_before.is_some_and(|at| at > now) {
            return false;
        }
        blob.not_before = None;
        match blob.source {
            Source::Ready if blob.expires.is_none_or(|at| at > now + EXPIRY_MARGIN) => true,
            Source::Ready | Source::Unknown => {
                self.locate(id, None, now);
                false
            }
            Source::Locating { .. } => false,
        }
    }

    pub(super) fn expire_locates(&mut self, now: Instant) {
        let late = |source: Source| matches!(source, Source::Locating { until } if until <= now);
        let late: Vec<BlobId> =
            self.blobs.iter().filter(|(_, blob)| late(blob.source)).map(|(&id, _)| id).collect();
        for id in late {
            let Some(blob) = self.blobs.get_mut(&id) else { continue };
            blob.source = Source::Unknown;
            blob.generation += 1;
            let message = format!("no target was found within {} s", LOCATE_MAX.as_secs());
            self.strike(id, Failure::transport(message), now);
        }
    }

    fn locate(&mut self, id: BlobId, failure: Option<Failure>, now: Instant) {
        let Some(blob) = self.blobs.get_mut(&id) else { return };
        blob.source = Source::Locating { until: now + LOCATE_MAX };
        blob.trouble_since.get_or_insert(now);
        let generation = blob.generation;
        self.actions.push_back(Action::Locate { blob: id, generation, failure });
    }

    /// Count a failure against the blob's target, and decide between patience and another target.
    fn strike(&mut self, id: BlobId, failure: Failure, now: Instant) {
        let Some(blob) = self.blobs.get_mut(&id) else { return };
        blob.strikes += 1;
        blob.trouble_since.get_or_insert(now);
        blob.failure = Some(failure.clone());
        let retry = &self.options.retry;
        let tries_max = match failure.class() {
            Class::Retry => retry.tries_max,
            _ => retry.tries_wrong_max,
        };
        if blob.strikes >= tries_max {
            let waited = blob.trouble_since.map_or(Duration::ZERO, |since| now - since);
            let gave_up = blob.gave_up_reason(waited);
            blob.strikes = 0;
            blob.trouble_since = None;
            blob.not_before = None;
            if let Some(gave_up) = gave_up {
                self.fail_all(id, &gave_up);
            }
            return;
        }
        // The first failure costs nothing but a new connection, or a new target.
        let first = blob.strikes == 1 && failure.retry_after.is_none();
        let patient = failure.class() == Class::Retry;
        if !first && patient {
            let tries = blob.strikes.saturating_sub(1).max(1);
            blob.not_before = Some(now + self.backoff.delay(tries, failure.retry_after));
        }
        let transport = failure.kind == FailureKind::Transport;
        let ready = blob.source == Source::Ready;
        let is_patient = blob.strikes < STRIKES_BEFORE_LOCATE && blob.drips < DRIPS_BEFORE_LOCATE;
        if ready && !(transport && is_patient) {
            blob.drips = 0;
            self.locate(id, Some(failure), now);
        }
    }

    fn fail_all(&mut self, id: BlobId, gave_up: &GaveUp) {
        let Some(blob) = self.blobs.get(&id) else { return };
        let wants: Vec<WantId> = blob.wants().collect();
        for want in wants {
            self.finish(want, Err(gave_up.clone()));
        }
        if let Some(blob) = self.blobs.get_mut(&id) {
            blob.source = Source::Unknown;
            blob.generation += 1;
            blob.trouble_since = None;
            blob.strikes = 0;
        }
    }
}

/// Hosts remembered at once as having no ranges; a forgotten one costs a refused request.
const WHOLE_HOSTS_MAX: usize = 1024;
