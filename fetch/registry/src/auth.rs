//! Who may do what: none, basic, or bearer tokens from the registry's own token endpoint.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use spanfs_layer::Digest;

/// A name and its password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Name of the user.
    pub username: String,
    /// Password or access key.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Both parts.
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self { username: username.into(), password: password.into() }
    }

    fn from_header(header: &str) -> Option<Self> {
        let (scheme, encoded) = header.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
        let (username, password) = text.split_once(':')?;
        Some(Self::new(username, password))
    }
}

/// How the registry asks who is there.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    /// It doesn't.
    #[default]
    Open,
    /// `WWW-Authenticate: Basic`.
    Basic(Credentials),
    /// `WWW-Authenticate: Bearer`, with tokens from `/token`.
    Bearer(Bearer),
}

/// How tokens are given out.
#[derive(Clone, Debug)]
pub struct Bearer {
    /// Who gets every scope that he asks for; by Basic at GET, by form at POST.
    pub credentials: Credentials,
    /// A refresh (identity) token that is as good as the credentials.
    pub refresh_token: Option<String>,
    /// Whether anybody gets `pull`.
    pub anonymous_pull: bool,
    /// Life of a token.
    pub lifetime: Duration,
}

impl Bearer {
    /// Tokens of five minutes for `credentials` alone.
    pub fn new(credentials: Credentials) -> Self {
        let lifetime = Duration::from_secs(300);
        Self { credentials, refresh_token: None, anonymous_pull: false, lifetime }
    }
}

/// What a request is about to do to a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Pull,
    Push,
}

impl Action {
    pub(crate) fn of(method: &http::Method) -> Self {
        match *method {
            http::Method::GET | http::Method::HEAD => Self::Pull,
            _ => Self::Push,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
        }
    }

    fn scope(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
        }
    }
}

const SERVICE: &str = "spanfs-registry";
/// Tokens alive at once; beyond it the expired go, then nothing more is given out.
const TOKENS_MAX: usize = 1 << 16;

/// Tokens given out.
#[derive(Debug)]
pub(crate) struct Gate {
    auth: Auth,
    secret: String,
    count: u64,
    tokens: HashMap<String, Grant>,
}

#[derive(Debug)]
struct Grant {
    scopes: Vec<String>,
    expires: Instant,
}

/// What a client says of itself at the token endpoint.
#[derive(Debug, Default)]
pub(crate) struct TokenRequest {
    pub(crate) authorization: Option<String>,
    /// Query of a GET or form of a POST.
    pub(crate) fields: Vec<(String, String)>,
}

impl TokenRequest {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn credentials(&self) -> Option<Credentials> {
        match self.field("grant_type") {
            Some("password") => {
                Some(Credentials::new(self.field("username")?, self.field("password")?))
            }
            _ => Credentials::from_header(self.authorization.as_deref()?),
        }
    }

    /// One scope a parameter, or several in one, apart by spaces (both are in use).
    fn scopes(&self) -> impl Iterator<Item = &str> {
        let scopes = self.fields.iter().filter(|(key, _)| key == "scope");
        scopes.flat_map(|(_, value)| value.split(' ')).filter(|scope| !scope.is_empty())
    }
}

impl Gate {
    pub(crate) fn new(auth: Auth, secret: String) -> Self {
        Self { auth, secret, count: 0, tokens: HashMap::new() }
    }

    /// Forget every token, as a registry does that was restarted with a new key.
    pub(crate) fn revoke(&mut self) {
        self.tokens.clear();
    }

    /// Whether the request may pass; else the challenge. `realm` is the token endpoint's URL.
    pub(crate) fn check(
        &self,
        authorization: Option<&str>,
        repository: Option<&str>,
        action: Action,
        realm: &str,
        now: Instant,
    ) -> Result<(), String> {
        match &self.auth {
            Auth::Open => Ok(()),
            Auth::Basic(wanted) => match authorization.and_then(Credentials::from_header) {
                Some(given) if given == *wanted => Ok(()),
                _ => Err(format!("Basic realm=\"{SERVICE}\"")),
            },
            Auth::Bearer(_) => {
                let token = authorization.and_then(|header| header.strip_prefix("Bearer "));
                let grant = token.and_then(|token| self.tokens.get(token));
                let grant = grant.filter(|grant| now < grant.expires);
                let challenge = format!("Bearer realm=\"{realm}\",service=\"{SERVICE}\"");
                let Some(repository) = repository else {
                    return grant.map(|_| ()).ok_or(challenge);
                };
                if grant.is_some_and(|grant| grant.allows(repository, action)) {
                    return Ok(());
                }
                let error = if token.is_some() { ",error=\"invalid_token\"" } else { "" };
                let scope = action.scope();
                Err(format!("{challenge},scope=\"repository:{repository}:{scope}\"{error}"))
            }
        }
    }

    /// A token for what was asked for and is allowed, as the endpoint's JSON; `None` is a 401.
    pub(crate) fn issue(&mut self, request: &TokenRequest, now: Instant) -> Option<String> {
        let Auth::Bearer(bearer) = &self.auth else { return None };
        let lifetime = bearer.lifetime;
        let refresh = request.field("refresh_token");
        let known = match (request.credentials(), refresh) {
            (_, Some(token)) => (Some(token) == bearer.refresh_token.as_deref()).then_some(true)?,
            (Some(given), None) => (given == bearer.credentials).then_some(true)?,
            (None, None) => false,
        };
        let anonymous_pull = bearer.anonymous_pull;
        let scopes = request.scopes().filter_map(|scope| match (known, anonymous_pull) {
            (true, _) => Some(scope.to_owned()),
            (false, true) => pull_alone(scope),
            (false, false) => None,
        });
        let scopes = scopes.collect();
        if self.tokens.len() >= TOKENS_MAX {
            self.tokens.retain(|_, grant| now < grant.expires);
        }
        if self.tokens.len() >= TOKENS_MAX {
            return None;
        }
        self.count += 1;
        let token = Digest::of(format!("{}:{}", self.secret, self.count).as_bytes());
        let token = token.hex().to_string();
        self.tokens.insert(token.clone(), Grant { scopes, expires: now + lifetime });
        let seconds = lifetime.as_secs();
        let answer = serde_json::json!({
            "token": token, "access_token": token, "expires_in": seconds,
        });
        Some(answer.to_string())
    }
}

impl Grant {
    /// A scope is `repository:NAME:ACTION,ACTION`.
    fn allows(&self, repository: &str, action: Action) -> bool {
        self.scopes.iter().any(|scope| {
            scope
                .strip_prefix("repository:")
                .and_then(|rest| rest.strip_prefix(repository))
                .and_then(|rest| rest.strip_prefix(':'))
                .is_some_and(|actions| {
                    actions.split(',').any(|given| given == action.name() || given == "*")
                })
        })
    }
}

fn pull_alone(scope: &str) -> Option<String> {
    let (resource, actions) = scope.rsplit_once(':')?;
    actions.split(',').any(|action| action == "pull").then(|| format!("{resource}:pull"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(anonymous_pull: bool) -> Gate {
        let mut bearer = Bearer::new(Credentials::new("u", "p"));
        bearer.anonymous_pull = anonymous_pull;
        Gate::new(Auth::Bearer(bearer), "secret".into())
    }

    fn token(gate: &mut Gate, authorization: Option<&str>, scope: &str) -> Option<String> {
        let request = TokenRequest {
            authorization: authorization.map(str::to_owned),
            fields: vec![("scope".into(), scope.into())],
        };
        let answer = gate.issue(&request, Instant::now())?;
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        Some(format!("Bearer {}", answer["token"].as_str().unwrap()))
    }

    #[test]
    fn tokens_open_what_they_name_until_they_expire() {
        let mut gate = gate(false);
        let basic = format!("Basic {}", STANDARD.encode("u:p"));
        let token = token(&mut gate, Some(&basic), "repository:a/b:pull").unwrap();
        let now = Instant::now();
        let check = |repository, action, at| {
            gate.check(Some(&token), Some(repository), action, "r", at).is_ok()
        };
        assert!(check("a/b", Action::Pull, now));
        assert!(!check("a/b", Action::Push, now));
        assert!(!check("a", Action::Pull, now));
        assert!(!check("a/b", Action::Pull, now + Duration::from_secs(301)));
        let challenge = gate.check(None, Some("a/b"), Action::Push, "http://r/token", now);
        let scope = "scope=\"repository:a/b:pull,push\"";
        assert!(challenge.unwrap_err().ends_with(scope));
    }

    #[test]
    fn strangers_may_pull_at_most() {
        let scope = "repository:a:pull,push";
        let mut open = gate(true);
        let token_open = token(&mut open, None, scope).unwrap();
        let now = Instant::now();
        let may = |action| open.check(Some(&token_open), Some("a"), action, "", now).is_ok();
        assert!(may(Action::Pull) && !may(Action::Push));
        let mut closed = gate(false);
        let token_closed = token(&mut closed, None, scope).unwrap();
        assert!(closed.check(Some(&token_closed), Some("a"), Action::Pull, "", now).is_err());
        let wrong = format!("Basic {}", STANDARD.encode("u:x"));
        assert_eq!(token(&mut closed, Some(&wrong), scope), None);
    }
}
