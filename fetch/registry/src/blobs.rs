//! GET, HEAD and DELETE of blobs, at the registry and at the blob store behind redirects.

use std::time::SystemTime;

use http::header::{ACCEPT_RANGES, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{Method, StatusCode};
use spanfs_layer::Digest;

use crate::answer::{Answer, DOCKER_CONTENT_DIGEST, bare, error, header, not_found, with_body};
use crate::body::Body;
use crate::range::{Asked, asked};
use crate::redirect::Redirect;
use crate::route::Route;
use crate::serve::{Request, Shared, header_text, host, lock};
use crate::store::Content;

pub(crate) fn get(shared: &Shared, request: &Request, name: &str, digest: &Digest) -> Answer {
    let Some(content) = lock(&shared.store).blob(name, digest) else {
        return not_found("BLOB_UNKNOWN", format!("blob {digest} of {name}"));
    };
    let redirect = lock(&shared.redirect).clone();
    match redirect {
        Some(redirect) if request.method() == Method::GET => {
            let expires = SystemTime::now() + redirect.lifetime;
            redirected(shared, request, digest, &redirect, expires)
        }
        _ => range_of(shared, request, digest, content),
    }
}

/// 307 to the blob store, by a URL that is good until `expires`.
pub(crate) fn redirected(
    shared: &Shared,
    request: &Request,
    digest: &Digest,
    redirect: &Redirect,
    expires: SystemTime,
) -> Answer {
    let host = redirect.host.clone().unwrap_or_else(|| {
        let host = host(request);
        host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name).to_owned()
    });
    let (scheme, port) = (shared.scheme, shared.blob_store_port);
    let signed = shared.signer.sign(digest, expires);
    let url = format!("{scheme}://{host}:{port}{signed}");
    header(bare(StatusCode::TEMPORARY_REDIRECT), LOCATION, url)
}

/// The blob store's side. As real ones do, it refuses a signed URL that comes with credentials.
pub(crate) fn stored(shared: &Shared, request: &Request) -> Answer {
    let Some(Route::StoredBlob(digest)) = Route::parse(request.uri().path()) else {
        return bare(StatusCode::NOT_FOUND);
    };
    if header_text(request, AUTHORIZATION).is_some() {
        shared.counters.update(|stats| stats.credential_leaks += 1);
        let message = "only one way of authentication is allowed: signature or Authorization";
        return error(StatusCode::BAD_REQUEST, "InvalidArgument", message);
    }
    let query = request.uri().query().unwrap_or_default();
    if !shared.signer.check(&digest, query, SystemTime::now()) {
        return error(StatusCode::FORBIDDEN, "AccessDenied", "signature wrong or expired");
    }
    let content = lock(&shared.store).any_blob(&digest);
    match content {
        Some(content) => range_of(shared, request, &digest, content),
        None => bare(StatusCode::NOT_FOUND),
    }
}

fn range_of(shared: &Shared, request: &Request, digest: &Digest, content: Content) -> Answer {
    let len = content.len();
    let wanted = match asked(header_text(request, RANGE).as_deref(), len) {
        Asked::Unsatisfiable => {
            let answer = error(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", "no such range");
            return header(answer, CONTENT_RANGE, format!("bytes */{len}"));
        }
        Asked::Part(range) => Some(range),
        Asked::Whole => None,
    };
    let status = if wanted.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let range = wanted.clone().unwrap_or(0..len);
    if request.method() == Method::GET && !range.is_empty() {
        shared.counters.add_range(*digest, range.clone());
    }
    let answer = with_body(status, Body::range(content, range));
    let answer = header(answer, CONTENT_TYPE, "application/octet-stream");
    let answer = header(answer, ACCEPT_RANGES, "bytes");
    let answer = header(answer, DOCKER_CONTENT_DIGEST, digest);
    match wanted {
        Some(range) => {
            let last = range.end - 1;
            header(answer, CONTENT_RANGE, format!("bytes {}-{last}/{len}", range.start))
        }
        None => answer,
    }
}

pub(crate) fn delete(shared: &Shared, name: &str, digest: &Digest) -> Answer {
    let mut store = lock(&shared.store);
    match store.blob(name, digest).is_some() && store.remove_blob(digest) {
        true => bare(StatusCode::ACCEPTED),
        false => not_found("BLOB_UNKNOWN", digest),
    }
}
