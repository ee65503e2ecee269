//! Client of containerd's own API: content, images, leases, namespaces, version.
//!
//! Knows nothing of snapshots and of SOCI. [`Client`] is a connection seen from one namespace,
//! cheap to clone; [`ContentStore`], [`Images`] and [`Leases`] are its parts. Every call has a
//! deadline, every stream one for each message, and no message is larger than containerd's own limit.

mod content;
mod error;
mod images;
mod leases;
mod write;

pub use content::{ContentInfo, ContentStore, ReadStream, StreamReader};
pub use error::{ClientError, Fault};
pub(crate) use images::descriptor as message_of;
pub use images::{ImageRecord, Images};
pub use leases::{Lease, Leases};
pub use write::{ContentWriter, Written};

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::grpc::MESSAGE_BYTES_MAX;
use crate::grpc::proto::{introspection, namespaces, version};

/// Where containerd listens unless told otherwise.
pub const ADDRESS_DEFAULT: &str = "/run/containerd/containerd.sock";
/// Prefix of labels that keep content as long as their owner.
pub const GC_REF_CONTENT: &str = "containerd.io/gc.ref.content";

const NAMESPACE: &str = "containerd-namespace";
const LEASE: &str = "containerd-lease";

/// How containerd is reached.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Path of its socket; `unix://` may stand in front.
    pub address: String,
    /// Namespace that calls are made in.
    pub namespace: String,
    /// How long to wait for somebody to listen; zero tries once.
    pub connect_time: Duration,
    /// Longest wait for an answer, or for the next message of a stream.
    pub call_time: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            address: ADDRESS_DEFAULT.to_owned(),
            namespace: "default".to_owned(),
            // As containerd's own clients: it may be starting at the same time as we.
            connect_time: Duration::from_secs(10),
            // A commit hashes nothing anew, but waits for the disk and for a garbage collection.
            call_time: Duration::from_secs(60),
        }
    }
}

/// One connection, seen from one namespace.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    address: String,
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
    call_time: Duration,
}

/// Between two tries to connect.
const CONNECT_DELAY: Duration = Duration::from_millis(100);

impl Client {
    /// Connect, waiting for containerd to listen.
    pub async fn connect(options: &ClientOptions) -> Result<Self, ClientError> {
        let (endpoint, client) = Self::prepare(options)?;
        let deadline = Instant::now() + options.connect_time;
        loop {
            let last = match tokio::time::timeout(attempt_time(deadline), endpoint.connect()).await
            {
                Ok(Ok(channel)) => return Ok(Self { channel, ..client }),
                Ok(Err(error)) => describe(&error),
                Err(_) => "no answer".to_owned(),
            };
            if Instant::now() + CONNECT_DELAY >= deadline {
                return Err(ClientError::Connect { address: client.address, reason: last });
            }
            tokio::time::sleep(CONNECT_DELAY).await;
        }
    }

    /// A client that connects with its first call, and again whenever containerd was restarted.
    pub fn lazy(options: &ClientOptions) -> Result<Self, ClientError> {
        Self::prepare(options).map(|(_, client)| client)
    }

    fn prepare(options: &ClientOptions) -> Result<(Endpoint, Self), ClientError> {
        let path = options.address.strip_prefix("unix://").unwrap_or(&options.address);
        let address = path.to_owned();
        let invalid = |reason: String| ClientError::Connect { address: address.clone(), reason };
        if path.is_empty() || path.contains("://") {
            return Err(invalid("it is no path of a unix socket".to_owned()));
        }
        let endpoint = Endpoint::from_shared(format!("unix://{path}"))
            .map_err(|error| invalid(describe(&error)))?
            .connect_timeout(CONNECT_ATTEMPT_MAX);
        let client = Self {
            channel: endpoint.connect_lazy(),
            address: path.to_owned(),
            namespace: value("namespace", &options.namespace)?,
            lease: None,
            call_time: options.call_time,
        };
        Ok((endpoint, client))
    }

    /// The same connection in another namespace.
    pub fn with_namespace(&self, namespace: &str) -> Result<Self, ClientError> {
        Ok(Self { namespace: value("namespace", namespace)?, ..self.clone() })
    }

    /// The same connection; what it makes is kept by a lease.
    pub fn with_lease(&self, id: &str) -> Result<Self, ClientError> {
        Ok(Self { lease: Some(value("lease", id)?), ..self.clone() })
    }

    /// Path of the socket.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Namespace of the calls.
    pub fn namespace(&self) -> &str {
        self.namespace.to_str().unwrap_or_default()
    }

    /// Its blobs.
    pub fn content(&self) -> ContentStore {
        ContentStore { client: self.clone() }
    }

    /// Its images.
    pub fn images(&self) -> Images {
        Images { client: self.clone() }
    }

    /// Its leases.
    pub fn leases(&self) -> Leases {
        Leases { client: self.clone() }
    }

    /// Version and revision of containerd.
    pub async fn version(&self) -> Result<(String, String), ClientError> {
        let mut service = version::version_client::VersionClient::new(self.channel());
        let found = self.call("version", (), |it| async move { service.version(it).await }).await?;
        Ok((found.version, found.revision))
    }

    /// Names of all namespaces.
    pub async fn namespaces(&self) -> Result<Vec<String>, ClientError> {
        let mut service = namespaces::namespaces_client::NamespacesClient::new(self.channel())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let request = namespaces::ListNamespacesRequest::default();
        let found = self
            .call("list of namespaces", request, |it| async move { service.list(it).await })
            .await?;
        Ok(found.namespaces.into_iter().map(|namespace| namespace.name).collect())
    }

    /// Directory in which containerd keeps its blobs, as containerd sees it; `None` if it does not tell.
    pub async fn content_root(&self) -> Result<Option<std::path::PathBuf>, ClientError> {
        let mut service =
            introspection::introspection_client::IntrospectionClient::new(self.channel())
                .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let filters = vec!["type==io.containerd.content.v1".to_owned()];
        let request = introspection::PluginsRequest { filters };
        let what = "asking for the content store's directory";
        let found = self.call(what, request, |it| async move { service.plugins(it).await }).await?;
        let root = found.plugins.into_iter().find_map(|mut plugin| plugin.exports.remove("root"));
        Ok(root.map(Into::into))
    }

    /// The connection, for services that this client has no method for.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request with our headers. containerd is told the deadline, so that it gives up as well.
    pub fn request<T>(&self, message: T, deadline: Option<Duration>) -> Request<T> {
        let mut request = Request::new(message);
        let headers = request.metadata_mut();
        headers.insert(NAMESPACE, self.namespace.clone());
        if let Some(lease) = &self.lease {
            headers.insert(LEASE, lease.clone());
        }
        if let Some(deadline) = deadline {
            request.set_timeout(deadline);
        }
        request
    }

    /// Make one call with one answer.
    pub async fn call<T, R, F>(
        &self,
        what: &str,
        message: T,
        send: impl FnOnce(Request<T>) -> F,
    ) -> Result<R, ClientError>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let answer = send(self.request(message, Some(self.call_time)));
        self.in_time(what, answer).await.map(Response::into_inner)
    }

    /// What comes within the time of one call.
    pub(crate) async fn in_time<R>(
        &self,
        what: &str,
        answer: impl Future<Output = Result<R, Status>>,
    ) -> Result<R, ClientError> {
        match tokio::time::timeout(self.call_time, answer).await {
            Ok(answer) => answer.map_err(|status| ClientError::of(what, &status)),
            Err(_) => Err(ClientError::Late { what: what.to_owned(), time: self.call_time }),
        }
    }
}

/// A single attempt: the peer is on the same machine.
const CONNECT_ATTEMPT_MAX: Duration = Duration::from_secs(5);

fn attempt_time(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).clamp(CONNECT_DELAY, CONNECT_ATTEMPT_MAX)
}

fn value(what: &'static str, text: &str) -> Result<MetadataValue<Ascii>, ClientError> {
    text.parse()
        .map_err(|_| ClientError::Argument { what, reason: format!("{text:?} fits in no header") })
}

/// An error with its causes, which alone say what went wrong.
fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
