//! One request, with all that may come between it and its answer: challenge, redirects, retries,
//! other hosts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use tokio::time::Instant;
use url::Url;

use super::authorize::{Authorizer, Proof, Scopes};
use super::error::{Attempt, RegistryError};
use super::redirect::{REDIRECTS_MAX, authority, follow, may_follow, same_origin};
use super::{RegistryLimits, answer};
use crate::content::Content;
use crate::hosts::{Capability, Host, to_uri};

/// Target of the events that tell of each request, its status or its failure.
pub const REQUESTS: &str = "spanfs_fetch::requests";

/// Slowest rate at which we go on sending, in bytes a second.
const SEND_RATE_MIN: u64 = 32 << 10;

/// A request, independent of the host that serves it.
#[derive(Clone)]
pub(crate) struct Ask {
    /// For messages.
    pub(crate) what: String,
    pub(crate) method: Method,
    /// Below the host's base: `library/alpine/manifests/latest`.
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) content: Content,
    pub(crate) scopes: Scopes,
    pub(crate) capability: Capability,
    /// Longest body of an answer.
    pub(crate) answer_len_max: u64,
}

/// A successful answer, complete.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) at: Attempt,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// After redirects.
    pub(crate) url: Url,
}

impl Answer {
    /// A header as text, if it is there and is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// What exchanges need beside host and request.
#[derive(Debug)]
pub(crate) struct Exchanger {
    pub(crate) authorizer: Authorizer,
    pub(crate) limits: RegistryLimits,
    pub(crate) user_agent: HeaderValue,
}

impl Exchanger {
    /// Ask the hosts in order until one answers well and `accept` takes the answer.
    pub(crate) async fn over_hosts<T>(
        &self,
        hosts: &[Arc<Host>],
        ask: &Ask,
        accept: impl Fn(Answer) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let able: Vec<&Arc<Host>> =
            hosts.iter().filter(|host| host.options.capabilities.has(ask.capability)).collect();
        let deadline = Instant::now() + self.limits.operation;
        let mut errors = Vec::new();
        for (index, host) in able.iter().enumerate() {
            let last = index + 1 == able.len();
            if !last && host.is_resting() {
                continue;
            }
            let tries = if last { self.limits.tries_max } else { 1 };
            match self.persist(host, ask, None, tries, deadline, &accept).await {
                Ok(value) => return Ok(value),
                Err(error) => {
                    if !last {
                        tracing::warn!(%error, "trying the next host");
                    }
                    if matches!(
                        error,
                        RegistryError::Unreachable { .. } | RegistryError::TimedOut { .. }
                    ) {
                        host.rest();
                    }
                    errors.push(error);
                }
            }
        }
        Err(match (errors.len(), errors.pop()) {
            (_, None) => RegistryError::Refused {
                at: Attempt { what: ask.what.clone(), host: "any host".to_owned() },
                reason: format!("no configured host has the capability {:?}", ask.capability),
            },
            (1, Some(error)) => error,
            (_, Some(error)) => {
                errors.push(error);
                RegistryError::AllHosts(errors)
            }
        })
    }

    /// Ask one host, again after transient failures; at `url` in place of the one that `ask` means.
    pub(crate) async fn persist<T>(
        &self,
        host: &Host,
        ask: &Ask,
        url: Option<&Url>,
        tries: u32,
        deadline: Instant,
        accept: impl Fn(Answer) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut backoff = self.limits.backoff();
        for try_number in 1.. {
            let error = match self.once(host, ask, url.cloned()).await.and_then(&accept) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let delay = backoff.delay(try_number, error.retry_after());
            let in_time = Instant::now() + delay < deadline;
            if !error.is_transient() || try_number >= tries || !in_time {
                return Err(error);
            }
            tracing::debug!(%error, ?delay, "trying again");
            tokio::time::sleep(delay).await;
        }
        unreachable!("the loop ends by its count of tries")
    }

    /// One try: a success with its body, or an error. `url` in place of the one that `ask` means.
    pub(crate) async fn once(
        &self,
        host: &Host,
        ask: &Ask,
        url: Option<Url>,
    ) -> Result<Answer, RegistryError> {
        let at = Attempt { what: ask.what.clone(), host: host.name() };
        let limit = self.limits.request + Duration::from_secs(ask.content.len() / SEND_RATE_MIN);
        let work = async {
            let (url, head, body) = self.send(host, ask, url, &at).await?;
            // The host that answered in the end is the one to name.
            let at = Attempt { host: authority(&url), ..at.clone() };
            if !head.status.is_success() {
                return Err(answer::failure(at, head.status, &head.headers, body).await);
            }
            let limit = if ask.method == Method::HEAD { u64::MAX } else { ask.answer_len_max };
            let body = answer::read_body(body, limit, &at).await?;
            Ok(Answer { at, status: head.status, headers: head.headers, body, url })
        };
        match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(RegistryError::TimedOut { at, waited: limit }),
        }
    }

    /// Send, meeting a challenge once and following redirects.
    async fn send(
        &self,
        host: &Host,
        ask: &Ask,
        url: Option<Url>,
        at: &Attempt,
    ) -> Result<(Url, http::response::Parts, Incoming), RegistryError> {
        let mut url = url.unwrap_or_else(|| host.url(&ask.path, &ask.query));
        let mut redirects = 0;
        let mut challenged: Option<String> = None;
        let mut rejected: Option<Proof> = None;
        loop {
            let own = same_origin(&url, &host.options.base);
            let proof = match own {
                true => {
                    let limit = self.limits.answer;
                    self.authorizer.proof(host, &ask.scopes, rejected.as_ref(), at, limit).await?
                }
                false => None,
            };
            if let (true, None, Some(detail)) = (own, &proof, &challenged) {
                return Err(self.authorizer.unauthorized(at, rejected.as_ref(), detail.clone()));
            }
            let (head, body) = self.request(host, ask, &url, proof.as_ref(), own, at).await?;
            answer::log_warnings(at, &head.headers);
            let status = head.status;
            if status == StatusCode::UNAUTHORIZED && own {
                let detail = answer::detail(&answer::read_start(body).await);
                let challenges = head.headers.get_all(header::WWW_AUTHENTICATE);
                let texts = challenges.iter().filter_map(|value| value.to_str().ok());
                let usable = self.authorizer.learn(host, &ask.scopes, texts);
                if !usable || challenged.is_some() && rejected.is_some() {
                    return Err(self.authorizer.unauthorized(at, proof.as_ref(), detail));
                }
                challenged = Some(detail);
                rejected = proof;
                continue;
            }
            let location = head.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
            match location {
                Some(location) if may_follow(status, &ask.method) => {
                    redirects += 1;
                    url = self.redirected(host, &url, location, redirects, at)?;
                }
                _ => return Ok((url, head, body)),
            }
        }
    }

    fn redirected(
        &self,
        host: &Host,
        from: &Url,
        location: &str,
        redirects: u32,
        at: &Attempt,
    ) -> Result<Url, RegistryError> {
        let refuse = |reason: String| RegistryError::Refused { at: at.clone(), reason };
        if redirects > REDIRECTS_MAX {
            return Err(refuse(format!(
                "more than {REDIRECTS_MAX} redirects, the last to {}",
                authority(from)
            )));
        }
        let plain_allowed = host.options.base.scheme() == "http";
        follow(from, location, plain_allowed).map_err(refuse)
    }

    async fn request(
        &self,
        host: &Host,
        ask: &Ask,
        url: &Url,
        proof: Option<&Proof>,
        own: bool,
        at: &Attempt,
    ) -> Result<(http::response::Parts, Incoming), RegistryError> {
        let refuse = |reason: String| RegistryError::Refused { at: at.clone(), reason };
        let mut request = Request::new(ask.content.body());
        *request.method_mut() = ask.method.clone();
        *request.uri_mut() = to_uri(url).map_err(refuse)?;
        let headers = request.headers_mut();
        headers.insert(header::USER_AGENT, self.user_agent.clone());
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.extend(ask.headers.clone());
        if own {
            for (name, value) in &host.options.headers {
                headers.append(name, value.clone());
            }
        }
        if let Some(proof) = proof {
            headers.insert(header::AUTHORIZATION, proof.header.clone());
        }
        let pool = if own { &host.pool } else { &host.pool_elsewhere };
        let limit = self.limits.answer + Duration::from_secs(ask.content.len() / SEND_RATE_MIN);
        let at = Attempt { host: authority(url), ..at.clone() };
        tracing::trace!(target: REQUESTS, method = ask.method.as_str(), url = %shown(url), "req");
        match tokio::time::timeout(limit, pool.request(request)).await {
            Ok(Ok(response)) => {
                tracing::trace!(target: REQUESTS, status = %response.status(), "res");
                Ok(response.into_parts())
            }
            Ok(Err(error)) => {
                tracing::trace!(target: REQUESTS, %error, "err");
                Err(RegistryError::from_client(at, &error))
            }
            Err(_) => {
                tracing::trace!(target: REQUESTS, error = "no answer in time", "err");
                Err(RegistryError::TimedOut { at, waited: limit })
            }
        }
    }
}

/// A URL for the log: what stands in a query may be a signature, which is as good as a password.
fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    if shown.query().is_some() {
        shown.set_query(Some("..."));
    }
    shown.into()
}
