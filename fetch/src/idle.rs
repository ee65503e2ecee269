//! Connections kept alive between requests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::target::Target;

/// Shorter than the idle limits of common servers (nginx 75 s), so that few die in our hands.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Idle connections with their sockets.
pub(crate) struct Idle<C> {
    kept: Vec<(Arc<Target>, Instant, C)>,
    count_max: usize,
}

impl<C> Idle<C> {
    pub(crate) fn new(count_max: usize) -> Self {
        Self { kept: Vec::new(), count_max }
    }

    /// A connection that serves the target, the latest used first: it is the least likely to be dead.
    pub(crate) fn take(&mut self, target: &Target, now: Instant) -> Option<C> {
        self.expire(now);
        let index = self.kept.iter().rposition(|(other, _, _)| same_peer(other, target))?;
        Some(self.kept.remove(index).2)
    }

    pub(crate) fn give(&mut self, target: Arc<Target>, connection: C, now: Instant) {
        self.expire(now);
        if self.kept.len() >= self.count_max && !self.kept.is_empty() {
            self.kept.remove(0);
        }
        self.kept.push((target, now, connection));
    }

    /// Connections that would serve the target.
    pub(crate) fn count(&self, target: &Target) -> usize {
        self.kept.iter().filter(|(other, _, _)| same_peer(other, target)).count()
    }

    /// When the oldest is too old.
    pub(crate) fn expires_at(&self) -> Option<Instant> {
        self.kept.first().map(|&(_, since, _)| since + IDLE_MAX)
    }

    /// Close what is too old.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.kept.retain(|&(_, since, _)| since + IDLE_MAX > now);
    }
}

/// A connection for one target can serve the other: same host at the same addresses, by the same
/// way, with the same credentials of TLS.
fn same_peer(a: &Target, b: &Target) -> bool {
    let same_tls = match (&a.tls, &b.tls) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        _ => false,
    };
    same_tls
        && a.host == b.host
        && a.server_name == b.server_name
        && a.connect == b.connect
        && a.addresses == b.addresses
}
