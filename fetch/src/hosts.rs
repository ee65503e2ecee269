//! Which hosts serve a registry's name, and how each wants to be spoken to.

mod certs_d;
mod hosts_toml;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, Uri};
use url::Url;

use crate::proxy::Proxies;
use crate::registry::redirect::authority;
use crate::transport::{Connector, Pool};
use crate::trust::{TlsOptions, Trust};

/// Whether connections may be made without TLS where nothing else is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlainHttp {
    /// Only to this machine.
    Localhost,
    /// To every host that has no configuration of its own.
    Everywhere,
}

/// A configured directory or file that can't be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HostsError {
    /// Disk.
    #[error("cannot read {path}: {reason}")]
    Read {
        /// File or directory.
        path: PathBuf,
        /// Cause.
        reason: String,
    },
    /// A registry's name that makes no URL.
    #[error("registry name {registry:?} is not usable: {reason}")]
    Name {
        /// As the reference has it.
        registry: String,
        /// Cause.
        reason: String,
    },
    /// Content.
    #[error("{path}: {reason}")]
    Malformed {
        /// File.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
}

/// What a host may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Capability {
    /// Content by digest.
    Pull,
    /// Digest of a tag.
    Resolve,
    /// List of referrers.
    Referrers,
    /// Uploads.
    Push,
}

/// Set of capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    pull: bool,
    resolve: bool,
    referrers: bool,
    push: bool,
}

impl Capabilities {
    pub(crate) const ALL: Self = Self { pull: true, resolve: true, referrers: true, push: true };
    pub(crate) const NONE: Self =
        Self { pull: false, resolve: false, referrers: false, push: false };

    pub(crate) fn has(&self, capability: Capability) -> bool {
        match capability {
            Capability::Pull => self.pull,
            Capability::Resolve => self.resolve,
            Capability::Referrers => self.referrers,
            Capability::Push => self.push,
        }
    }

    /// Add one by its name in hosts.toml; false if there is none of that name.
    fn add(&mut self, name: &str) -> bool {
        match name {
            "pull" => self.pull = true,
            // Who may say what a tag means may say what refers to it.
            "resolve" => (self.resolve, self.referrers) = (true, true),
            "referrers" => self.referrers = true,
            "push" => self.push = true,
            _ => return false,
        }
        true
    }
}

/// How to speak to one host, as configured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HostOptions {
    /// Base of all requests, without a slash at its end: `https://h.example/v2`.
    pub(crate) base: Url,
    pub(crate) capabilities: Capabilities,
    pub(crate) tls: TlsOptions,
    /// Sent with every request to this host, and to no other.
    pub(crate) headers: HeaderMap,
    pub(crate) dial_timeout: Option<Duration>,
}

/// One host that serves a registry's name.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) options: HostOptions,
    /// Value of the query `ns` where this is not the registry's own host.
    pub(crate) namespace: Option<String>,
    pub(crate) trust: Arc<Trust>,
    /// Trust towards hosts that this one redirects to.
    pub(crate) trust_elsewhere: Arc<Trust>,
    pub(crate) dial_timeout: Duration,
    pub(crate) pool: Pool,
    pub(crate) pool_elsewhere: Pool,
    /// A host that can't be reached is left alone until then, if there is another.
    resting_until: Mutex<Option<Instant>>,
}

/// How long an unreachable mirror is left alone: its timeouts would slow down every request.
const REST: Duration = Duration::from_secs(30);

impl Host {
    pub(crate) fn new(
        options: HostOptions,
        registry: &str,
        proxies: &Arc<Proxies>,
        dial_timeout: Duration,
    ) -> Self {
        let dial_timeout = options.dial_timeout.unwrap_or(dial_timeout);
        let trust = Arc::new(Trust::new(options.tls.clone()));
        let trust_elsewhere = Arc::new(Trust::new(options.tls.without_identity()));
        let connector = |trust: &Arc<Trust>| Connector {
            trust: trust.clone(),
            proxies: proxies.clone(),
            dial_timeout,
        };
        let named = origin_url(registry, options.base.scheme());
        let is_origin = named.is_ok_and(|named| authority(&named) == authority(&options.base));
        Self {
            namespace: (!is_origin).then(|| registry.to_owned()),
            pool: Pool::new(connector(&trust)),
            pool_elsewhere: Pool::new(connector(&trust_elsewhere)),
            trust,
            trust_elsewhere,
            dial_timeout,
            resting_until: Mutex::default(),
            options,
        }
    }

    /// True while it is to be left alone.
    pub(crate) fn is_resting(&self) -> bool {
        let until = *self.resting_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// It could not be reached.
    pub(crate) fn rest(&self) {
        let until = Instant::now() + REST;
        *self.resting_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// True for the host that the registry's name itself means.
    pub(crate) fn is_origin(&self) -> bool {
        self.namespace.is_none()
    }

    /// `host[:port]`.
    pub(crate) fn name(&self) -> String {
        authority(&self.options.base)
    }

    /// URL of an object below the base, with `ns` where it belongs.
    pub(crate) fn url(&self, path: &str, query: &[(String, String)]) -> Url {
        let mut url = self.options.base.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/{path}"));
        for (name, value) in query {
            url.query_pairs_mut().append_pair(name, value);
        }
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }
}

/// The form in which hyper wants a URL.
pub(crate) fn to_uri(url: &Url) -> Result<Uri, String> {
    url.as_str().parse().map_err(|error| format!("URL can't be requested: {error}"))
}

/// Where the hosts of a registry's name come from.
#[derive(Clone, Debug)]
pub(crate) struct HostsConfig {
    /// Directories in the form of containerd's `certs.d`; earlier ones win.
    pub(crate) directories: Vec<PathBuf>,
    pub(crate) plain_http: PlainHttp,
    /// TLS settings for hosts without configuration, and added CA files for all others.
    pub(crate) tls: TlsOptions,
}

impl HostsConfig {
    /// Hosts of a name, mirrors first, the registry's own host last; not empty.
    pub(crate) fn hosts(&self, registry: &str) -> Result<Vec<HostOptions>, HostsError> {
        for directory in &self.directories {
            for name in directory_names(registry) {
                let directory = directory.join(name);
                if directory.is_dir() {
                    let mut hosts = self.in_directory(&directory, registry)?;
                    for host in &mut hosts {
                        host.tls.ca_files.extend(self.tls.ca_files.iter().cloned());
                    }
                    return Ok(hosts);
                }
            }
        }
        Ok(vec![self.origin(registry, self.tls.clone())?])
    }

    fn in_directory(&self, dir: &Path, registry: &str) -> Result<Vec<HostOptions>, HostsError> {
        let path = dir.join("hosts.toml");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let tls = certs_d::read(dir)?;
                return Ok(vec![self.origin(registry, tls)?]);
            }
            Err(error) => return Err(HostsError::Read { path, reason: error.to_string() }),
        };
        let origin = self.origin(registry, TlsOptions::default())?;
        hosts_toml::parse(&text, dir, origin)
            .map_err(|reason| HostsError::Malformed { path, reason })
    }

    /// The registry's own host, as its name means it.
    fn origin(&self, registry: &str, tls: TlsOptions) -> Result<HostOptions, HostsError> {
        let everywhere = self.plain_http == PlainHttp::Everywhere;
        // TLS settings for a local registry mean that it speaks TLS.
        let plain = !tls.is_special() && (everywhere || is_local(registry))
            || everywhere && tls == self.tls;
        Ok(HostOptions {
            base: origin_url(registry, if plain { "http" } else { "https" })?,
            capabilities: Capabilities::ALL,
            tls,
            headers: HeaderMap::new(),
            dial_timeout: None,
        })
    }
}

/// What a `hosts.toml` of some registry says, as base URLs.
pub(crate) fn parse_for_fuzzing(text: &str, directory: &Path) -> Result<Vec<String>, String> {
    let origin = HostOptions {
        base: Url::parse("https://registry.test/v2").map_err(|error| error.to_string())?,
        capabilities: Capabilities::ALL,
        tls: TlsOptions::default(),
        headers: HeaderMap::new(),
        dial_timeout: None,
    };
    let hosts = hosts_toml::parse(text, directory, origin)?;
    Ok(hosts.into_iter().map(|host| host.base.to_string()).collect())
}

/// Names of a registry's directory, most special first. The form with underscores is for file systems
/// that have no colon.
fn directory_names(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    names
}

/// Docker Hub's name is not its host's.
fn origin_url(registry: &str, scheme: &str) -> Result<Url, HostsError> {
    let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
    Url::parse(&format!("{scheme}://{host}/v2")).map_err(|error| HostsError::Name {
        registry: registry.to_owned(),
        reason: error.to_string(),
    })
}

/// True for names of this machine.
pub(crate) fn is_local(registry: &str) -> bool {
    let Ok(url) = Url::parse(&format!("http://{registry}/")) else { return false };
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests;
