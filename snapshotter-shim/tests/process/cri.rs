//! A kubelet and a containerd, as far as CRI's image service goes.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::{Channel, Server};
use tonic_prost::ProstCodec;
use tower_service::Service;

#[derive(Clone, PartialEq, prost::Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Auth {
    #[prost(string, tag = "1")]
    username: String,
    #[prost(string, tag = "2")]
    password: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Pull {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
    #[prost(message, optional, tag = "2")]
    auth: Option<Auth>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Newer {
    #[prost(string, tag = "99")]
    text: String,
}

/// Answers pulls with an id, and all else with what was asked.
#[derive(Clone)]
struct Containerd {
    id: String,
}

impl NamedService for Containerd {
    const NAME: &'static str = "runtime.v1.ImageService";
}

impl Service<Request<Body>> for Containerd {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let id = self.id.clone();
        Box::pin(async move {
            let is_pull = request.uri().path().ends_with("/PullImage");
            let asked = request.into_body().collect().await.unwrap().to_bytes();
            let answer = if is_pull { frame(&Text { text: id }) } else { asked };
            let trailers = HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("0"),
            )]);
            let body = Full::new(answer).with_trailers(ready(Some(Ok(trailers))));
            let mut response = Response::new(Body::new(body));
            let kind = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
            Ok(response)
        })
    }
}

fn frame(message: &impl prost::Message) -> Bytes {
    let body = message.encode_to_vec();
    [&[0][..], &(body.len() as u32).to_be_bytes(), &body].concat().into()
}

/// containerd's image service, listening.
pub(crate) struct Backend {
    pub(crate) socket: PathBuf,
    pub(crate) id: String,
}

impl Backend {
    pub(crate) fn start(socket: &Path) -> Self {
        let id = "sha256:0123".to_owned();
        let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let server = Server::builder().add_service(Containerd { id: id.clone() });
        tokio::spawn(server.serve_with_incoming(incoming));
        Self { socket: socket.to_owned(), id }
    }
}

async fn call<Q, A>(channel: Channel, method: &'static str, request: Q) -> A
where
    Q: prost::Message + Default + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let codec: ProstCodec<Q, A> = ProstCodec::default();
    let path = PathAndQuery::from_static(method);
    client.unary(tonic::Request::new(request), path, codec).await.unwrap().into_inner()
}

/// Pull as a kubelet does; the image's id.
pub(crate) async fn pull(channel: Channel, image: &str, username: &str, password: &str) -> String {
    let (username, password) = (username.to_owned(), password.to_owned());
    let image = Some(ImageSpec { image: image.to_owned() });
    let request = Pull { image, auth: Some(Auth { username, password }) };
    let answer: Text = call(channel, "/runtime.v1.ImageService/PullImage", request).await;
    answer.text
}

/// A method and a field that nobody here knows.
pub(crate) async fn unknown(channel: Channel) -> String {
    let request = Newer { text: "of a newer version".to_owned() };
    let answer: Newer = call(channel, "/runtime.v1.ImageService/Newer", request).await;
    answer.text
}

pub(crate) async fn remove(channel: Channel, image: &str) {
    let request = Pull { image: Some(ImageSpec { image: image.to_owned() }), auth: None };
    let _: Text = call(channel, "/runtime.v1.ImageService/RemoveImage", request).await;
}
