//! The port between the control plane, which knows registries, and the engine, which moves bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// Where the bytes of a blob can be requested right now, with all that the request needs.
#[derive(Clone)]
pub struct Target {
    /// Tells targets of one locator apart in a [`TargetFailure`].
    pub id: u64,
    /// Value of the Host header (`name` or `name:port`).
    pub host: String,
    /// Name to verify in the server's certificate, without port.
    pub server_name: String,
    /// Addresses to connect to, tried in order; not empty. With a proxy, the proxy's.
    pub addresses: Vec<SocketAddr>,
    /// Path and query of the request line; the absolute URL where a plain-HTTP proxy is used.
    pub request_target: String,
    /// Further headers (authorization, configured ones). Never logged.
    pub headers: Vec<(String, String)>,
    /// TLS to speak, or plain HTTP.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// `host:port` to CONNECT to through the proxy at `addresses` before TLS, with the value of the
    /// Proxy-Authorization header, if any.
    pub connect: Option<(String, Option<String>)>,
    /// When to ask for a new one, as far as it is known.
    pub expires: Option<Instant>,
}

impl std::fmt::Debug for Target {
    /// Names the host alone: paths of signed URLs and headers are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("id", &self.id).field("host", &self.host).finish()
    }
}

/// How a target disappointed.
#[derive(Clone, Debug)]
pub struct TargetFailure {
    /// [`Target::id`].
    pub id: u64,
    /// HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// `WWW-Authenticate` of a 401, verbatim.
    pub challenge: Option<String>,
    /// `Location` of a redirect, verbatim: the engine follows none itself.
    pub location: Option<String>,
    /// What happened, for the log.
    pub message: String,
}

/// What the control plane says to a failed request for a target.
#[derive(Clone, Debug)]
pub enum LocateError {
    /// Try again later: the registry does not answer, or is busy.
    Retry(String),
    /// It won't let us.
    Refused(String),
    /// No host has the blob.
    Gone(String),
}

/// Finds targets for one blob: resolves redirects, authorises, goes from mirror to mirror.
///
/// Implemented by the registry client; and by a fixed address, for benchmarks and tests.
pub trait Locate: Send + Sync {
    /// Find a target. `failure` tells how the last one failed, so that a token is renewed, a signed URL
    /// fetched anew, or the next mirror taken. Never blocks; `reply` is called exactly once, within the
    /// locator's own deadline.
    fn locate(
        &self,
        failure: Option<TargetFailure>,
        reply: Box<dyn FnOnce(Result<Target, LocateError>) + Send>,
    );
}
