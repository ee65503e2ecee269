//! Client of the registries: manifests, small blobs, referrers, uploads.
//!
//! Source: OCI distribution specification 1.1. Everything here is small and on hyper; bulk goes through
//! the engine, which asks [`Repository::locate`] where.

pub(crate) mod answer;
mod authorize;
mod error;
pub(crate) mod exchange;
mod ping;
mod pull;
mod push;
pub(crate) mod redirect;
mod referrers;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method};

pub use error::{Attempt, RegistryError};
pub use exchange::REQUESTS;
pub use ping::{PingError, Pong};
pub use pull::RawManifest;
pub use push::Upload;
pub(crate) use push::subject;

use crate::content::Content;
use crate::credentials::{CredentialSource, Credentials};
use crate::hosts::{Capability, Host, HostsConfig, HostsError, PlainHttp};
use crate::proxy::{Proxies, ProxyError, ProxyOptions};
use crate::reference::Reference;
use crate::trust::TlsOptions;
use authorize::Authorizer;
pub(crate) use authorize::{Proof, Scopes};
use exchange::{Ask, Exchanger};

/// How a client speaks to registries. Nothing is read from the environment.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Where credentials are looked for, best first.
    pub credentials: Vec<CredentialSource>,
    /// `PATH` for credential helpers; `None`: that of this process.
    pub helper_path: Option<OsString>,
    /// Directories in the form of containerd's `certs.d`, best first.
    pub hosts_dirs: Vec<PathBuf>,
    /// Speak plain HTTP to every host without configuration of its own, not to localhost alone.
    pub plain_http: bool,
    /// Trust for all hosts: CA files are added to each, the rest is for hosts without configuration.
    pub tls: TlsOptions,
    /// Proxies.
    pub proxies: ProxyOptions,
    /// Value of the User-Agent header.
    pub user_agent: String,
    /// Time and count.
    pub limits: RegistryLimits,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            credentials: Vec::new(),
            helper_path: None,
            hosts_dirs: Vec::new(),
            plain_http: false,
            tls: TlsOptions::default(),
            proxies: ProxyOptions::default(),
            user_agent: concat!("spanfs/", env!("CARGO_PKG_VERSION")).to_owned(),
            limits: RegistryLimits::default(),
        }
    }
}

/// How long, and how often.
#[derive(Clone, Debug)]
pub struct RegistryLimits {
    /// Making a connection: lookup, TCP, tunnel and TLS.
    pub dial: Duration,
    /// From request to the head of its answer; longer by the body's size for uploads.
    pub answer: Duration,
    /// One try of a request with its body, its authorisation and its redirects.
    pub request: Duration,
    /// All tries on all hosts.
    pub operation: Duration,
    /// Tries at the last host; earlier ones get one.
    pub tries_max: u32,
    /// Wait before the second try, doubled with each further one.
    pub delay_first: Duration,
    /// Longest wait between tries, also if a server asks for more.
    pub delay_max: Duration,
}

impl Default for RegistryLimits {
    fn default() -> Self {
        Self {
            // Two lost SYNs and a slow handshake still fit.
            dial: Duration::from_secs(10),
            // Registries that assemble an answer from a cold store take seconds.
            answer: Duration::from_secs(30),
            // Manifests and configs are small: who trickles longer than this is broken.
            request: Duration::from_secs(60),
            // Long enough for a registry that restarts.
            operation: Duration::from_secs(120),
            tries_max: 5,
            delay_first: Duration::from_millis(200),
            delay_max: Duration::from_secs(20),
        }
    }
}

impl RegistryLimits {
    pub(crate) fn backoff(&self) -> Backoff {
        Backoff { limits: self.clone() }
    }
}

/// Waits between tries.
pub(crate) struct Backoff {
    limits: RegistryLimits,
}

impl Backoff {
    /// After the `failures`-th failure, counted from 1.
    pub(crate) fn delay(&mut self, failures: u32, retry_after: Option<Duration>) -> Duration {
        let step = self.limits.delay_first.saturating_mul(1 << (failures - 1).min(20));
        step.max(retry_after.unwrap_or_default()).min(self.limits.delay_max)
    }
}

/// Options that make no client.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OptionsError {
    /// A proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The user agent.
    #[error("user agent {0:?} has characters that no header can carry")]
    UserAgent(String),
}

/// All registries, with their connections and tokens. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    config: HostsConfig,
    proxies: Arc<Proxies>,
    pub(crate) exchanger: Exchanger,
    /// By registry name. A registry that is named once is named again; names come from the user.
    hosts: Mutex<HashMap<String, Arc<[Arc<Host>]>>>,
}

impl Registry {
    /// A client without connections yet.
    pub fn new(options: RegistryOptions) -> Result<Self, OptionsError> {
        let user_agent = HeaderValue::from_str(&options.user_agent)
            .map_err(|_| OptionsError::UserAgent(options.user_agent.clone()))?;
        let credentials =
            Credentials { sources: options.credentials, helper_path: options.helper_path };
        let plain_http =
            if options.plain_http { PlainHttp::Everywhere } else { PlainHttp::Localhost };
        Ok(Self {
            shared: Arc::new(Shared {
                config: HostsConfig {
                    directories: options.hosts_dirs,
                    plain_http,
                    tls: options.tls,
                },
                proxies: Arc::new(Proxies::new(&options.proxies)?),
                exchanger: Exchanger {
                    authorizer: Authorizer::new(credentials),
                    limits: options.limits,
                    user_agent,
                },
                hosts: Mutex::default(),
            }),
        })
    }

    /// The repository of a reference, on the hosts that are configured for its registry. Their files
    /// are read once for a registry.
    pub fn repository(&self, reference: &Reference) -> Result<Repository, HostsError> {
        Ok(Repository {
            hosts: self.shared.hosts(reference.host())?,
            shared: self.shared.clone(),
            name: reference.repository().to_owned(),
        })
    }

    /// Read the configuration of hosts anew when a registry is named the next time. Repositories that
    /// are in use keep theirs.
    pub fn forget_hosts(&self) {
        self.shared.hosts.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Shared {
    pub(crate) fn proxies(&self) -> &Proxies {
        &self.proxies
    }

    fn hosts(&self, registry: &str) -> Result<Arc<[Arc<Host>]>, HostsError> {
        let mut known = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hosts) = known.get(registry) {
            return Ok(hosts.clone());
        }
        let dial = self.exchanger.limits.dial;
        let host = |options| Arc::new(Host::new(options, registry, &self.proxies, dial));
        let hosts: Arc<[_]> = self.config.hosts(registry)?.into_iter().map(host).collect();
        known.insert(registry.to_owned(), hosts.clone());
        Ok(hosts)
    }
}

/// One repository, on all hosts that serve it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Repository {
    pub(crate) shared: Arc<Shared>,
    pub(crate) hosts: Arc<[Arc<Host>]>,
    /// Path in the registry.
    pub(crate) name: String,
}

impl Repository {
    /// Path in the registry.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn scopes(&self, actions: &str) -> Scopes {
        Scopes::from([format!("repository:{}:{actions}", self.name)])
    }

    pub(crate) fn ask(&self, capability: Capability, method: Method, path: &str) -> Ask {
        let actions = if capability == Capability::Push { "pull,push" } else { "pull" };
        Ask {
            what: format!("{method} {path} of {}", self.name),
            method,
            path: format!("{}/{path}", self.name),
            query: Vec::new(),
            headers: HeaderMap::new(),
            content: Content::empty(),
            scopes: self.scopes(actions),
            capability,
            answer_len_max: ANSWER_LEN_MAX,
        }
    }
}

/// Limit on bodies of answers that carry nothing in particular.
const ANSWER_LEN_MAX: u64 = 1 << 20;

#[cfg(test)]
pub(crate) mod tests;
