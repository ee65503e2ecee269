//! One request: link, faults, authority, then the part of the API that it is about.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_RANGE, HOST, LOCATION, RANGE, RETRY_AFTER};
use http::header::{HeaderName, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;

use crate::answer::{Answer, bare, error, header, json, not_found};
use crate::auth::{Action, Gate, TokenRequest};
use crate::body::Damage;
use crate::connection::Control;
use crate::faults::{Fault, Faults};
use crate::link::SharedLink;
use crate::redirect::{Redirect, Signer};
use crate::route::Route;
use crate::stats::{Counters, Request as LoggedRequest};
use crate::store::Store;
use crate::uploads::Uploads;
use crate::{blobs, manifests, uploads};

pub(crate) type Request = http::Request<Incoming>;

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) store: Mutex<Store>,
    pub(crate) gate: Mutex<Gate>,
    pub(crate) faults: Mutex<Faults>,
    pub(crate) uploads: Mutex<Uploads>,
    pub(crate) link: Arc<SharedLink>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) signer: Signer,
    pub(crate) redirect: Mutex<Option<Redirect>>,
    pub(crate) referrers: AtomicBool,
    pub(crate) scheme: &'static str,
    pub(crate) blob_store_port: u16,
}

/// A thread that panicked with a lock held has left whole values behind: each is one assignment.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which of the two listeners a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listener {
    Registry,
    BlobStore,
}

impl Shared {
    pub(crate) fn referrers(&self) -> bool {
        self.referrers.load(Ordering::Relaxed)
    }
}

pub(crate) fn header_text(request: &Request, name: HeaderName) -> Option<String> {
    request.headers().get(name)?.to_str().ok().map(str::to_owned)
}

/// An error ends the connection without an answer.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    listener: Listener,
    control: Arc<Control>,
    mut request: Request,
) -> io::Result<Answer> {
    pause(shared.link.round_trip() + shared.link.link().first_byte).await;
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let range = header_text(&request, RANGE).unwrap_or_default();
    let fault = lock(&shared.faults).decide(method.as_str(), &path, &range);
    let at = shared.counters.elapsed();
    if fault.is_some() {
        shared.counters.update(|stats| stats.faults += 1);
        tracing::debug!(%method, path, ?fault, "fault");
    }
    let logged = |status| LoggedRequest {
        method: method.to_string(),
        path: path.clone(),
        range: range.clone(),
        status,
        at,
    };
    if let Some(instead) = fault.as_ref().and_then(|fault| early(fault, &shared, &request)) {
        shared.counters.add_request(logged(instead.status().as_u16()));
        return Ok(instead);
    }
    match fault {
        Some(Fault::Reset { after: 0 }) => {
            shared.counters.add_request(logged(0));
            control.reset();
            return Err(io::Error::other("reset as the fault script says"));
        }
        Some(Fault::Stall { after: 0 }) => {
            shared.counters.add_request(logged(0));
            std::future::pending::<()>().await;
        }
        Some(Fault::Late { by }) => pause(by).await,
        Some(Fault::WholeForRange) => {
            request.headers_mut().remove(RANGE);
        }
        _ => {}
    }
    let answer = match listener {
        Listener::Registry => route(&shared, request).await,
        Listener::BlobStore => blobs::stored(&shared, &request),
    };
    shared.counters.add_request(logged(answer.status().as_u16()));
    Ok(match fault {
        Some(fault) => late(&fault, answer, control),
        None => answer,
    })
}

async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

/// Faults that take the answer's place.
fn early(fault: &Fault, shared: &Shared, request: &Request) -> Option<Answer> {
    match fault {
        Fault::Status(401) => {
            let challenge = authorise(shared, request, &Route::parse(request.uri().path())).err();
            let basic = || "Basic realm=\"spanfs-registry\"".to_owned();
            let challenge = challenge.unwrap_or_else(basic);
            Some(header(bare(StatusCode::UNAUTHORIZED), WWW_AUTHENTICATE, challenge))
        }
        Fault::Status(status) => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Some(error(status, "UNKNOWN", "fault script"))
        }
        Fault::TooManyRequests { retry_after } => {
            let answer = error(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "fault script");
            Some(header(answer, RETRY_AFTER, retry_after.as_secs()))
        }
        Fault::RedirectLoop => {
            Some(header(bare(StatusCode::TEMPORARY_REDIRECT), LOCATION, request.uri()))
        }
        Fault::ExpiredRedirect => match Route::parse(request.uri().path()) {
            Some(Route::Blob(_, digest)) => {
                let redirect = Redirect { lifetime: Duration::ZERO, host: None };
                let expires = SystemTime::now() - Duration::from_secs(1);
                Some(blobs::redirected(shared, request, &digest, &redirect, expires))
            }
            _ => None,
        },
        _ => None,
    }
}

/// Faults that befall the answer.
fn late(fault: &Fault, mut answer: Answer, control: Arc<Control>) -> Answer {
    let damage = match *fault {
        Fault::Reset { after } => {
            control.reset();
            Damage::Cut(after)
        }
        Fault::Close { after } => Damage::Cut(after),
        Fault::Stall { after } => Damage::Stall(after),
        Fault::Flip { at } => Damage::Flip(at),
        Fault::Drip { bytes, every } => Damage::Drip(bytes as u64, every),
        Fault::Truncate { len } => {
            answer.body_mut().truncate(len);
            let len = answer.body().len();
            return header(answer, http::header::CONTENT_LENGTH, len);
        }
        Fault::WrongContentRange => return shifted_content_range(answer),
        _ => Damage::None,
    };
    answer.body_mut().damage(damage, control);
    answer
}

fn shifted_content_range(answer: Answer) -> Answer {
    let value = answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let shifted = value.and_then(|value| {
        let (range, len) = value.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (first.parse::<u64>().ok()? + 1, last.parse::<u64>().ok()? + 1);
        Some(format!("bytes {first}-{last}/{len}"))
    });
    match shifted {
        Some(shifted) => header(answer, CONTENT_RANGE, shifted),
        None => answer,
    }
}

/// Host that the client used, as it may use again.
pub(crate) fn host(request: &Request) -> String {
    header_text(request, HOST).unwrap_or_else(|| "127.0.0.1".to_owned())
}

fn authorise(shared: &Shared, request: &Request, route: &Option<Route>) -> Result<(), String> {
    let realm = format!("{}://{}/token", shared.scheme, host(request));
    let repository = route.as_ref().and_then(Route::repository);
    lock(&shared.gate).check(
        header_text(request, AUTHORIZATION).as_deref(),
        repository,
        Action::of(request.method()),
        &realm,
        Instant::now(),
    )
}

async fn route(shared: &Arc<Shared>, request: Request) -> Answer {
    let route = Route::parse(request.uri().path());
    if route == Some(Route::Token) {
        return token(shared, request).await;
    }
    if let Err(challenge) = authorise(shared, &request, &route) {
        let answer = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "credentials needed");
        return header(answer, WWW_AUTHENTICATE, challenge);
    }
    let method = request.method().clone();
    let reading = matches!(method, Method::GET | Method::HEAD);
    match route {
        Some(Route::Base) if reading => json(StatusCode::OK, "application/json", "{}".into()),
        Some(Route::Manifest(name, reference)) => {
            manifests::serve(shared, request, &name, &reference).await
        }
        Some(Route::Blob(name, digest)) if reading => blobs::get(shared, &request, &name, &digest),
        Some(Route::Blob(name, digest)) if method == Method::DELETE => {
            blobs::delete(shared, &name, &digest)
        }
        Some(Route::Uploads(name)) if method == Method::POST => {
            uploads::begin(shared, request, &name).await
        }
        Some(Route::Upload(name, id)) => uploads::go_on(shared, request, &name, id).await,
        Some(Route::Referrers(name, digest)) if reading => {
            manifests::referrers(shared, &request, &name, &digest)
        }
        Some(Route::Tags(name)) if reading => manifests::tags(shared, &request, &name),
        Some(_) => error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "method not allowed here"),
        None => not_found("NAME_INVALID", request.uri().path()),
    }
}

/// Bytes of a token request's form.
const FORM_LEN_MAX: usize = 64 << 10;

async fn token(shared: &Shared, request: Request) -> Answer {
    let authorization = header_text(&request, AUTHORIZATION);
    let form = match *request.method() {
        Method::POST => match body(request, FORM_LEN_MAX).await {
            Ok(form) => form,
            Err(answer) => return answer,
        },
        _ => Bytes::from(request.uri().query().unwrap_or_default().to_owned()),
    };
    let fields = url::form_urlencoded::parse(&form);
    let fields = fields.map(|(key, value)| (key.into_owned(), value.into_owned())).collect();
    let asked = TokenRequest { authorization, fields };
    match lock(&shared.gate).issue(&asked, Instant::now()) {
        Some(text) => json(StatusCode::OK, "application/json", text),
        None => error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "wrong credentials"),
    }
}

/// All of a request's body, or the answer to one that is too long or breaks off.
pub(crate) async fn body(request: Request, len_max: usize) -> Result<Bytes, Answer> {
    match Limited::new(request.into_body(), len_max).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(reason) => {
            let message = format!("body of at most {len_max} bytes expected: {reason}");
            Err(error(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", &message))
        }
    }
}

/// A parameter of the request's query.
pub(crate) fn query(request: &Request, name: &str) -> Option<String> {
    let query = request.uri().query()?;
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}
