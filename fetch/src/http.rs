//! HTTP/1.1 requests and replies, as far as ranges of blobs need them.

mod chunked;

use std::ops::Range;
use std::time::Duration;

use crate::plan::Failure;
use crate::target::Target;
pub(crate) use chunked::{Chunked, Piece};

/// Longest header of a reply: what common servers accept from clients.
pub(crate) const HEAD_LEN_MAX: usize = 16 << 10;

const HEADERS_MAX: usize = 64;

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// That many bytes.
    Length(u64),
    /// Chunked transfer encoding.
    Chunked,
    /// Until the server closes.
    Close,
}

/// The header of a reply.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Length of the header itself.
    pub(crate) len: usize,
    pub(crate) status: u16,
    pub(crate) framing: Framing,
    /// Range and total length, if the server told them.
    pub(crate) content_range: Option<(Range<u64>, Option<u64>)>,
    pub(crate) multipart: bool,
    pub(crate) keep_alive: bool,
    pub(crate) location: Option<String>,
    pub(crate) challenge: Option<String>,
    pub(crate) retry_after: Option<Duration>,
}

/// The request for a range of a target, or for all of it.
pub(crate) fn request(target: &Target, range: Option<&Range<u64>>) -> Result<Vec<u8>, Failure> {
    let mut text = format!("GET {} HTTP/1.1\r\nHost: {}\r\n", target.request_target, target.host);
    if let Some(range) = range {
        let last = range.end.saturating_sub(1);
        text.push_str(&format!("Range: bytes={}-{last}\r\n", range.start));
    }
    // A proxy that compresses would break every offset.
    text.push_str("Accept: */*\r\nAccept-Encoding: identity\r\n");
    let breaks = |part: &str| part.bytes().any(|byte| byte < b' ' && byte != b'\t');
    for (name, value) in &target.headers {
        if breaks(name) || breaks(value) {
            return Err(Failure::bad_reply(format!(
                "header {name:?} to send has a control character"
            )));
        }
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if breaks(&target.request_target) || breaks(&target.host) {
        return Err(Failure::bad_reply("the URL to request has a control character"));
    }
    text.push_str("\r\n");
    Ok(text.into_bytes())
}

/// The request for a tunnel through a proxy.
pub(crate) fn connect_request(authority: &str, authorization: Option<&str>) -> Vec<u8> {
    let mut text = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
    if let Some(value) = authorization {
        text.push_str(&format!("Proxy-Authorization: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.into_bytes()
}

/// Parse the header of a reply, if it is there in full.
pub(crate) fn parse_head(bytes: &[u8]) -> Result<Option<Head>, Failure> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut reply = httparse::Response::new(&mut headers);
    let len = match reply.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_LEN_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => {
            let message = format!("the reply's header exceeds {HEAD_LEN_MAX} bytes");
            return Err(Failure::bad_reply(message));
        }
        Err(error) => {
            return Err(Failure::bad_reply(format!("the reply is not HTTP/1.1: {error}")));
        }
    };
    let mut head = Head {
        len,
        status: reply.code.unwrap_or(0),
        framing: Framing::Close,
        content_range: None,
        multipart: false,
        keep_alive: reply.version == Some(1),
        location: None,
        challenge: None,
        retry_after: None,
    };
    let mut content_length = None;
    for header in reply.headers.iter() {
        let value = String::from_utf8_lossy(header.value);
        head.apply(header.name, value.trim(), &mut content_length)?;
    }
    if let (Framing::Close, Some(len)) = (head.framing, content_length) {
        head.framing = Framing::Length(len);
    }
    // RFC 9112, 6.1: a message with both is suspect; its connection is not used again.
    if head.framing == Framing::Close
        || (head.framing == Framing::Chunked && content_length.is_some())
    {
        head.keep_alive = false;
    }
    Ok(Some(head))
}

impl Head {
    fn apply(
        &mut self,
        name: &str,
        value: &str,
        content_length: &mut Option<u64>,
    ) -> Result<(), Failure> {
        let bad = |what: &str| Err(Failure::bad_reply(format!("{what}: {value:?}")));
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if is("content-length") {
            match value.parse() {
                Ok(len) if content_length.is_none_or(|other| other == len) => {
                    *content_length = Some(len);
                }
                _ => return bad("bad or contradictory Content-Length"),
            }
        } else if is("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return bad("unknown Transfer-Encoding");
            }
            self.framing = Framing::Chunked;
        } else if is("content-encoding") {
            if !value.eq_ignore_ascii_case("identity") {
                return bad("unwanted Content-Encoding");
            }
        } else if is("content-range") {
            // `bytes */1234` comes with 416 and has no range.
            if !value.starts_with("bytes */") {
                match parse_content_range(value) {
                    Some(range) => self.content_range = Some(range),
                    None => return bad("bad Content-Range"),
                }
            }
        } else if is("content-type") {
            self.multipart = value.to_ascii_lowercase().starts_with("multipart/");
        } else if is("connection") {
            let mut tokens = value.split(',').map(str::trim);
            if tokens.any(|token| token.eq_ignore_ascii_case("close")) {
                self.keep_alive = false;
            }
        } else if is("location") {
            self.location = Some(value.to_owned());
        } else if is("www-authenticate") {
            let joined = self.challenge.take().map(|first| format!("{first}, {value}"));
            self.challenge = Some(joined.unwrap_or_else(|| value.to_owned()));
        } else if is("retry-after") {
            self.retry_after = parse_retry_after(value);
        }
        Ok(())
    }
}

/// `bytes FIRST-LAST/TOTAL`, where TOTAL may be `*` (RFC 9110, 14.4).
fn parse_content_range(value: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    let end = last.checked_add(1)?;
    (first < end && total.is_none_or(|total| end <= total)).then_some((first..end, total))
}

/// Seconds, or a date; a date in the past asks for no wait.
fn parse_retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    Some(at.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests;
