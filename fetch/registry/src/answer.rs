//! Answers as the distribution specification forms them.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::body::Body;

pub(crate) type Answer = Response<Body>;

pub(crate) const DOCKER_CONTENT_DIGEST: HeaderName =
    HeaderName::from_static("docker-content-digest");

/// Status with an empty body.
pub(crate) fn bare(status: StatusCode) -> Answer {
    with_body(status, Body::empty())
}

pub(crate) fn with_body(status: StatusCode, body: Body) -> Answer {
    let len = body.len();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_LENGTH, len.into());
    answer
}

pub(crate) fn json(status: StatusCode, media_type: &'static str, text: String) -> Answer {
    let answer = with_body(status, Body::text(Bytes::from(text)));
    header(answer, CONTENT_TYPE, media_type)
}

/// Error in the specification's form: its code, and a sentence.
pub(crate) fn error(status: StatusCode, code: &str, message: &str) -> Answer {
    let text = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
    json(status, "application/json", text.to_string())
}

pub(crate) fn not_found(code: &str, what: impl std::fmt::Display) -> Answer {
    error(StatusCode::NOT_FOUND, code, &format!("{what} is unknown to the registry"))
}

/// The answer with a header set. Values that HTTP can't carry are our own mistake.
pub(crate) fn header(mut answer: Answer, name: HeaderName, value: impl ToString) -> Answer {
    let value = HeaderValue::try_from(value.to_string());
    let value = value.unwrap_or_else(|_| panic!("header {name} of ours must be printable"));
    answer.headers_mut().insert(name, value);
    answer
}
