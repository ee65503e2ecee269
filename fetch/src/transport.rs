//! Connections of the control plane: name, TCP, proxy tunnel and TLS, each within its time.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Request, Uri, header};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::content::ContentBody;
use crate::proxy::{Proxies, Proxy};
use crate::trust::Trust;

/// Longest head of a proxy's answer to CONNECT.
const TUNNEL_HEAD_LEN_MAX: usize = 8 << 10;
/// Idle connections kept for a host: the control plane asks little at once.
const IDLE_PER_HOST_MAX: usize = 4;
/// Servers close idle connections after some 60 s; being earlier avoids the race.
const IDLE_FOR_MAX: Duration = Duration::from_secs(30);
/// How long one address of several may be tried alone.
const ADDRESS_TRY: Duration = Duration::from_secs(3);

/// A pool of connections that share one trust.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    client: Client<Connector, ContentBody>,
    proxies: Arc<Proxies>,
}

impl Pool {
    /// A pool over a connector, without connections yet.
    pub(crate) fn new(connector: Connector) -> Self {
        let proxies = Arc::clone(&connector.proxies);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_FOR_MAX)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .build(connector);
        Self { client, proxies }
    }

    /// Send a request. A proxy that forwards requests one by one is told with each who asks; a tunnel
    /// was told when it was made.
    pub(crate) fn request(&self, mut request: Request<ContentBody>) -> ResponseFuture {
        let uri = request.uri();
        let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80));
        let plain = uri.scheme_str() == Some("http");
        let proxy = self.proxies.choose(false, host, port).filter(|_| plain);
        if let Some(value) = proxy.and_then(|proxy| proxy.authorization.as_ref())
            && let Ok(mut value) = HeaderValue::from_str(value)
        {
            value.set_sensitive(true);
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, value);
        }
        self.client.request(request)
    }
}

/// How a connection could not be made.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{stage} {peer}: {reason}")]
pub(crate) struct ConnectError {
    pub(crate) stage: Stage,
    /// `host:port`.
    pub(crate) peer: String,
    pub(crate) reason: String,
}

/// How far a connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Resolve,
    Connect,
    Tunnel,
    Tls,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "looking up",
            Self::Connect => "connecting to",
            Self::Tunnel => "asking the proxy for a tunnel to",
            Self::Tls => "TLS with",
        })
    }
}

/// Makes connections.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) trust: Arc<Trust>,
    pub(crate) proxies: Arc<Proxies>,
    /// For the whole of a connection's making.
    pub(crate) dial_timeout: Duration,
}

impl tower_service::Service<Uri> for Connector {
    type Response = Wire;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Wire, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(&uri).await })
    }
}

impl Connector {
    async fn connect(&self, uri: &Uri) -> Result<Wire, ConnectError> {
        let secure = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let late = |_| ConnectError {
            stage: Stage::Connect,
            peer: format!("{host}:{port}"),
            reason: format!("not connected within {:?}", self.dial_timeout),
        };
        tokio::time::timeout(self.dial_timeout, self.establish(secure, host, port))
            .await
            .map_err(late)?
    }

    async fn establish(&self, secure: bool, host: &str, port: u16) -> Result<Wire, ConnectError> {
        let proxy = self.proxies.choose(secure, host, port);
        let mut tcp = match proxy {
            Some(proxy) => dial(&proxy.host, proxy.port, self.dial_timeout).await?,
            None => dial(host, port, self.dial_timeout).await?,
        };
        if !secure {
            return Ok(Wire { io: TokioIo::new(Box::new(tcp)), proxied: proxy.is_some() });
        }
        let peer = format!("{host}:{port}");
        if let Some(proxy) = proxy {
            tunnel(&mut tcp, &peer, proxy).await?;
        }
        let fail = |reason: String| ConnectError { stage: Stage::Tls, peer: peer.clone(), reason };
        let config = self.trust.config().map_err(|error| fail(error.to_string()))?;
        let bare = bare_host(host).to_owned();
        let name = ServerName::try_from(bare).map_err(|error| fail(error.to_string()))?;
        let tls =
            TlsConnector::from(config).connect(name, tcp).await.map_err(|error| {
                match error.to_string().contains("certificate") {
                    true => fail(format!("{error}; {}", self.trust.advice())),
                    false => fail(error.to_string()),
                }
            })?;
        Ok(Wire { io: TokioIo::new(Box::new(tls)), proxied: false })
    }
}

/// An IPv6 address without its brackets; any other host as it is.
pub(crate) fn bare_host(host: &str) -> &str {
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
}

/// Addresses of a host, at least one, within a time.
pub(crate) async fn resolve(
    host: &str,
    port: u16,
    limit: Duration,
) -> Result<Vec<SocketAddr>, ConnectError> {
    let bare = bare_host(host);
    let fail = |reason: String| ConnectError {
        stage: Stage::Resolve,
        peer: format!("{host}:{port}"),
        reason,
    };
    let found: Vec<SocketAddr> = tokio::time::timeout(limit, tokio::net::lookup_host((bare, port)))
        .await
        .map_err(|_| fail(format!("no answer within {limit:?}")))?
        .map_err(|error| fail(error.to_string()))?
        .collect();
    match found.is_empty() {
        true => Err(fail("it has no address".to_owned())),
        false => Ok(found),
    }
}

async fn dial(host: &str, port: u16, limit: Duration) -> Result<TcpStream, ConnectError> {
    let addresses = resolve(host, port, limit).await?;
    let mut reasons = Vec::new();
    let each = if addresses.len() == 1 { limit } else { ADDRESS_TRY.min(limit) };
    for address in addresses {
        match tokio::time::timeout(each, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => {
                let _ = tcp.set_nodelay(true);
                return Ok(tcp);
            }
            Ok(Err(error)) => reasons.push(format!("{address}: {error}")),
            Err(_) => reasons.push(format!("{address}: no answer within {each:?}")),
        }
    }
    Err(ConnectError {
        stage: Stage::Connect,
        peer: format!("{host}:{port}"),
        reason: reasons.join("; "),
    })
}

async fn tunnel(tcp: &mut TcpStream, peer: &str, proxy: &Proxy) -> Result<(), ConnectError> {
    let fail = |reason: String| ConnectError {
        stage: Stage::Tunnel,
        peer: format!("{peer} ({proxy:?})"),
        reason,
    };
    let mut request = format!("CONNECT {peer} HTTP/1.1\r\nHost: {peer}\r\n");
    if let Some(value) = &proxy.authorization {
        request.push_str(&format!("Proxy-Authorization: {value}\r\n"));
    }
    request.push_str("\r\n");
    tcp.write_all(request.as_bytes()).await.map_err(|error| fail(error.to_string()))?;
    let mut head = Vec::new();
    // Byte by byte: what follows the head belongs to TLS and must stay in the socket.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= TUNNEL_HEAD_LEN_MAX {
            return Err(fail(format!("answer's head is longer than {TUNNEL_HEAD_LEN_MAX} bytes")));
        }
        head.push(tcp.read_u8().await.map_err(|error| fail(error.to_string()))?);
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut answer = httparse::Response::new(&mut headers);
    answer.parse(&head).map_err(|error| fail(error.to_string()))?;
    match answer.code {
        Some(200..=299) => Ok(()),
        code => Err(fail(format!("answered {}", code.unwrap_or_default()))),
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, with or without TLS.
pub(crate) struct Wire {
    io: TokioIo<Box<dyn Io>>,
    /// Plain HTTP through a proxy: requests carry the absolute URL.
    proxied: bool,
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.proxied)
    }
}

impl hyper::rt::Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
