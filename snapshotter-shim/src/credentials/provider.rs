//! The kubelet's credential providers: programs that know logins for images that match patterns.
//!
//! Configuration and protocol are `kubelet.config.k8s.io/v1` and `credentialprovider.kubelet.k8s.io/v1`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use spanfs_fetch::{Login, Secret};
use tokio::sync::Mutex;

use super::kubeconfig::{KubeconfigError, Variable, bounded};
use super::program::Program;
use crate::soci::duration;

const CONFIG_VERSION: &str = "kubelet.config.k8s.io/v1";
const VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];
/// Answers that are kept for each provider.
const KEPT_MAX: usize = 1024;
const PROVIDERS_MAX: usize = 64;

/// Why there are no providers.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The file can't be read.
    #[error(transparent)]
    Read(#[from] KubeconfigError),
    /// It says what can't be.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    api_version: String,
    #[serde(default)]
    providers: Vec<ProviderConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProviderConfig {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
    #[serde(default)]
    token_attributes: Option<serde_json::Value>,
}

/// All providers of a node, in the file's order.
pub struct Providers(Vec<Provider>);

struct Provider {
    program: Program,
    version: String,
    patterns: Vec<String>,
    kept_for: Duration,
    /// Held while the program runs: it is asked once for what several want.
    kept: Mutex<HashMap<String, Kept>>,
}

struct Kept {
    until: Instant,
    logins: BTreeMap<String, Pair>,
}

#[derive(Clone, Deserialize)]
struct Pair {
    username: String,
    password: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    api_version: String,
    kind: String,
    #[serde(default)]
    cache_key_type: String,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Pair>>,
}

impl Providers {
    /// Those of a configuration file of the kubelet's; their programs are in `programs`.
    pub fn read(path: &Path, programs: &Path) -> Result<Self, ProviderError> {
        let wrong = |reason: String| ProviderError::Content { path: path.to_owned(), reason };
        let text = String::from_utf8(bounded(path)?).map_err(|_| wrong("no text".to_owned()))?;
        let config: Config =
            serde_saphyr::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if config.api_version != CONFIG_VERSION {
            let found = config.api_version;
            return Err(wrong(format!("apiVersion is {found:?}, expected {CONFIG_VERSION}")));
        }
        if config.providers.len() > PROVIDERS_MAX {
            return Err(wrong(format!("more than {PROVIDERS_MAX} providers")));
        }
        let provider = |raw: ProviderConfig| {
            let name = &raw.name;
            if name.is_empty() || name.contains('/') || name.starts_with('.') {
                return Err(wrong(format!("{name:?} is no program's name")));
            }
            if raw.token_attributes.is_some() {
                let why =
                    "tokenAttributes need the tokens of service accounts, which only kubelets have";
                return Err(wrong(format!("provider {name}: {why}")));
            }
            if !VERSIONS.contains(&raw.api_version.as_str()) {
                let found = &raw.api_version;
                return Err(wrong(format!("provider {name}: apiVersion {found:?} is not known")));
            }
            let kept_for = duration::parse(&raw.default_cache_duration).ok_or_else(|| {
                wrong(format!("provider {name}: defaultCacheDuration is no time"))
            })?;
            let environment = raw.env.unwrap_or_default();
            let program = Program {
                path: programs.join(name),
                arguments: raw.args.unwrap_or_default(),
                environment: environment.into_iter().map(|it| (it.name, it.value)).collect(),
            };
            Ok(Provider {
                program,
                version: raw.api_version,
                patterns: raw.match_images,
                kept_for,
                kept: Mutex::default(),
            })
        };
        Ok(Self(config.providers.into_iter().map(provider).collect::<Result<_, _>>()?))
    }

    /// A login for an image, `host/repository`; asked of each provider that matches. What fails is
    /// told by its program's name.
    pub async fn find(&self, image: &str) -> Result<Option<Login>, (String, String)> {
        let matching = self.0.iter().filter(|it| it.patterns.iter().any(|it| matches(it, image)));
        let mut failure = None;
        for provider in matching {
            match provider.find(image).await {
                Ok(Some(login)) => return Ok(Some(login)),
                Ok(None) => {}
                Err(reason) => failure = Some((provider.program.name(), reason)),
            }
        }
        failure.map_or(Ok(None), Err)
    }
}

impl Provider {
    async fn find(&self, image: &str) -> Result<Option<Login>, String> {
        let host = image.split('/').next().unwrap_or(image);
        let mut kept = self.kept.lock().await;
        let now = Instant::now();
        kept.retain(|_, it| now < it.until);
        for key in [image, host, ""] {
            if let Some(Kept { logins, .. }) = kept.get(key) {
                return Ok(best(logins, image));
            }
        }
        let question = serde_json::json!({
            "apiVersion": self.version, "kind": "CredentialProviderRequest", "image": image
        });
        let answer = self.program.ask(question.to_string().as_bytes()).await?;
        let answer: Answer = serde_json::from_slice(&answer)
            .map_err(|_| "its answer is no CredentialProviderResponse".to_owned())?;
        if answer.kind != "CredentialProviderResponse" || answer.api_version != self.version {
            return Err("its answer has another kind or version than was asked for".to_owned());
        }
        let key = match answer.cache_key_type.as_str() {
            "Image" => image,
            "Registry" => host,
            "Global" => "",
            _ => return Err("its answer has none of the types of cache keys".to_owned()),
        };
        let kept_for = match answer.cache_duration.as_deref() {
            None => self.kept_for,
            Some(text) => duration::parse(text).ok_or("its answer has no time as cacheDuration")?,
        };
        let logins = answer.auth.unwrap_or_default();
        let found = best(&logins, image);
        if !kept_for.is_zero() && kept.len() < KEPT_MAX {
            kept.insert(key.to_owned(), Kept { until: now + kept_for, logins });
        }
        Ok(found)
    }
}

/// The login of the longest pattern that matches, as the kubelet chooses.
fn best(logins: &BTreeMap<String, Pair>, image: &str) -> Option<Login> {
    let matching = logins.iter().filter(|(pattern, _)| matches(pattern, image));
    let (_, pair) = matching.max_by_key(|(pattern, _)| pattern.len())?;
    let password = Secret::new(pair.password.as_str());
    Some(Login::Password { username: pair.username.clone(), password })
}

/// Whether an image belongs to a pattern: as many labels in the host, each alike but for `*` and `?`;
/// the same port; a path that begins alike.
fn matches(pattern: &str, image: &str) -> bool {
    fn parts(text: &str) -> (&str, Option<&str>, &str) {
        let bare = text.split_once("://").map_or(text, |(_, rest)| rest);
        let (server, path) = bare.split_once('/').unwrap_or((bare, ""));
        let (host, port) = match server.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (server, None),
        };
        (host, port, path)
    }
    let ((host, port, path), (image_host, image_port, image_path)) = (parts(pattern), parts(image));
    let labels = |host: &str| host.split('.').count();
    port == image_port
        && image_path.starts_with(path.trim_end_matches('/'))
        && labels(host) == labels(image_host)
        && host.split('.').zip(image_host.split('.')).all(|(a, b)| glob(a.as_bytes(), b.as_bytes()))
}

/// `*` for any run of letters, `?` for one.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&letter) if letter == b'?' || Some(&letter) == text.get(t) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                // Let the last star have one more.
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).is_some_and(|rest| rest.iter().all(|&letter| letter == b'*'))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn patterns_match_as_for_the_kubelet() {
        for (pattern, image, expected) in [
            (
                "123.dkr.ecr.us-east-1.amazonaws.com",
                "123.dkr.ecr.us-east-1.amazonaws.com/a/b",
                true,
            ),
            ("*.dkr.ecr.*.amazonaws.com", "123.dkr.ecr.us-east-1.amazonaws.com/a", true),
            ("*.dkr.ecr.*.amazonaws.com", "dkr.ecr.us-east-1.amazonaws.com/a", false),
            ("*.amazonaws.com", "123.dkr.ecr.us-east-1.amazonaws.com/a", false),
            ("app*.k8s.io", "app12.k8s.io/x", true),
            ("registry.io:8080/path", "registry.io:8080/path/x", true),
            ("registry.io:8080/path", "registry.io/path/x", false),
            ("registry.io/path", "registry.io/other", false),
            ("https://*.example/", "a.example/x", true),
            ("gcr.io", "gcr.io", true),
            ("a?c.io", "abc.io/x", true),
            ("*a*b.io", "xaxb.io/x", true),
            ("*a*b.io", "xbxa.io/x", false),
        ] {
            assert_eq!(matches(pattern, image), expected, "{pattern} {image}");
        }
    }

    const CONFIG: &str = "
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: known
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ['*.example']
  defaultCacheDuration: 12h
  args: [get]
  env: [{name: USERNAME, value: given}]
";

    fn providers(
        script: &str,
        config: &str,
    ) -> (tempfile::TempDir, Result<Providers, ProviderError>) {
        let directory = tempfile::tempdir().unwrap();
        let (path, program) =
            (directory.path().join("config.yaml"), directory.path().join("known"));
        std::fs::write(&path, config).unwrap();
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let providers = Providers::read(&path, directory.path());
        (directory, providers)
    }

    #[tokio::test]
    async fn a_provider_is_asked_once_for_a_registry() {
        let script = r#"read -r question
case "$question" in *'"image":"r.example/'*) ;; *) exit 9;; esac
echo x >> "$0.calls"
echo '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1",
"cacheKeyType":"Registry","auth":{"*.example":{"username":"'$USERNAME'","password":"p"},
"r.example/team":{"username":"team","password":"q"}}}'"#;
        let (directory, providers) = providers(script, CONFIG);
        let providers = providers.unwrap();
        let user = async |image: &str| match providers.find(image).await.unwrap() {
            Some(Login::Password { username, .. }) => Some(username),
            Some(_) => panic!("no password"),
            None => None,
        };
        assert_eq!(user("r.example/app").await.as_deref(), Some("given"));
        assert_eq!(user("r.example/team/app").await.as_deref(), Some("team"));
        assert_eq!(user("unknown.registry/app").await, None);
        let calls = std::fs::read_to_string(directory.path().join("known.calls")).unwrap();
        assert_eq!(calls.lines().count(), 1);
    }

    #[tokio::test]
    async fn what_fails_is_told_without_what_was_said() {
        let (_directory, providers) = providers("echo hush", CONFIG);
        let (program, reason) = providers.unwrap().find("r.example/a").await.unwrap_err();
        assert_eq!(program, "known");
        assert!(!reason.contains("hush"), "{reason}");
    }

    #[test]
    fn files_that_say_what_cannot_be() {
        let refused = |text: String| match providers("", &text).1 {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{text}"),
        };
        assert!(refused(CONFIG.replace("k8s.io/v1\nkind", "k8s.io/v9\nkind")).contains("v9"));
        assert!(
            refused(CONFIG.replace("name: known", "name: ../known")).contains("no program's name")
        );
        assert!(refused(CONFIG.replace("12h", "soon")).contains("defaultCacheDuration"));
        assert!(refused(CONFIG.replace("matchImages", "matchimages")).contains("matchImages"));
    }
}
