//! Who we are to a registry: given values, `config.json` of Docker, and its credential helpers.

mod docker_config;
mod helper;

use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use docker_config::DockerAuths;
use docker_config::DockerConfig;

/// Name under which Docker keeps the credentials of Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// A helper may ask the user or the network; longer than this is a hang.
const HELPER_DEADLINE: Duration = Duration::from_secs(20);

/// A text that no log and no error shows.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Keep a text secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the wire alone.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// What proves who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// User name and password.
    Password {
        /// User name.
        username: String,
        /// Password or personal token.
        password: Secret,
    },
    /// OAuth2 refresh token, which Docker calls identity token.
    IdentityToken(Secret),
    /// Ready bearer token.
    RegistryToken(Secret),
}

/// A place where credentials are looked for.
#[derive(Clone, Debug)]
pub enum CredentialSource {
    /// Given by the caller.
    Given {
        /// Registry as references name it; `None`: the registry of the reference, never a mirror.
        host: Option<String>,
        /// What to say to it.
        login: Login,
        /// How messages name this source, for example `environment`.
        name: String,
    },
    /// A `config.json` of Docker; it need not exist. Read anew for every lookup.
    DockerConfig(PathBuf),
    /// Somebody who knows them from elsewhere, asked for every lookup.
    Lookup(CredentialLookup),
}

/// A login, or none, once it is known.
pub type FoundLogin = Pin<Box<dyn Future<Output = Result<Option<Login>, CredentialsError>> + Send>>;

/// Finds a login by the host and the repository that is about to be used.
pub type FindLogin = dyn Fn(&str, &str) -> FoundLogin + Send + Sync;

/// A source of credentials of the caller's.
#[derive(Clone)]
pub struct CredentialLookup {
    /// How messages name this source.
    pub name: String,
    /// Finds them, within a time of its own.
    pub find: Arc<FindLogin>,
}

impl CredentialLookup {
    /// A source named `name`.
    pub fn new<F, Found>(name: impl Into<String>, find: F) -> Self
    where
        F: Fn(&str, &str) -> Found + Send + Sync + 'static,
        Found: Future<Output = Result<Option<Login>, CredentialsError>> + Send + 'static,
    {
        let find =
            move |host: &str, repository: &str| -> FoundLogin { Box::pin(find(host, repository)) };
        Self { name: name.into(), find: Arc::new(find) }
    }
}

impl fmt::Debug for CredentialLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CredentialLookup").field(&self.name).finish()
    }
}

/// Credentials and where they came from.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// What to say.
    pub login: Login,
    /// Source, for messages.
    pub source: String,
}

/// Why credentials could not be looked up.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file can't be read.
    #[error("cannot read {path}: {reason}")]
    Read {
        /// Configuration file.
        path: PathBuf,
        /// Cause.
        reason: String,
    },
    /// The file is not what it should be.
    #[error("{path} is not a docker configuration: {reason}")]
    Malformed {
        /// Configuration file.
        path: PathBuf,
        /// Position and kind; never the content.
        reason: String,
    },
    /// A helper failed.
    #[error("credential helper {program} for {server}: {reason}")]
    Helper {
        /// Program name.
        program: String,
        /// Registry asked for.
        server: String,
        /// What went wrong.
        reason: String,
    },
}

/// Whether a host is the one that the reference names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Origin,
    Mirror,
}

/// All sources, in order of preference.
#[derive(Clone, Debug, Default)]
pub(crate) struct Credentials {
    pub(crate) sources: Vec<CredentialSource>,
    /// Where helper programs are; `None`: the `PATH` of this process.
    pub(crate) helper_path: Option<OsString>,
}

impl Credentials {
    /// First match for a host. An error of one source ends the search: going on anonymously would
    /// hide it behind a 401.
    pub(crate) async fn find(
        &self,
        host: &str,
        role: Role,
        repositories: &[&str],
    ) -> Result<Option<Found>, CredentialsError> {
        for source in &self.sources {
            let found = match source {
                CredentialSource::Given { host: only, login, name } => {
                    let matches =
                        only.as_ref().map_or(role == Role::Origin, |o| same_host(o, host));
                    matches.then(|| Found { login: login.clone(), source: name.clone() })
                }
                CredentialSource::Lookup(lookup) => {
                    let mut login = None;
                    for repository in repositories {
                        login = (lookup.find)(canonical(host), repository).await?;
                        if login.is_some() {
                            break;
                        }
                    }
                    login.map(|login| Found { login, source: lookup.name.clone() })
                }
                CredentialSource::DockerConfig(path) => match DockerConfig::read(path)? {
                    None => None,
                    Some(config) => config.find(path, host, &self.helper()).await?,
                },
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn helper(&self) -> helper::Helpers<'_> {
        helper::Helpers { path: self.helper_path.as_deref(), deadline: HELPER_DEADLINE }
    }

    /// Sources for a message that says what was tried.
    pub(crate) fn names(&self) -> String {
        let name = |source: &CredentialSource| match source {
            CredentialSource::Given { name, .. } => name.clone(),
            CredentialSource::Lookup(lookup) => lookup.name.clone(),
            CredentialSource::DockerConfig(path) => path.display().to_string(),
        };
        match self.sources.is_empty() {
            true => "no source of credentials is configured".to_owned(),
            false => self.sources.iter().map(name).collect::<Vec<_>>().join(", "),
        }
    }
}

/// Whether two spellings name one registry.
fn same_host(a: &str, b: &str) -> bool {
    canonical(a) == canonical(b)
}

/// A registry's name without scheme and path, with one name for Docker Hub.
fn canonical(server: &str) -> &str {
    let bare = server.split_once("://").map_or(server, |(_, rest)| rest);
    let host = bare.split('/').next().unwrap_or(bare);
    match host {
        "index.docker.io" | "registry-1.docker.io" | "docker.io" => "docker.io",
        other => other,
    }
}

/// The key under which helpers keep a host.
fn server_key(host: &str) -> &str {
    match canonical(host) {
        "docker.io" => HUB_KEY,
        other => other,
    }
}

/// Whether a Docker configuration can be read at all.
pub(crate) fn parse_for_fuzzing(text: &[u8]) -> Result<(), String> {
    DockerConfig::parse(text).map(drop)
}

#[cfg(test)]
mod tests;
