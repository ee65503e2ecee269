//! Where a redirect may lead. Pure; shared by the control plane's own requests and by located blobs.

use http::StatusCode;
use url::Url;

/// Registries redirect once or twice; more is a loop.
pub(crate) const REDIRECTS_MAX: u32 = 10;

/// True for an answer that names another place for the same request.
pub(crate) fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// Whether a method may be repeated elsewhere after this status. Historic clients turn a POST into a
/// GET on the older codes, so those are ambiguous for anything that changes state.
pub(crate) fn may_follow(status: StatusCode, method: &http::Method) -> bool {
    match status.as_u16() {
        307 | 308 => true,
        301..=303 => matches!(*method, http::Method::GET | http::Method::HEAD),
        _ => false,
    }
}

/// The absolute URL that `location` means, seen from `from`.
pub(crate) fn follow(from: &Url, location: &str, plain_allowed: bool) -> Result<Url, String> {
    let mut to = from.join(location).map_err(|error| format!("redirect is no URL: {error}"))?;
    to.set_fragment(None);
    if !matches!(to.scheme(), "http" | "https") || !to.has_host() {
        return Err(format!("redirect to a {} URL is refused", to.scheme()));
    }
    if from.scheme() == "https" && to.scheme() == "http" && !plain_allowed {
        return Err(format!("redirect from https to plain http at {} is refused", authority(&to)));
    }
    // Names in the URL would be credentials that its author gave us for a host of his choice.
    let _ = to.set_username("");
    let _ = to.set_password(None);
    Ok(to)
}

/// Whether two URLs are of one origin, so that credentials may go along.
pub(crate) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host() == b.host()
        && a.port_or_known_default() == b.port_or_known_default()
}

/// `host[:port]`, for Host headers and messages.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(from: &str, location: &str, expected: Result<&str, &str>) {
        let found = follow(&from.parse().unwrap(), location, false);
        match (&found, expected) {
            (Ok(url), Ok(expected)) => assert_eq!(url.as_str(), expected),
            (Err(text), Err(expected)) => assert!(text.contains(expected), "{text}"),
            _ => panic!("{from} {location}: {found:?}"),
        }
    }

    #[test]
    fn redirects() {
        let from = "https://r.example/v2/a/blobs/x";
        check(from, "/b?q=1#f", Ok("https://r.example/b?q=1"));
        check(from, "//s.example/b", Ok("https://s.example/b"));
        check(from, "y", Ok("https://r.example/v2/a/blobs/y"));
        check(from, "https://u:p@s.example/b", Ok("https://s.example/b"));
        check(from, "http://r.example/b", Err("plain http at r.example is refused"));
        check("http://r.example/", "https://r.example/b", Ok("https://r.example/b"));
        check(from, "file:///etc/passwd", Err("file URL"));
        check(from, "ftp://x/y", Err("ftp URL"));
        check(from, "https://[bad/", Err("no URL"));
    }

    #[test]
    fn origins() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://h/a", "https://H:443/b"));
        assert!(!same("https://h/a", "https://h:444/b"));
        assert!(!same("https://h/a", "http://h/b"));
        assert!(!same("https://h/a", "https://h.x/b"));
    }
}
