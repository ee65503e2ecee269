//! Proof for a request: from what a host asked for earlier, and who we are to it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, header};
use url::Url;

use super::answer;
use super::error::{Attempt, RegistryError};
use super::redirect::{authority, same_origin};
use crate::auth::{
    Challenge, Scheme, TokenRequest, TokenService, basic, bearer, parse_challenges, parse_token,
};
use crate::content::Content;
use crate::credentials::{Credentials, Found, Login, Role, Secret};
use crate::hosts::{Host, is_local};

/// A token server's answer, refresh token and all.
const TOKEN_ANSWER_LEN_MAX: u64 = 1 << 20;
/// Sets of scopes remembered for a host; one per repository in use.
const LEARNED_MAX: usize = 4096;

pub(crate) type Scopes = BTreeSet<String>;

/// Names of the repositories that scopes are about (`repository:NAME:ACTIONS`).
fn repositories(scopes: &Scopes) -> Vec<&str> {
    fn name(scope: &str) -> Option<&str> {
        scope.strip_prefix("repository:")?.rsplit_once(':').map(|(name, _)| name)
    }
    scopes.iter().filter_map(|scope| name(scope)).collect()
}

/// What goes into `Authorization`, and where it came from.
#[derive(Clone, Debug)]
pub(crate) struct Proof {
    pub(crate) header: HeaderValue,
    /// When a new one will be wanted, as far as it is known.
    pub(crate) renew_at: Option<Instant>,
    token: Option<Secret>,
    source: String,
}

#[derive(Debug)]
enum Known {
    Basic { proof: Option<Proof> },
    Bearer { realm: Url, service: Option<String>, learned: HashMap<Scopes, Scopes> },
}

/// Remembers what hosts asked for, and holds their tokens.
#[derive(Debug, Default)]
pub(crate) struct Authorizer {
    credentials: Credentials,
    tokens: TokenService,
    known: Mutex<HashMap<String, Known>>,
}

impl Authorizer {
    pub(crate) fn new(credentials: Credentials) -> Self {
        Self { credentials, ..Self::default() }
    }

    /// Take note of a host's challenges; false if it has none that we can meet.
    pub(crate) fn learn<'a>(
        &self,
        host: &Host,
        scopes: &Scopes,
        challenges: impl Iterator<Item = &'a str>,
    ) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for challenge in parse_challenges(challenges) {
            match challenge.scheme {
                Scheme::Bearer => {
                    let Some((realm, service)) = realm(&challenge) else { continue };
                    let entry = known.entry(key(host));
                    let known = entry.or_insert_with(|| Known::Basic { proof: None });
                    let mut learned = match known {
                        Known::Bearer { learned, .. } => std::mem::take(learned),
                        Known::Basic { .. } => HashMap::new(),
                    };
                    if learned.len() >= LEARNED_MAX {
                        learned.clear();
                    }
                    let asked = challenge.parameter("scope").unwrap_or_default();
                    let all =
                        scopes.iter().cloned().chain(asked.split_whitespace().map(str::to_owned));
                    learned.insert(scopes.clone(), all.collect());
                    *known = Known::Bearer { realm, service, learned };
                    return true;
                }
                Scheme::Basic => {
                    let entry = known.entry(key(host)).or_insert(Known::Basic { proof: None });
                    if !matches!(entry, Known::Basic { .. }) {
                        *entry = Known::Basic { proof: None };
                    }
                    return true;
                }
                Scheme::Other => {}
            }
        }
        false
    }

    /// Proof for a request, as far as the host is known to want one. `rejected`: what it just refused.
    pub(crate) async fn proof(
        &self,
        host: &Host,
        scopes: &Scopes,
        rejected: Option<&Proof>,
        at: &Attempt,
        limit: Duration,
    ) -> Result<Option<Proof>, RegistryError> {
        let request = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            match known.get(&key(host)) {
                None => return Ok(None),
                Some(Known::Basic { proof: Some(proof) }) if rejected.is_none() => {
                    return Ok(Some(proof.clone()));
                }
                Some(Known::Basic { .. }) => None,
                Some(Known::Bearer { realm, service, learned }) => Some(TokenRequest {
                    realm: realm.clone(),
                    service: service.clone(),
                    scopes: learned.get(scopes).unwrap_or(scopes).clone(),
                }),
            }
        };
        match request {
            None => self.basic(host, scopes, rejected, at).await,
            Some(request) => self.bearer(host, &request, rejected, at, limit).await.map(Some),
        }
    }

    /// The error for a request that was refused although all was tried.
    pub(crate) fn unauthorized(
        &self,
        at: &Attempt,
        tried: Option<&Proof>,
        detail: String,
    ) -> RegistryError {
        let tried = match tried {
            Some(proof) => proof.source.clone(),
            None => format!("anonymous ({})", self.credentials.names()),
        };
        RegistryError::Unauthorized { at: at.clone(), tried, detail }
    }

    async fn find(
        &self,
        host: &Host,
        scopes: &Scopes,
        at: &Attempt,
    ) -> Result<Option<Found>, RegistryError> {
        let role = if host.is_origin() { Role::Origin } else { Role::Mirror };
        self.credentials
            .find(&host.name(), role, &repositories(scopes))
            .await
            .map_err(|error| RegistryError::Refused { at: at.clone(), reason: error.to_string() })
    }

    async fn basic(
        &self,
        host: &Host,
        scopes: &Scopes,
        rejected: Option<&Proof>,
        at: &Attempt,
    ) -> Result<Option<Proof>, RegistryError> {
        let Some(found) = self.find(host, scopes, at).await? else { return Ok(None) };
        let header = basic(&found.login).ok_or_else(|| RegistryError::Refused {
            at: at.clone(),
            reason: format!(
                "the host wants a user name and a password, {} has a token",
                found.source
            ),
        })?;
        let proof = Proof { header, renew_at: None, token: None, source: found.source };
        if rejected.is_some_and(|rejected| rejected.header == proof.header) {
            // Sending the same again could lock an account.
            return Ok(None);
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(key(host), Known::Basic { proof: Some(proof.clone()) });
        Ok(Some(proof))
    }

    async fn bearer(
        &self,
        host: &Host,
        request: &TokenRequest,
        rejected: Option<&Proof>,
        at: &Attempt,
        limit: Duration,
    ) -> Result<Proof, RegistryError> {
        let exchange = async {
            let found = self.find(host, &request.scopes, at).await?;
            let source = match &found {
                Some(found) => found.source.clone(),
                None => format!("anonymous ({})", self.credentials.names()),
            };
            if let Some(Found { login: Login::RegistryToken(token), .. }) = found {
                return Ok((token, None, source));
            }
            let at =
                Attempt { what: format!("token for {}", at.what), host: authority(&request.realm) };
            let timed = at.clone();
            let answer = self.exchange(host, request, found.as_ref(), &at);
            let answer = tokio::time::timeout(limit, answer)
                .await
                .unwrap_or(Err(RegistryError::TimedOut { at: timed, waited: limit }));
            answer.map(|(value, life)| (value, life, source))
        };
        let rejected = rejected.and_then(|proof| proof.token.as_ref());
        let token = self.tokens.get(request, rejected, exchange).await?;
        let header = bearer(&token.value).ok_or_else(|| RegistryError::Refused {
            at: at.clone(),
            reason: "the token has bytes that no header can carry".to_owned(),
        })?;
        let source = format!("token of {} for {}", authority(&request.realm), token.source);
        Ok(Proof { header, renew_at: token.renew_at, token: Some(token.value), source })
    }

    async fn exchange(
        &self,
        host: &Host,
        request: &TokenRequest,
        found: Option<&Found>,
        at: &Attempt,
    ) -> Result<(Secret, Option<Duration>), RegistryError> {
        let refuse = |reason: String| RegistryError::Refused { at: at.clone(), reason };
        let secure = host.options.base.scheme() == "https";
        if secure && request.realm.scheme() == "http" && !is_local(&authority(&request.realm)) {
            return Err(refuse("a token server without TLS is refused".to_owned()));
        }
        let login = found.map(|found| &found.login);
        if let Some((post, login)) = request.post(login).zip(login) {
            let (status, result) = self.ask(host, post, found, at).await?;
            if !TokenRequest::wants_get(status, login) {
                return result;
            }
            tracing::debug!(host = at.host, status, "token server takes no POST, trying GET");
        }
        let get =
            request.get(login).ok_or_else(|| refuse("realm can't be requested".to_owned()))?;
        self.ask(host, get, found, at).await?.1
    }

    /// One request to the token server: its status, and what came of it.
    async fn ask(
        &self,
        host: &Host,
        request: Request<Content>,
        found: Option<&Found>,
        at: &Attempt,
    ) -> Result<(u16, Result<(Secret, Option<Duration>), RegistryError>), RegistryError> {
        let own = Url::parse(&request.uri().to_string())
            .is_ok_and(|realm| same_origin(&realm, &host.options.base));
        let pool = if own { &host.pool } else { &host.pool_elsewhere };
        let (mut head, content) = request.into_parts();
        head.headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let request = Request::from_parts(head, content.body());
        let response = pool.request(request).await;
        let response = response.map_err(|error| RegistryError::from_client(at.clone(), &error))?;
        let (head, body) = response.into_parts();
        let status = head.status;
        let result = match status.as_u16() {
            200..=299 => {
                let body = answer::read_body(body, TOKEN_ANSWER_LEN_MAX, at).await?;
                parse_token(&body).map_err(|found| RegistryError::Corrupt {
                    at: at.clone(),
                    expected: "a token".to_owned(),
                    found,
                })
            }
            401 | 403 => {
                let detail = answer::detail(&answer::read_start(body).await);
                let tried = found.map_or_else(
                    || format!("anonymous ({})", self.credentials.names()),
                    |found| found.source.clone(),
                );
                Err(RegistryError::Unauthorized { at: at.clone(), tried, detail })
            }
            _ => Err(answer::failure(at.clone(), status, &head.headers, body).await),
        };
        Ok((status.as_u16(), result))
    }
}

fn key(host: &Host) -> String {
    format!("{}://{}", host.options.base.scheme(), host.name())
}

fn realm(challenge: &Challenge) -> Option<(Url, Option<String>)> {
    let realm: Url = challenge.parameter("realm")?.parse().ok()?;
    let usable = matches!(realm.scheme(), "http" | "https") && realm.has_host();
    usable.then(|| (realm, challenge.parameter("service").map(str::to_owned)))
}
