//! Where the engine finds a blob of a registry: [`Repository::locate`].
//!
//! Optimistic: the first target is the registry's own URL, with a token if one is known to be wanted,
//! and no request is spent on finding out whether it redirects. The engine tells what it met, the
//! route (pure) says what follows from it, and this shell gets names, tokens and TLS for it.

mod expiry;
mod route;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use spanfs_layer::Digest;
use url::Url;

use crate::hosts::{Capability, Host};
use crate::proxy::Proxies;
use crate::registry::redirect::{authority, same_origin};
use crate::registry::{Attempt, Proof, Repository, Scopes, Shared};
use crate::target::{Locate, LocateError, Target, TargetFailure};
use crate::transport::{bare_host, resolve};
use route::{HostFacts, Next, Route, Verdict};

/// Callers that wait for one target: one a connection at most, in practice.
const WAITING_MAX: usize = 4096;
/// A target is not handed out this shortly before its end.
const EXPIRY_MARGIN: Duration = Duration::from_secs(15);

type Reply = Box<dyn FnOnce(Result<Target, LocateError>) + Send>;

impl Repository {
    /// A locator for one blob, which works on the given runtime.
    pub fn locate(&self, digest: &Digest, runtime: &tokio::runtime::Handle) -> Arc<dyn Locate> {
        let able = |host: &&Arc<Host>| host.options.capabilities.has(Capability::Pull);
        let hosts: Vec<Arc<Host>> = self.hosts.iter().filter(able).cloned().collect();
        let facts = hosts.iter().map(|host| HostFacts {
            url: host.url(&format!("{}/blobs/{digest}", self.name), &[]),
            plain_allowed: host.options.base.scheme() == "http",
        });
        let route = Route::new(facts.collect());
        Arc::new(Locator(Arc::new(Inner {
            shared: self.shared.clone(),
            hosts,
            what: format!("blob {digest} of {}", self.name),
            scopes: self.scopes("pull"),
            runtime: runtime.clone(),
            state: Mutex::new(State {
                route,
                current: None,
                proof: None,
                id_next: 0,
                working: false,
                waiting: Vec::new(),
            }),
        })))
    }
}

struct Locator(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    /// Those that may be pulled from; parallel to the route's.
    hosts: Vec<Arc<Host>>,
    what: String,
    scopes: Scopes,
    runtime: tokio::runtime::Handle,
    state: Mutex<State>,
}

struct State {
    route: Route,
    current: Option<Target>,
    /// What `current` carries, if anything.
    proof: Option<Proof>,
    id_next: u64,
    /// A task is finding the next target; who comes meanwhile waits for it.
    working: bool,
    waiting: Vec<Reply>,
}

impl Locate for Locator {
    fn locate(&self, failure: Option<TargetFailure>, reply: Reply) {
        let inner = &self.0;
        let mut state = inner.lock();
        if state.waiting.len() >= WAITING_MAX {
            drop(state);
            reply(Err(LocateError::Retry(format!("{}: too many wait for a target", inner.what))));
            return;
        }
        if state.working {
            state.waiting.push(reply);
            return;
        }
        let now = Instant::now();
        let fresh = |t: &&Target| t.expires.is_none_or(|at| at > now + EXPIRY_MARGIN);
        let current = state.current.as_ref().filter(fresh);
        let stale = |t: &&Target| failure.as_ref().is_none_or(|failure| failure.id != t.id);
        if let Some(target) = current.filter(stale) {
            let target = target.clone();
            drop(state);
            reply(Ok(target));
            return;
        }
        let failed = state.current.as_ref().map(|target| target.id);
        let next = match &failure {
            Some(failure) if failed == Some(failure.id) => {
                let (status, message) = (failure.status, &failure.message);
                tracing::debug!(blob = inner.what, status, message, "target failed");
                state.route.failed(failure, now)
            }
            _ => {
                state.route.ask_again();
                Ok(Next::Go)
            }
        };
        let renew = match next {
            Ok(Next::Go) => None,
            Ok(Next::Renew) => failure.and_then(|failure| failure.challenge),
            Err(error) => {
                state.current = None;
                drop(state);
                reply(Err(error.located(&inner.what)));
                return;
            }
        };
        state.working = true;
        state.waiting.push(reply);
        drop(state);
        let work = Work { inner: inner.clone(), done: false };
        inner.runtime.spawn(work.run(renew));
    }
}

/// The task's duty to answer all who wait, also when its runtime ends under it.
struct Work {
    inner: Arc<Inner>,
    done: bool,
}

impl Work {
    async fn run(mut self, challenge: Option<String>) {
        let inner = self.inner.clone();
        let limit = inner.shared.exchanger.limits.request;
        let found = tokio::time::timeout(limit, inner.find(challenge)).await;
        let late = || LocateError::Retry(format!("{}: no target within {limit:?}", inner.what));
        self.finish(found.unwrap_or_else(|_| Err(late())));
    }

    fn finish(&mut self, found: Result<Target, LocateError>) {
        self.done = true;
        let mut state = self.inner.lock();
        state.working = false;
        state.current = found.as_ref().ok().cloned();
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for reply in waiting {
            reply(found.clone());
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.done {
            let what = &self.inner.what;
            let ended = LocateError::Retry(format!("{what}: the control plane has ended"));
            self.finish(Err(ended));
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A target at the place where the route stands, or at a later one.
    async fn find(&self, challenge: Option<String>) -> Result<Target, LocateError> {
        let mut challenge = challenge;
        for _ in 0..=self.hosts.len() {
            let (index, url) = {
                let mut state = self.lock();
                let resting = |index: usize| self.hosts.get(index).is_some_and(|h| h.is_resting());
                state.route.pass_over(resting);
                state.route.place()
            };
            let Some((host, url)) = self.hosts.get(index).zip(url) else { break };
            let verdict = match self.target(host, &url, challenge.take()).await {
                Ok(target) => return Ok(target),
                Err(verdict) => verdict,
            };
            if matches!(verdict, Verdict::Transient(_)) {
                host.rest();
            }
            let given_up = self.lock().route.give_up(verdict);
            given_up.map_err(|error| error.located(&self.what))?;
        }
        let tried = self.lock().route.last_words().to_owned();
        Err(LocateError::Retry(format!("{}: {tried}", self.what)))
    }

    async fn target(
        &self,
        host: &Arc<Host>,
        url: &Url,
        challenge: Option<String>,
    ) -> Result<Target, Verdict> {
        let own = same_origin(url, &host.options.base);
        let proof = if own { self.proof(host, challenge).await? } else { None };
        let mut target = connection(host, own, url, self.shared.proxies()).await?;
        let mut headers = HeaderMap::new();
        if own {
            headers = host.options.headers.clone();
        }
        headers.insert(http::header::USER_AGENT, self.shared.exchanger.user_agent.clone());
        if let Some(proof) = &proof {
            headers.insert(http::header::AUTHORIZATION, proof.header.clone());
        }
        for (name, value) in &headers {
            let value = value.to_str().map_err(|_| {
                Verdict::Refused(format!("{}: header {name} is not text", host.name()))
            })?;
            target.headers.push((name.to_string(), value.to_owned()));
        }
        let life = expiry::life(url, SystemTime::now()).map(|life| Instant::now() + life);
        target.expires = if own { proof.as_ref().and_then(|p| p.renew_at) } else { life };
        let mut state = self.lock();
        target.id = state.id_next;
        state.id_next += 1;
        state.proof = proof;
        state.route.given(Instant::now());
        Ok(target)
    }

    async fn proof(
        &self,
        host: &Arc<Host>,
        challenge: Option<String>,
    ) -> Result<Option<Proof>, Verdict> {
        let exchanger = &self.shared.exchanger;
        let at = Attempt { what: self.what.clone(), host: host.name() };
        let mut rejected = None;
        if let Some(challenge) = &challenge {
            let texts = std::iter::once(challenge.as_str());
            if !exchanger.authorizer.learn(host, &self.scopes, texts) {
                return Err(Verdict::Refused(format!("{at}: 401 with no challenge we can meet")));
            }
            rejected = self.lock().proof.take();
        }
        let limit = exchanger.limits.answer;
        let proof = exchanger
            .authorizer
            .proof(host, &self.scopes, rejected.as_ref(), &at, limit)
            .await
            .map_err(Verdict::from)?;
        if challenge.is_some() && proof.is_none() {
            let error = exchanger.authorizer.unauthorized(&at, rejected.as_ref(), String::new());
            return Err(Verdict::from(error));
        }
        Ok(proof)
    }
}

/// All of a target that belongs to the connection.
async fn connection(
    host: &Host,
    own: bool,
    url: &Url,
    proxies: &Proxies,
) -> Result<Target, Verdict> {
    let secure = url.scheme() == "https";
    let name = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or(80);
    let proxy = proxies.choose(secure, name, port);
    let (dialed, dialed_port) = proxy.map_or((name, port), |p| (p.host.as_str(), p.port));
    let addresses = resolve(dialed, dialed_port, host.dial_timeout)
        .await
        .map_err(|error| Verdict::Transient(error.to_string()))?;
    let trust = if own { &host.trust } else { &host.trust_elsewhere };
    let tls = match secure {
        true => Some(trust.config().map_err(|error| Verdict::Refused(error.to_string()))?),
        false => None,
    };
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut request_target = format!("{}{query}", url.path());
    let mut headers = Vec::new();
    let authorization = proxy.and_then(|proxy| proxy.authorization.clone());
    let connect = match (proxy, secure) {
        (Some(_), true) => Some((format!("{name}:{port}"), authorization)),
        (Some(_), false) => {
            request_target = url.as_str().to_owned();
            headers.extend(authorization.map(|value| ("proxy-authorization".to_owned(), value)));
            None
        }
        (None, _) => None,
    };
    Ok(Target {
        id: 0,
        host: authority(url),
        server_name: bare_host(name).to_owned(),
        addresses,
        request_target,
        headers,
        tls,
        connect,
        expires: None,
    })
}

#[cfg(test)]
mod tests;
