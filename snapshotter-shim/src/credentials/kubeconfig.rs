//! A kubeconfig file: where the cluster's API is, whom to believe there, and who we are.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::program::Program;

/// Far more than any real one.
const FILE_LEN_MAX: u64 = 4 << 20;

/// Why a kubeconfig gives no access.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// A file.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Not what it should be. Never repeats a value: they are secrets.
    #[error("kubeconfig {path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// What the current context says.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Access {
    /// `https://host:port`, without a path's last slash.
    pub(super) server: String,
    /// PEM certificates to believe; the system's without.
    pub(super) authority: Option<Vec<u8>>,
    /// Believe any.
    pub(super) insecure: bool,
    /// Name in the server's certificate, where it is not the host's.
    pub(super) server_name: Option<String>,
    /// PEM certificates and key of ours.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
    pub(super) login: ApiLogin,
}

/// Who we are to the API.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum ApiLogin {
    /// Our certificate says it, or nothing does.
    None,
    Token(String),
    /// Read for every request: it is renewed there.
    TokenFile(PathBuf),
    Basic {
        username: String,
        password: String,
    },
    /// A program that tells a token, and the version that it speaks.
    Program(Program, String),
}

#[derive(Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[derive(Default)]
struct File {
    current_context: String,
    contexts: Vec<NamedContext>,
    clusters: Vec<NamedCluster>,
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    #[serde(default)]
    certificate_authority: Option<PathBuf>,
    #[serde(default)]
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    #[serde(default)]
    tls_server_name: Option<String>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    password: Option<String>,
    exec: Option<Exec>,
    auth_provider: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Exec {
    api_version: String,
    command: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
}

#[derive(Deserialize)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: String,
}

/// Read a file, and those that it names.
pub(super) fn read(path: &Path) -> Result<Access, KubeconfigError> {
    let text = bounded(path)?;
    let text = String::from_utf8(text).map_err(|_| wrong(path, "it is not text"))?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Access, KubeconfigError> {
    // The parser's message can quote a value, so that it is not repeated.
    let file: File =
        serde_saphyr::from_str(text).map_err(|_| wrong(path, "it is not YAML of that form"))?;
    let name = &file.current_context;
    let no = |what: &str, name: &str| wrong(path, &format!("there is no {what} {name:?}"));
    let context = file.contexts.into_iter().find(|it| it.name == *name);
    let context = context.ok_or_else(|| no("context", name))?.context;
    let cluster = file.clusters.into_iter().find(|it| it.name == context.cluster);
    let cluster = cluster.ok_or_else(|| no("cluster", &context.cluster))?.cluster;
    let user = match context.user.as_str() {
        "" => User::default(),
        name => {
            let user = file.users.into_iter().find(|it| it.name == name);
            user.ok_or_else(|| no("user", name))?.user
        }
    };
    let directory = path.parent().unwrap_or(Path::new("/"));
    let bytes = |data: &Option<String>, file: &Option<PathBuf>, what: &str| match (data, file) {
        (Some(data), _) if !data.is_empty() => STANDARD
            .decode(data.trim())
            .map(Some)
            .map_err(|_| wrong(path, &format!("{what} is not base64"))),
        (_, Some(file)) if !file.as_os_str().is_empty() => bounded(&directory.join(file)).map(Some),
        _ => Ok(None),
    };
    let authority = bytes(
        &cluster.certificate_authority_data,
        &cluster.certificate_authority,
        "certificate-authority-data",
    )?;
    let certificate =
        bytes(&user.client_certificate_data, &user.client_certificate, "client-certificate-data")?;
    let key = bytes(&user.client_key_data, &user.client_key, "client-key-data")?;
    Ok(Access {
        server: cluster.server.trim_end_matches('/').to_owned(),
        authority,
        insecure: cluster.insecure_skip_tls_verify,
        server_name: cluster.tls_server_name.filter(|name| !name.is_empty()),
        identity: certificate.zip(key),
        login: login(path, directory, user)?,
    })
}

fn login(path: &Path, directory: &Path, user: User) -> Result<ApiLogin, KubeconfigError> {
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    if let Some(exec) = user.exec {
        // A bare name is looked up in PATH; a relative path belongs to the file.
        let command = match exec.command.contains('/') {
            true => directory.join(&exec.command),
            false => exec.command.clone().into(),
        };
        let environment = exec.env.unwrap_or_default();
        let program = Program {
            path: command,
            arguments: exec.args.unwrap_or_default(),
            environment: environment.into_iter().map(|it| (it.name, it.value)).collect(),
        };
        return Ok(ApiLogin::Program(program, exec.api_version));
    }
    if user.auth_provider.is_some() {
        return Err(wrong(path, "auth-provider was taken out of Kubernetes 1.26: use exec"));
    }
    if let Some(file) = user.token_file.filter(|file| !file.as_os_str().is_empty()) {
        return Ok(ApiLogin::TokenFile(directory.join(file)));
    }
    if let Some(token) = filled(user.token) {
        return Ok(ApiLogin::Token(token));
    }
    Ok(match filled(user.username).zip(filled(user.password)) {
        Some((username, password)) => ApiLogin::Basic { username, password },
        None => ApiLogin::None,
    })
}

/// The content of a file, within limits.
pub(super) fn bounded(path: &Path) -> Result<Vec<u8>, KubeconfigError> {
    let failed = |source| KubeconfigError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > FILE_LEN_MAX {
        return Err(wrong(path, &format!("it is longer than {FILE_LEN_MAX} bytes")));
    }
    fs::read(path).map_err(failed)
}

fn wrong(path: &Path, reason: &str) -> KubeconfigError {
    KubeconfigError::Content { path: path.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
apiVersion: v1
kind: Config
current-context: node
clusters:
- name: c
  cluster:
    server: https://api.example:6443/
    certificate-authority-data: Q0E=
    tls-server-name: kubernetes
contexts:
- name: node
  context: {cluster: c, user: u, namespace: x}
users:
- name: u
  user:
"#;

    fn parsed(user: &str) -> Result<Access, KubeconfigError> {
        parse(Path::new("/etc/kubeconfig"), &format!("{FILE}{user}"))
    }

    #[test]
    fn every_kind_of_user() {
        let access = parsed("    token: t\n").unwrap();
        assert_eq!((access.server.as_str(), access.insecure), ("https://api.example:6443", false));
        assert_eq!(access.authority.as_deref(), Some(&b"CA"[..]));
        assert_eq!(access.server_name.as_deref(), Some("kubernetes"));
        assert!(access.login == ApiLogin::Token("t".to_owned()));
        assert!(
            parsed("    tokenFile: t\n").unwrap().login == ApiLogin::TokenFile("/etc/t".into())
        );
        let pair =
            parsed("    client-certificate-data: YQ==\n    client-key-data: Yg==\n").unwrap();
        assert_eq!(pair.identity, Some((b"a".to_vec(), b"b".to_vec())));
        let exec = "    exec:\n      apiVersion: client.authentication.k8s.io/v1beta1\n      \
                    command: aws\n      args: [eks, get-token]\n      env: null\n";
        match parsed(exec).unwrap().login {
            ApiLogin::Program(program, version) => {
                assert_eq!(program.path, Path::new("aws"));
                assert_eq!(program.arguments, ["eks", "get-token"]);
                assert_eq!(version, "client.authentication.k8s.io/v1beta1");
            }
            _ => panic!("no program"),
        }
    }

    #[test]
    fn what_is_missing_is_named_and_no_secret_is() {
        let wrong = |text: String| match parse(Path::new("/k"), &text) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{text}"),
        };
        let good = format!("{FILE}    token: hush\n");
        assert!(wrong(good.replace("user: u,", "user: v,")).contains("no user \"v\""));
        assert!(wrong(good.replace("current-context: node", "")).contains("no context \"\""));
        assert!(wrong(good.replace("cluster: c,", "cluster: d,")).contains("no cluster \"d\""));
        assert!(wrong(good.replace("Q0E=", "no-base64")).contains("is not base64"));
        let broken = wrong(good.replace("token: hush", "token: [hush"));
        assert!(!broken.contains("hush"), "{broken}");
    }
}
