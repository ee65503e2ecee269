//! Why a registry did not do what it was asked to.

use std::fmt;
use std::time::Duration;

use http::StatusCode;

use crate::Class;
use crate::transport::{ConnectError, Stage};

/// What was attempted, and at which host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// For example `manifest v1 of library/alpine`.
    pub what: String,
    /// Host and port.
    pub host: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.what, self.host)
    }
}

/// A request that failed for good: after its retries, on every host that may serve it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection, or it broke.
    #[error("{at}: {reason}")]
    Unreachable {
        /// What was attempted.
        at: Attempt,
        /// How far it came.
        reason: String,
    },
    /// The time is up.
    #[error("{at}: not complete within {waited:?}")]
    TimedOut {
        /// What was attempted.
        at: Attempt,
        /// The limit.
        waited: Duration,
    },
    /// 408, 429 or 5xx.
    #[error("{at}: answered {status}{detail}")]
    Unavailable {
        /// What was attempted.
        at: Attempt,
        /// The answer.
        status: StatusCode,
        /// The server's words, with a separator in front, or nothing.
        detail: String,
        /// How long the server wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// 401, with and without our credentials.
    #[error(
        "{at}: 401 unauthorized; tried: {tried}{detail}; log in to this registry or name other credentials"
    )]
    Unauthorized {
        /// What was attempted.
        at: Attempt,
        /// Sources of credentials, never the credentials.
        tried: String,
        /// The server's words.
        detail: String,
    },
    /// 403.
    #[error("{at}: 403 forbidden{detail}; these credentials may not do this")]
    Denied {
        /// What was attempted.
        at: Attempt,
        /// The server's words.
        detail: String,
    },
    /// 404 or 410.
    #[error("{at}: not found{detail}")]
    NotFound {
        /// What was attempted.
        at: Attempt,
        /// The server's words.
        detail: String,
    },
    /// Any other status.
    #[error("{at}: unexpected answer {status}{detail}")]
    Unexpected {
        /// What was attempted.
        at: Attempt,
        /// The answer.
        status: StatusCode,
        /// The server's words.
        detail: String,
    },
    /// The bytes are not what was promised.
    #[error("{at}: expected {expected}, found {found}")]
    Corrupt {
        /// What was attempted.
        at: Attempt,
        /// Digest, length or form.
        expected: String,
        /// Its counterpart.
        found: String,
    },
    /// We won't: a redirect or a setting that is not safe or not usable.
    #[error("{at}: {reason}")]
    Refused {
        /// What was attempted.
        at: Attempt,
        /// Why not.
        reason: String,
    },
    /// Every host failed, in its own way.
    #[error("{}", list(.0))]
    AllHosts(Vec<RegistryError>),
}

impl RegistryError {
    /// What a caller can do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Unavailable { .. } => {
                Class::Retry
            }
            Self::Unauthorized { .. } | Self::Denied { .. } => Class::Refused,
            Self::Unexpected { .. } | Self::Refused { .. } => Class::Refused,
            Self::NotFound { .. } => Class::Gone,
            Self::Corrupt { .. } => Class::Corrupt,
            // The origin comes last and knows best, unless another host may do better later.
            Self::AllHosts(errors) => {
                let retry = errors.iter().any(|error| error.class() == Class::Retry);
                let last = errors.last().map_or(Class::Gone, Self::class);
                if retry { Class::Retry } else { last }
            }
        }
    }

    /// How long the server wants to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether another try at the same host is worth it.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Unavailable { .. } => true,
            // A body that was damaged on its way is whole the next time, or the other host's is.
            Self::Corrupt { .. } => true,
            _ => false,
        }
    }

    /// From an error of the HTTP client.
    pub(crate) fn from_client(at: Attempt, error: &hyper_util::client::legacy::Error) -> Self {
        let mut cause: Option<&dyn std::error::Error> = Some(error);
        let mut texts: Vec<String> = Vec::new();
        while let Some(error) = cause {
            if let Some(connect) = error.downcast_ref::<ConnectError>() {
                let reason = connect.to_string();
                // A certificate that is not believed today is not believed in a second either.
                return match connect.stage == Stage::Tls && reason.contains("certificate") {
                    true => Self::Refused { at, reason },
                    false => Self::Unreachable { at, reason },
                };
            }
            texts.push(error.to_string());
            cause = error.source();
        }
        texts.dedup();
        Self::Unreachable { at, reason: texts.join(": ") }
    }
}

fn list(errors: &[RegistryError]) -> String {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    format!("no host could serve it: {}", texts.join("; "))
}
