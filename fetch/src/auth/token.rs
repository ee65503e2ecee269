//! Bearer tokens: fetched once for many, renewed before they expire.
//!
//! Source: the distribution project's token and OAuth2 specifications. With credentials we POST first
//! and fall back to GET, since servers implement either.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request, header};
use url::Url;

use crate::content::Content;
use crate::credentials::{Login, Secret};

/// What OAuth2 token servers log as the asking program.
const CLIENT_ID: &str = "spanfs";
/// Tokens are one per repository in use; beyond this the oldest use must ask again.
const TOKENS_MAX: usize = 1024;
/// A token is renewed this long before its end, or at five sixths of its life if that is later.
const RENEW_BEFORE_MAX: Duration = Duration::from_secs(30);
/// No token server has a reason to speak of more than some years.
const LIFE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What identifies a token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TokenRequest {
    pub(crate) realm: Url,
    pub(crate) service: Option<String>,
    pub(crate) scopes: BTreeSet<String>,
}

/// A token that can be used now.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) value: Secret,
    pub(crate) renew_at: Option<Instant>,
    /// For whom it was given, for messages.
    pub(crate) source: String,
}

/// What a token server gave: the token, its life if it has an end, and for whom.
pub(crate) type Granted = (Secret, Option<Duration>, String);

type Slot = Arc<tokio::sync::Mutex<Option<Token>>>;

/// All tokens of a client. One exchange per token at a time: who comes meanwhile waits for it.
#[derive(Debug, Default)]
pub(crate) struct TokenService {
    slots: Mutex<HashMap<TokenRequest, Slot>>,
}

impl TokenService {
    /// The token, from the cache or by `exchange`, which is else not begun.
    /// `rejected`: the value that a server just refused.
    pub(crate) async fn get<E>(
        &self,
        request: &TokenRequest,
        rejected: Option<&Secret>,
        exchange: impl Future<Output = Result<Granted, E>>,
    ) -> Result<Token, E> {
        let slot = self.slot(request);
        let mut held = slot.lock().await;
        let now = Instant::now();
        if let Some(token) = held.as_ref() {
            let fresh = token.renew_at.is_none_or(|at| now < at);
            if fresh && Some(&token.value) != rejected {
                return Ok(token.clone());
            }
        }
        *held = None;
        let (value, life, source) = exchange.await?;
        let renew_at = life.map(|life| Instant::now() + renew_after(life));
        let token = Token { value, renew_at, source };
        *held = Some(token.clone());
        Ok(token)
    }

    fn slot(&self, request: &TokenRequest) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= TOKENS_MAX && !slots.contains_key(request) {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        slots.entry(request.clone()).or_default().clone()
    }
}

fn renew_after(life: Duration) -> Duration {
    let life = life.min(LIFE_MAX);
    life - (life / 6).min(RENEW_BEFORE_MAX)
}

impl TokenRequest {
    /// OAuth2 form; `None` without credentials, which only GET serves.
    pub(crate) fn post(&self, login: Option<&Login>) -> Option<Request<Content>> {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        match login? {
            Login::Password { username, password } => form
                .append_pair("grant_type", "password")
                .append_pair("username", username)
                .append_pair("password", password.reveal()),
            Login::IdentityToken(token) => form
                .append_pair("grant_type", "refresh_token")
                .append_pair("refresh_token", token.reveal()),
            Login::RegistryToken(_) => return None,
        };
        form.append_pair("client_id", CLIENT_ID);
        if let Some(service) = &self.service {
            form.append_pair("service", service);
        }
        if !self.scopes.is_empty() {
            form.append_pair("scope", &Vec::from_iter(self.scopes.iter().cloned()).join(" "));
        }
        Request::builder()
            .method(Method::POST)
            .uri(self.realm.as_str())
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Content::Bytes(form.finish().into()))
            .ok()
    }

    /// Token by query, with Basic where there is a password; `None` if the realm makes no request.
    pub(crate) fn get(&self, login: Option<&Login>) -> Option<Request<Content>> {
        let mut url = self.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &self.service {
                query.append_pair("service", service);
            }
            for scope in &self.scopes {
                query.append_pair("scope", scope);
            }
            if let Some(Login::Password { username, .. }) = login {
                query.append_pair("account", username);
            }
        }
        // An empty query would leave a lone question mark.
        if url.query() == Some("") {
            url.set_query(None);
        }
        let mut request = Request::builder().method(Method::GET).uri(url.as_str());
        if let Some(value) = login.and_then(basic) {
            request = request.header(header::AUTHORIZATION, value);
        }
        request.body(Content::empty()).ok()
    }

    /// Whether a POST's failure means that the server wants GET.
    pub(crate) fn wants_get(status: u16, login: &Login) -> bool {
        let password = matches!(login, Login::Password { .. });
        matches!(status, 400 | 401 | 404 | 405) && password
    }
}

/// Value of a Basic `Authorization`, where there are a name and a password.
pub(crate) fn basic(login: &Login) -> Option<http::HeaderValue> {
    let Login::Password { username, password } = login else { return None };
    let pair = STANDARD.encode(format!("{username}:{}", password.reveal()));
    sensitive(&format!("Basic {pair}"))
}

/// Value of a Bearer `Authorization`.
pub(crate) fn bearer(token: &Secret) -> Option<http::HeaderValue> {
    sensitive(&format!("Bearer {}", token.reveal()))
}

fn sensitive(text: &str) -> Option<http::HeaderValue> {
    let mut value = http::HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Token and life from an answer's body; the reason, never the body, if there is none.
pub(crate) fn parse_token(body: &[u8]) -> Result<(Secret, Option<Duration>), String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        access_token: Option<String>,
        token: Option<String>,
        expires_in: Option<f64>,
    }
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|e| format!("answer is not a token's JSON ({:?} error)", e.classify()))?;
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let value = filled(answer.access_token)
        .or_else(|| filled(answer.token))
        .ok_or("answer has neither access_token nor token")?;
    // Absent or nonsense: the token is good until it is refused.
    let seconds = answer.expires_in.filter(|s| s.is_finite() && *s > 0.0);
    Ok((
        Secret::new(value),
        seconds.map(|s| Duration::from_secs_f64(s.min(LIFE_MAX.as_secs_f64()))),
    ))
}

#[cfg(test)]
mod tests;
