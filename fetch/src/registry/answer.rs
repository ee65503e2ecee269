//! Answers of servers: limits on their bodies, their words in errors, their wishes about time.

use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::error::{Attempt, RegistryError};

/// How much of an error's body is read.
const ERROR_BODY_LEN_MAX: usize = 8 << 10;
/// How much of a server's words is shown.
const DETAIL_LEN_MAX: usize = 300;

/// Read a whole body of at most `limit` bytes.
pub(super) async fn read_body(
    mut body: Incoming,
    limit: u64,
    at: &Attempt,
) -> Result<Bytes, RegistryError> {
    let too_long = |found: u64| RegistryError::Corrupt {
        at: at.clone(),
        expected: format!("at most {limit} bytes"),
        found: format!("{found} or more"),
    };
    let promised = body.size_hint().lower();
    if promised > limit {
        return Err(too_long(promised));
    }
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| RegistryError::Unreachable {
            at: at.clone(),
            reason: format!("body broke off after {} bytes: {error}", bytes.len()),
        })?;
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() as u64 > limit {
            return Err(too_long(bytes.len() as u64));
        }
    }
    Ok(bytes.freeze())
}

/// Turn a status that is no success into an error, with what the body tells.
pub(super) async fn failure(
    at: Attempt,
    status: StatusCode,
    headers: &HeaderMap,
    body: Incoming,
) -> RegistryError {
    let detail = detail(&read_start(body).await);
    match status.as_u16() {
        403 => RegistryError::Denied { at, detail },
        404 | 410 => RegistryError::NotFound { at, detail },
        408 | 429 | 500 | 502..=599 => {
            let retry_after = retry_after(headers, SystemTime::now());
            RegistryError::Unavailable { at, status, detail, retry_after }
        }
        _ => RegistryError::Unexpected { at, status, detail },
    }
}

/// What can be had of an error's body without effort.
pub(super) async fn read_start(mut body: Incoming) -> Vec<u8> {
    let mut start = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { break };
        let room = ERROR_BODY_LEN_MAX.saturating_sub(start.len());
        start.extend(data.iter().take(room));
        if start.len() >= ERROR_BODY_LEN_MAX {
            break;
        }
    }
    start
}

/// A server's words, with a separator in front: the errors of the distribution specification, else
/// whatever is there, cleaned of control characters.
pub(super) fn detail(body: &[u8]) -> String {
    let known = serde_json::from_slice::<Errors>(body).ok().map(|body| {
        let one = |error: &ErrorEntry| match (error.code.as_str(), error.message.as_str()) {
            (code, "") => code.to_owned(),
            ("", message) => message.to_owned(),
            (code, message) => format!("{code}: {message}"),
        };
        body.errors.iter().map(one).collect::<Vec<_>>().join(", ")
    });
    let text = known.filter(|text| !text.is_empty());
    let text = text.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    let clean: String = text
        .split(|c: char| c.is_control() || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    match clean.chars().count() {
        0 => String::new(),
        1..=DETAIL_LEN_MAX => format!(" ({clean})"),
        _ => format!(" ({}…)", clean.chars().take(DETAIL_LEN_MAX).collect::<String>()),
    }
}

#[derive(serde::Deserialize)]
struct Errors {
    errors: Vec<ErrorEntry>,
}

#[derive(serde::Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// `Retry-After`: seconds or a date.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// Show what a registry wants its users to know (`Warning: 299 - "text"`).
pub(super) fn log_warnings(at: &Attempt, headers: &HeaderMap) {
    for value in headers.get_all(header::WARNING).iter().take(8) {
        let text: String = String::from_utf8_lossy(value.as_bytes())
            .chars()
            .filter(|c| !c.is_control())
            .take(DETAIL_LEN_MAX)
            .collect();
        let text = text.strip_prefix("299 - ").unwrap_or(&text).trim_matches('"').to_owned();
        tracing::warn!(host = at.host, "registry warns: {text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_detail(body: &str, expected: &str) {
        assert_eq!(detail(body.as_bytes()), expected, "{body}");
    }

    #[test]
    fn bodies_may_be_anything() {
        check_detail("", "");
        check_detail(
            r#"{"errors":[{"code":"DENIED","message":"no","detail":{"x":1}},{"code":"OTHER"}]}"#,
            " (DENIED: no, OTHER)",
        );
        check_detail("{\"errors\":[]}", " ({\"errors\":[]})");
        check_detail("<html>\r\n <h1>502\u{1b}[31m</h1>", " (<html> <h1>502 [31m</h1>)");
        check_detail(&"x".repeat(1000), &format!(" ({}…)", "x".repeat(300)));
        assert_eq!(detail(b"\xff\xfe"), " (\u{fffd}\u{fffd})");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let check = |text: &str, expected: Option<u64>| {
            let headers = [(header::RETRY_AFTER, text.parse().unwrap())].into_iter().collect();
            assert_eq!(retry_after(&headers, now), expected.map(Duration::from_secs), "{text}");
        };
        check("7", Some(7));
        check("Sun, 06 Nov 1994 08:50:07 GMT", Some(30));
        check("Sun, 06 Nov 1994 08:00:00 GMT", Some(0));
        check("soon", None);
    }
}
