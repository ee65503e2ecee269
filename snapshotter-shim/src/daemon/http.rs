//! A small HTTP server: texts by path, for Prometheus and for operators.

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

use super::socket;
use crate::config::Listen;

/// Clients at once; more wait.
const CONNECTIONS_MAX: usize = 16;
/// Whoever sends no request in that time goes.
const HEADER_TIME_MAX: Duration = Duration::from_secs(10);
/// A full table of files: trying again at once would help nobody.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// A text and what it is.
pub struct Page {
    /// `Content-Type`.
    pub kind: &'static str,
    /// The text.
    pub text: String,
}

/// Makes the page of a path, if there is one; may look at the disk.
pub type Pages = Arc<dyn Fn(&str) -> Option<Page> + Send + Sync>;

/// Prometheus's text form.
pub const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// JSON.
pub const JSON: &str = "application/json";
/// For people.
pub const TEXT: &str = "text/plain; charset=utf-8";

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Serve pages from now on. Returns when it listens, with the serving to be spawned. A socket is for
/// its owner alone.
pub async fn serve(
    listen: &Listen,
    pages: Pages,
) -> io::Result<impl Future<Output = Infallible> + Send + use<>> {
    let listener = match listen {
        Listen::Tcp(address) => Listener::Tcp(TcpListener::bind(address).await?),
        Listen::Unix(path) => {
            let listener = socket::bind(path).map_err(io::Error::other)?;
            listener.set_nonblocking(true)?;
            Listener::Unix(UnixListener::from_std(listener)?)
        }
    };
    Ok(accept(listener, pages))
}

async fn accept(listener: Listener, pages: Pages) -> Infallible {
    let turns = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // It is never closed.
        let turn = Arc::clone(&turns).acquire_owned().await.ok();
        let pages = Arc::clone(&pages);
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(async move {
                    let _turn = turn;
                    connection(stream, pages).await;
                })
            }),
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(async move {
                    let _turn = turn;
                    connection(stream, pages).await;
                })
            }),
        };
        if accepted.is_err() {
            tokio::time::sleep(ACCEPT_DELAY).await;
        }
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, pages: Pages) {
    let service = service_fn(move |request| answer(request, Arc::clone(&pages)));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a request came to no end");
    }
}

async fn answer(
    request: Request<Incoming>,
    pages: Pages,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let (status, page) = match tokio::task::spawn_blocking(move || pages(&path)).await {
        Ok(Some(page)) => (StatusCode::OK, page),
        Ok(None) => (StatusCode::NOT_FOUND, Page { kind: TEXT, text: String::new() }),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, Page { kind: TEXT, text: String::new() }),
    };
    let mut response = Response::new(Full::from(page.text));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static(page.kind);
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    Ok(response)
}
