//! Secrets of a cluster, listed once and watched from then on.
//!
//! A small client of the Kubernetes API: a connection for the list, one for the watch. It asks for
//! secrets of one type only, and for nothing else.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use spanfs_fetch::Login;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::kubeconfig::{Access, ApiLogin, bounded, read};
use super::secrets::{Event, List, Secrets, Told};
use crate::daemon::log::chain;

const SECRETS: &str =
    "/api/v1/secrets?fieldSelector=type%3Dkubernetes.io%2Fdockerconfigjson&limit=250";
const WATCH: &str = "/api/v1/secrets?fieldSelector=type%3Dkubernetes.io%2Fdockerconfigjson\
                     &watch=1&allowWatchBookmarks=true&timeoutSeconds=300";
/// To connect, and to get the head of an answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(15);
/// For a page of a list.
const PAGE_TIME_MAX: Duration = Duration::from_secs(60);
/// The API ends a watch before; one that is silent for longer is a dead connection.
const WATCH_TIME_MAX: Duration = Duration::from_secs(330);
/// 250 secrets of at most 1 MiB are rare; this is many of a usual size.
const PAGE_LEN_MAX: usize = 64 << 20;
/// A secret has at most 1 MiB, and base64 twice over.
const EVENT_LEN_MAX: usize = 4 << 20;
const PAGES_MAX: usize = 100;
/// Between tries, longer each time.
const DELAY_MIN: Duration = Duration::from_secs(1);
const DELAY_MAX: Duration = Duration::from_secs(60);
/// Where the file is missing: kubelets write it when the node joins.
const MISSING_DELAY: Duration = Duration::from_secs(10);
/// A pull right after our start waits so long for the first list.
const FIRST_LIST_TIME_MAX: Duration = Duration::from_secs(3);

/// What went wrong with the API. Never repeats what it said.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct ApiError(String);

/// Logins of a cluster's secrets.
pub struct Kubernetes {
    secrets: Mutex<Secrets>,
    /// Whether a list has come.
    listed: watch::Sender<bool>,
}

impl Kubernetes {
    /// Begin to list and watch, by the kubeconfig at `path`, or at the usual places. Wants a tokio
    /// runtime, in which it goes on.
    pub fn start(path: Option<PathBuf>) -> Arc<Self> {
        let this = Arc::new(Self { secrets: Mutex::default(), listed: watch::Sender::new(false) });
        let weak = Arc::downgrade(&this);
        tokio::spawn(async move {
            let mut delay = DELAY_MIN;
            let mut last = String::new();
            while let Some(this) = weak.upgrade() {
                let Some(file) = path.clone().or_else(usual_place).filter(|file| file.exists())
                else {
                    say(&mut last, "there is no kubeconfig yet");
                    drop(this);
                    tokio::time::sleep(MISSING_DELAY).await;
                    continue;
                };
                match this.follow(&file).await {
                    Ok(()) => delay = DELAY_MIN,
                    Err(error) => say(&mut last, &error.0),
                }
                drop(this);
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(DELAY_MAX);
            }
        });
        this
    }

    /// A login for a host. Waits a moment for the first list.
    pub async fn find(&self, host: &str) -> Option<Login> {
        let mut listed = self.listed.subscribe();
        let first = listed.wait_for(|listed| *listed);
        drop(tokio::time::timeout(FIRST_LIST_TIME_MAX, first).await);
        self.secrets.lock().find(host)
    }

    /// List, then watch until the cluster wants us to list again.
    async fn follow(&self, file: &std::path::Path) -> Result<(), ApiError> {
        let access = read(file).map_err(|error| ApiError(chain(&error)))?;
        let api = Api::new(access)?;
        let mut version = self.list(&api).await?;
        while let Told::Version(next) = self.watch(&api, &version).await? {
            version = next;
        }
        Ok(())
    }

    async fn list(&self, api: &Api) -> Result<String, ApiError> {
        let mut fresh = Secrets::default();
        let mut next = String::new();
        for _ in 0..PAGES_MAX {
            let path = match next.as_str() {
                "" => SECRETS.to_owned(),
                next => format!("{SECRETS}&continue={}", escaped(next)),
            };
            let answer = api.get(&path).await?;
            let page = Limited::new(answer.into_body(), PAGE_LEN_MAX).collect();
            let page = tokio::time::timeout(PAGE_TIME_MAX, page)
                .await
                .map_err(|_| ApiError(format!("no list of secrets within {PAGE_TIME_MAX:?}")))?
                .map_err(|error| ApiError(format!("the list of secrets breaks off: {error}")))?;
            let page: List = serde_json::from_slice(&page.to_bytes())
                .map_err(|_| ApiError("the list of secrets is not understood".to_owned()))?;
            page.items.iter().for_each(|secret| fresh.put(secret));
            if page.metadata.next.is_empty() {
                tracing::info!(secrets = fresh.len(), "logins of the cluster's secrets are known");
                *self.secrets.lock() = fresh;
                self.listed.send_replace(true);
                return Ok(page.metadata.resource_version);
            }
            next = page.metadata.next;
        }
        Err(ApiError(format!("the list of secrets has more than {PAGES_MAX} pages")))
    }

    /// Follow changes until the connection ends; from where to go on.
    async fn watch(&self, api: &Api, version: &str) -> Result<Told, ApiError> {
        let mut version = version.to_owned();
        let answer = api.get(&format!("{WATCH}&resourceVersion={}", escaped(&version))).await;
        let mut body = match answer {
            Err(ApiError(reason)) if reason.ends_with("answers 410 Gone") => {
                return Ok(Told::Gone);
            }
            answer => answer?.into_body(),
        };
        let mut line = BytesMut::new();
        loop {
            let frame = tokio::time::timeout(WATCH_TIME_MAX, body.frame())
                .await
                .map_err(|_| ApiError(format!("the watch is silent for {WATCH_TIME_MAX:?}")))?;
            let Some(frame) = frame else { return Ok(Told::Version(version)) };
            let frame =
                frame.map_err(|error| ApiError(format!("the watch breaks off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            line.extend_from_slice(&data);
            while let Some(end) = line.iter().position(|&byte| byte == b'\n') {
                let event = line.split_to(end + 1);
                let wrong = |_| ApiError("a line of the watch is not understood".to_owned());
                let event: Event = serde_json::from_slice(&event).map_err(wrong)?;
                match self.secrets.lock().handle(event).map_err(wrong)? {
                    Told::Gone => return Ok(Told::Gone),
                    Told::Version(next) if next.is_empty() => {}
                    Told::Version(next) => version = next,
                }
            }
            if line.len() > EVENT_LEN_MAX {
                return Err(ApiError(format!("a line of the watch exceeds {EVENT_LEN_MAX} bytes")));
            }
        }
    }
}

/// `$KUBECONFIG`'s first file, else the user's.
fn usual_place() -> Option<PathBuf> {
    let named = std::env::var_os("KUBECONFIG").filter(|it| !it.is_empty());
    let first = named.and_then(|it| std::env::split_paths(&it).next());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config"));
    first.or_else(home)
}

/// A reason once, not every time it is tried again.
fn say(last: &mut String, reason: &str) {
    if last != reason {
        tracing::warn!(error = reason, "secrets of the cluster are not known");
        reason.clone_into(last);
    }
}

/// A value in a query.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

/// The API of a cluster.
struct Api {
    access: Access,
    tls: Option<Arc<ClientConfig>>,
    host: String,
    port: u16,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Api {
    fn new(access: Access) -> Result<Self, ApiError> {
        let wrong = |reason: &str| ApiError(format!("server of the kubeconfig: {reason}"));
        let uri: Uri = access.server.parse().map_err(|_| wrong("no URL"))?;
        let is_secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("neither https nor http")),
        };
        let host = uri.host().ok_or_else(|| wrong("it names no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        let tls = is_secure.then(|| tls(&access).map(Arc::new)).transpose()?;
        Ok(Self { access, tls, host, port })
    }

    /// The answer to a GET, once its head is there and says that it is one.
    async fn get(&self, path: &str) -> Result<Response<Incoming>, ApiError> {
        let login = self.login().await?;
        let answer = tokio::time::timeout(ANSWER_TIME_MAX, self.ask(path, login)).await;
        let answer = answer
            .map_err(|_| ApiError(format!("no answer of {} in time", self.access.server)))?
            .map_err(|reason| ApiError(format!("asking {}: {reason}", self.access.server)))?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            status => Err(ApiError(format!("{} answers {status}", self.access.server))),
        }
    }

    async fn ask(
        &self,
        path: &str,
        login: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, String> {
        let text = |error: &(dyn std::error::Error + 'static)| chain(error);
        let stream = TcpStream::connect((self.host.as_str(), self.port));
        let stream = stream.await.map_err(|error| text(&error))?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some(tls) => {
                let name = self.access.server_name.as_deref().unwrap_or(&self.host).to_owned();
                let name = ServerName::try_from(name).map_err(|error| text(&error))?;
                let connector = tokio_rustls::TlsConnector::from(Arc::clone(tls));
                Box::new(connector.connect(name, stream).await.map_err(|error| text(&error))?)
            }
        };
        let io = TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(|error| text(&error))?;
        // It ends with the answer's body.
        tokio::spawn(async move { drop(connection.await) });
        let base = Uri::try_from(&self.access.server).map_err(|error| text(&error))?;
        let prefix = base.path().trim_end_matches('/');
        let host = base.authority().map_or("", |authority| authority.as_str());
        let mut request = Request::get(format!("{prefix}{path}"))
            .header(HOST, host)
            .header(ACCEPT, "application/json");
        if let Some(login) = login {
            request = request.header(AUTHORIZATION, login);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| text(&error))?;
        sender.send_request(request).await.map_err(|error| text(&error))
    }

    async fn login(&self) -> Result<Option<HeaderValue>, ApiError> {
        let text = match &self.access.login {
            ApiLogin::None => return Ok(None),
            ApiLogin::Token(token) => format!("Bearer {token}"),
            ApiLogin::TokenFile(path) => {
                let token = bounded(path).map_err(|error| ApiError(chain(&error)))?;
                format!("Bearer {}", String::from_utf8_lossy(&token).trim())
            }
            ApiLogin::Basic { username, password } => {
                format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
            }
            ApiLogin::Program(program, version) => {
                let name = program.name();
                let failed = |reason: String| {
                    ApiError(format!("program {name} of the kubeconfig: {reason}"))
                };
                let question = serde_json::json!({
                    "apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": false}
                });
                let mut program = program.clone();
                let info = ("KUBERNETES_EXEC_INFO".to_owned(), question.to_string());
                program.environment.push(info);
                let answer = program.ask(b"").await.map_err(failed)?;
                let answer: ExecAnswer = serde_json::from_slice(&answer)
                    .map_err(|_| failed("its answer is no ExecCredential".to_owned()))?;
                let token = answer.status.and_then(|status| status.token);
                format!("Bearer {}", token.ok_or_else(|| failed("it tells no token".to_owned()))?)
            }
        };
        let mut value = HeaderValue::from_str(&text)
            .map_err(|_| ApiError("the login to the API can't stand in a header".to_owned()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

#[derive(Deserialize)]
struct ExecAnswer {
    status: Option<ExecStatus>,
}

#[derive(Deserialize)]
struct ExecStatus {
    token: Option<String>,
}

fn tls(access: &Access) -> Result<ClientConfig, ApiError> {
    let wrong = |what: &str, error: &dyn std::error::Error| {
        ApiError(format!("{what} of the kubeconfig: {error}"))
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong("TLS", &error))?;
    if access.insecure {
        let reason = "insecure-skip-tls-verify would show secrets to anyone: name the CA instead";
        return Err(ApiError(reason.to_owned()));
    }
    let mut roots = RootCertStore::empty();
    match &access.authority {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| wrong("CA", &error))?;
                roots.add(certificate).map_err(|error| wrong("CA", &error))?;
            }
        }
        None => {
            let system = rustls_native_certs::load_native_certs().certs;
            let _counts = roots.add_parsable_certificates(system);
        }
    }
    let builder = builder.with_root_certificates(roots);
    let Some((certificate, key)) = &access.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.map_err(|error| wrong("client certificate", &error))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| wrong("client key", &error))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| wrong("client certificate", &error))
}
