//! Which URL of which host is next for a blob. Pure: failures and time come in as values.

use std::time::{Duration, Instant};

use url::Url;

use crate::Class;
use crate::registry::RegistryError;
use crate::registry::redirect::{REDIRECTS_MAX, follow, is_redirect};
use crate::target::{LocateError, TargetFailure};

/// A target that fails sooner than this after it was given never worked: asking again and again won't
/// help. One that fails later has expired or broken, which is its right.
const QUICK: Duration = Duration::from_secs(2);
/// Quick failures in a row before the next host is taken.
const STRIKES_MAX: u32 = 3;

/// What the route needs to know of a host.
#[derive(Clone, Debug)]
pub(super) struct HostFacts {
    /// The blob there.
    pub(super) url: Url,
    /// Whether a redirect may leave TLS.
    pub(super) plain_allowed: bool,
}

/// What to do for the next target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Go to where the route now stands.
    Go,
    /// The same, with a new proof of who we are.
    Renew,
}

/// Why a host was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Transient(String),
    Refused(String),
    Gone(String),
}

/// All hosts were left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exhausted(Verdict);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Registry,
    Elsewhere { url: Url, redirects: u32 },
}

#[derive(Clone, Debug)]
pub(super) struct Route {
    hosts: Vec<HostFacts>,
    /// Where we are; less than the count of hosts.
    host: usize,
    place: Place,
    given_at: Option<Instant>,
    strikes: u32,
    /// A new proof was given to the current host, which has not worked since.
    renewed: bool,
    /// Of the hosts before the current one, in this round.
    verdicts: Vec<Verdict>,
    last: Option<Verdict>,
}

impl Route {
    pub(super) fn new(hosts: Vec<HostFacts>) -> Self {
        Self {
            hosts,
            host: 0,
            place: Place::Registry,
            given_at: None,
            strikes: 0,
            renewed: false,
            verdicts: Vec::new(),
            last: None,
        }
    }

    /// Host and URL; `None` if there is no host.
    pub(super) fn place(&self) -> (usize, Option<Url>) {
        let url = match &self.place {
            Place::Elsewhere { url, .. } => Some(url.clone()),
            Place::Registry => self.hosts.get(self.host).map(|host| host.url.clone()),
        };
        (self.host, url)
    }

    /// A target for the current place was handed out.
    pub(super) fn given(&mut self, now: Instant) {
        self.given_at = Some(now);
    }

    /// Forget where the host redirected to: that has expired.
    pub(super) fn ask_again(&mut self) {
        self.place = Place::Registry;
    }

    /// Skip hosts that are to be left alone, as long as there are others behind them.
    pub(super) fn pass_over(&mut self, resting: impl Fn(usize) -> bool) {
        while self.place == Place::Registry
            && self.host + 1 < self.hosts.len()
            && resting(self.host)
        {
            self.verdicts.push(Verdict::Transient("host is left alone for a while".to_owned()));
            self.host += 1;
        }
    }

    /// The current target failed.
    pub(super) fn failed(
        &mut self,
        failure: &TargetFailure,
        now: Instant,
    ) -> Result<Next, Exhausted> {
        if self.given_at.is_none_or(|at| now.saturating_duration_since(at) >= QUICK) {
            self.strikes = 0;
            self.renewed = false;
        }
        let status = failure.status.unwrap_or_default();
        match (&self.place, &failure.location) {
            (_, Some(location)) if is_redirect(status) => self.redirected(location),
            (Place::Registry, _) if status == 401 && !self.renewed => {
                self.renewed = true;
                Ok(Next::Renew)
            }
            (Place::Registry, _) => self.give_up(verdict(status, &failure.message)),
            (Place::Elsewhere { .. }, _) => {
                self.strikes += 1;
                let verdict = verdict(status, &failure.message);
                let transient = matches!(verdict, Verdict::Transient(_));
                if self.strikes > STRIKES_MAX {
                    return self.give_up(verdict);
                }
                // One broken connection says nothing about the URL.
                if !(transient && self.strikes == 1) {
                    self.place = Place::Registry;
                }
                Ok(Next::Go)
            }
        }
    }

    /// The current host won't do: take the next, or start over if an earlier one may recover.
    pub(super) fn give_up(&mut self, verdict: Verdict) -> Result<Next, Exhausted> {
        self.place = Place::Registry;
        self.strikes = 0;
        self.renewed = false;
        self.last = Some(verdict.clone());
        self.verdicts.push(verdict.clone());
        self.host += 1;
        if self.host < self.hosts.len() {
            return Ok(Next::Go);
        }
        self.host = 0;
        let verdicts = std::mem::take(&mut self.verdicts);
        match verdicts.iter().any(|verdict| matches!(verdict, Verdict::Transient(_))) {
            true => Ok(Next::Go),
            false => Err(Exhausted(verdict)),
        }
    }

    /// What the latest left host had to say.
    pub(super) fn last_words(&self) -> &str {
        match &self.last {
            Some(Verdict::Transient(text) | Verdict::Refused(text) | Verdict::Gone(text)) => text,
            None => "no host is configured that blobs may be pulled from",
        }
    }

    fn redirected(&mut self, location: &str) -> Result<Next, Exhausted> {
        let (from, before) = match &self.place {
            Place::Elsewhere { url, redirects } => (Some(url.clone()), *redirects),
            Place::Registry => (self.hosts.get(self.host).map(|host| host.url.clone()), 0),
        };
        let plain_allowed = self.hosts.get(self.host).is_some_and(|host| host.plain_allowed);
        let redirects = before + 1;
        if redirects > REDIRECTS_MAX {
            return self.give_up(Verdict::Refused(format!("more than {REDIRECTS_MAX} redirects")));
        }
        match from.map(|from| follow(&from, location, plain_allowed)) {
            Some(Ok(url)) => {
                self.place = Place::Elsewhere { url, redirects };
                Ok(Next::Go)
            }
            Some(Err(reason)) => self.give_up(Verdict::Refused(reason)),
            None => self.give_up(Verdict::Gone("no host is configured".to_owned())),
        }
    }
}

fn verdict(status: u16, message: &str) -> Verdict {
    let text = message.to_owned();
    match status {
        404 | 410 => Verdict::Gone(text),
        408 | 429 => Verdict::Transient(text),
        300..=499 => Verdict::Refused(text),
        _ => Verdict::Transient(text),
    }
}

impl From<RegistryError> for Verdict {
    fn from(error: RegistryError) -> Self {
        let text = error.to_string();
        match error.class() {
            Class::Retry | Class::Cancelled => Self::Transient(text),
            Class::Refused | Class::Corrupt => Self::Refused(text),
            Class::Gone => Self::Gone(text),
        }
    }
}

impl Exhausted {
    /// As the engine wants it.
    pub(super) fn located(self, what: &str) -> LocateError {
        match self.0 {
            Verdict::Transient(text) => LocateError::Retry(format!("{what}: {text}")),
            Verdict::Refused(text) => LocateError::Refused(format!("{what}: {text}")),
            Verdict::Gone(text) => LocateError::Gone(format!("{what}: {text}")),
        }
    }
}

#[cfg(test)]
mod tests;
