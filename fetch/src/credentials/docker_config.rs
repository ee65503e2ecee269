//! `config.json` of Docker, as far as it tells credentials.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use super::helper::Helpers;
use super::{CredentialsError, Found, Login, Secret, canonical, same_host, server_key};

/// Far more than any real one.
const CONFIG_LEN_MAX: u64 = 4 << 20;

#[derive(Default, serde::Deserialize)]
#[serde(default)]
pub(super) struct DockerConfig {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credHelpers")]
    cred_helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    creds_store: Option<String>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl DockerConfig {
    /// Read a file; `None` if there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, CredentialsError> {
        let unreadable = |error: std::io::Error| CredentialsError::Read {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(unreadable)?,
        };
        let mut text = Vec::new();
        file.take(CONFIG_LEN_MAX + 1).read_to_end(&mut text).map_err(unreadable)?;
        Self::parse(&text)
            .map(Some)
            .map_err(|reason| CredentialsError::Malformed { path: path.to_owned(), reason })
    }

    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        if text.len() as u64 > CONFIG_LEN_MAX {
            return Err(format!("longer than {CONFIG_LEN_MAX} bytes"));
        }
        // The parser's own message can quote a value, so only its place is told.
        serde_json::from_slice(text).map_err(|error| {
            format!(
                "{:?} error at line {} column {}",
                error.classify(),
                error.line(),
                error.column()
            )
        })
    }

    /// Order of Docker: helper of this host, helper of all hosts, entry in the file.
    pub(super) async fn find(
        &self,
        path: &Path,
        host: &str,
        helpers: &Helpers<'_>,
    ) -> Result<Option<Found>, CredentialsError> {
        let own = self.cred_helpers.iter().find(|(server, _)| same_host(server, host));
        let name = own.map(|(_, name)| name).or(self.creds_store.as_ref());
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            let login = helpers.ask(name, server_key(host)).await?;
            if let Some(login) = login {
                let source = format!("credential helper {name} ({})", path.display());
                return Ok(Some(Found { login, source }));
            }
        }
        let Some(entry) = self.entry(host) else { return Ok(None) };
        let login = entry.login().map_err(|reason| CredentialsError::Malformed {
            path: path.to_owned(),
            reason: format!("auths of {}: {reason}", canonical(host)),
        })?;
        Ok(login.map(|login| Found { login, source: path.display().to_string() }))
    }

    fn entry(&self, host: &str) -> Option<&Entry> {
        let exact = self.auths.get(server_key(host)).or_else(|| self.auths.get(host));
        exact.or_else(|| self.auths.iter().find(|(s, _)| same_host(s, host)).map(|(_, e)| e))
    }
}

/// Logins by host, out of a text in the form of Docker's `config.json`: the content of a secret of
/// Kubernetes, where helpers would be nobody's programs.
pub struct DockerAuths(DockerConfig);

impl DockerAuths {
    /// Read the text. An error never repeats it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        DockerConfig::parse(text).map(Self)
    }

    /// The login for a host.
    pub fn login(&self, host: &str) -> Result<Option<Login>, &'static str> {
        self.0.entry(host).map_or(Ok(None), Entry::login)
    }
}

impl Entry {
    fn login(&self) -> Result<Option<Login>, &'static str> {
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = filled(&self.registrytoken) {
            return Ok(Some(Login::RegistryToken(Secret::new(token))));
        }
        if let Some(token) = filled(&self.identitytoken) {
            return Ok(Some(Login::IdentityToken(Secret::new(token))));
        }
        let pair = match filled(&self.auth) {
            Some(auth) => Some(decode(&auth)?),
            None => filled(&self.username).zip(filled(&self.password)),
        };
        Ok(pair.map(|(username, password)| match username.as_str() {
            "<token>" => Login::IdentityToken(Secret::new(password)),
            _ => Login::Password { username, password: Secret::new(password) },
        }))
    }
}

fn decode(auth: &str) -> Result<(String, String), &'static str> {
    let auth = auth.trim();
    let bytes = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth));
    let text = String::from_utf8(bytes.map_err(|_| "auth is not base64")?);
    let text = text.map_err(|_| "auth is not UTF-8")?;
    let (username, password) = text.split_once(':').ok_or("auth is not user:password")?;
    Ok((username.to_owned(), password.trim_matches('\0').to_owned()))
}
