//! The HTTP server in front of the numbers.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::config::Listen;

/// Scrapers at once; more wait.
const CONNECTIONS_MAX: usize = 16;
/// Whoever sends no request in that time goes.
const HEADER_TIME_MAX: Duration = Duration::from_secs(10);
/// A full table of files: trying again at once would help nobody.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// Makes the text of a scrape; may look at the disk.
pub type Render = Arc<dyn Fn() -> String + Send + Sync>;

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Serve `/metrics` from now on. Returns when it listens, with the serving to be spawned.
pub async fn serve(
    listen: &Listen,
    render: Render,
) -> io::Result<impl Future<Output = Infallible> + Send + use<>> {
    let listener = match listen {
        Listen::Tcp(address) => Listener::Tcp(TcpListener::bind(address).await?),
        Listen::Unix(path) => {
            // A socket that nobody listens at is of a dead process.
            if tokio::net::UnixStream::connect(path).await.is_err() {
                let _not_there = std::fs::remove_file(path);
            }
            Listener::Unix(UnixListener::bind(path)?)
        }
    };
    Ok(accept(listener, render))
}

async fn accept(listener: Listener, render: Render) -> Infallible {
    let turns = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // It is never closed.
        let turn = Arc::clone(&turns).acquire_owned().await.ok();
        let render = Arc::clone(&render);
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(async move {
                    let _turn = turn;
                    connection(stream, render).await;
                })
            }),
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(async move {
                    let _turn = turn;
                    connection(stream, render).await;
                })
            }),
        };
        if accepted.is_err() {
            tokio::time::sleep(ACCEPT_DELAY).await;
        }
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, render: Render) {
    let service = service_fn(move |request| answer(request, Arc::clone(&render)));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a scrape came to no end");
    }
}

async fn answer(
    request: Request<Incoming>,
    render: Render,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let text = match request.uri().path() {
        "/metrics" => tokio::task::spawn_blocking(move || render()).await.ok(),
        _ => None,
    };
    let mut response = Response::new(Full::from(text.clone().unwrap_or_default()));
    if text.is_none() {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    Ok(response)
}
