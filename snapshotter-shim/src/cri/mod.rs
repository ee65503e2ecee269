//! CRI's image service, passed through to containerd: on the way, credentials of pulls are learned.
//!
//! Requests and answers go on byte for byte, so that fields and methods of newer versions do; only a
//! copy of a pull or a removal is read. Source: `runtime.v1.ImageService` of the Kubernetes CRI.

mod keychain;
mod message;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

pub use keychain::Keychain;

use crate::grpc::MESSAGE_BYTES_MAX;

const PULL: &str = "/runtime.v1.ImageService/PullImage";
const REMOVE: &str = "/runtime.v1.ImageService/RemoveImage";

/// The image service.
#[derive(Clone)]
pub struct ImageService {
    containerd: Channel,
    keychain: Arc<Keychain>,
}

impl ImageService {
    /// In front of the service at `socket`, which need not listen yet. Wants a tokio runtime.
    pub fn new(socket: &Path, keychain: Arc<Keychain>) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        Ok(Self { containerd: endpoint.connect_lazy(), keychain })
    }
}

impl NamedService for ImageService {
    const NAME: &'static str = "runtime.v1.ImageService";
}

impl Service<Request<Body>> for ImageService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                PULL | REMOVE => this.watched(request).await,
                _ => this.pass(request).await,
            }
            .unwrap_or_else(|status| status.into_http()))
        })
    }
}

impl ImageService {
    async fn pass(mut self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let failed = |error: tonic::transport::Error| {
            let cause = crate::daemon::log::chain(&error);
            Status::unavailable(format!("containerd's image service can't be reached: {cause}"))
        };
        std::future::poll_fn(|context| self.containerd.poll_ready(context))
            .await
            .map_err(failed)?;
        self.containerd.call(request).await.map_err(failed)
    }

    /// The same, with a look at what is asked.
    async fn watched(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let bytes = collect(body).await?;
        let is_pull = head.uri.path() == PULL;
        let keychain = Arc::clone(&self.keychain);
        let pulled = message::payload(&bytes).and_then(|payload| match is_pull {
            true => message::pull(payload),
            false => {
                message::removed(payload).inspect(|image| keychain.forget(image));
                None
            }
        });
        if let Some((image, login)) = &pulled {
            keychain.learn(image, login.clone());
        }
        let passed = self.pass(Request::from_parts(head, Body::new(Full::new(bytes)))).await?;
        let Some((image, _)) = pulled else { return Ok(passed) };
        // The answer names the image as a removal will.
        let (head, body) = passed.into_parts();
        let collected = Limited::new(body, MESSAGE_BYTES_MAX).collect().await;
        let collected = collected.map_err(|error| {
            Status::unavailable(format!("reading containerd's answer to a pull: {error}"))
        })?;
        let trailers = collected.trailers().cloned();
        let bytes = collected.to_bytes();
        if let Some(id) = message::payload(&bytes).and_then(message::pulled) {
            keychain.name(&image, &id);
        }
        let body = Full::new(bytes).with_trailers(async move { trailers.map(Ok) });
        Ok(Response::from_parts(head, Body::new(body)))
    }
}

async fn collect(body: Body) -> Result<Bytes, Status> {
    let collected = Limited::new(body, MESSAGE_BYTES_MAX).collect().await;
    collected
        .map(|collected| collected.to_bytes())
        .map_err(|error| Status::resource_exhausted(format!("reading a request of CRI: {error}")))
}
