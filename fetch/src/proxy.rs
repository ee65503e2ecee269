//! Proxies, as the variables `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` describe them.
//!
//! Source: the rules of Go's `golang.org/x/net/http/httpproxy`, which the field's other tools follow.

use std::fmt;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use url::{Host, Url};

use crate::credentials::Secret;

/// Values of the variables, empty or absent ones as `None`. This crate reads no environment.
#[derive(Clone, Debug, Default)]
pub struct ProxyOptions {
    /// `HTTP_PROXY`: for plain-HTTP hosts.
    pub http: Option<Secret>,
    /// `HTTPS_PROXY`: for hosts with TLS.
    pub https: Option<Secret>,
    /// `NO_PROXY`: names, addresses and networks that are reached directly, separated by commas.
    pub no_proxy: Option<String>,
}

/// A value that names no proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable} is not the http:// URL of a proxy: {reason}")]
pub struct ProxyError {
    /// Which of the values.
    pub variable: &'static str,
    /// What is wrong; never the value, which may hold a password.
    pub reason: String,
}

/// One proxy.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Value of Proxy-Authorization.
    pub(crate) authorization: Option<String>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proxy {}:{}", self.host, self.port)
    }
}

/// Which proxy a URL goes through.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    except: Vec<Exception>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Exception {
    All,
    Network { address: IpAddr, prefix: u8 },
    Name { suffix: String, subdomains_only: bool, port: Option<u16> },
}

impl Proxies {
    pub(crate) fn new(options: &ProxyOptions) -> Result<Self, ProxyError> {
        let except = options.no_proxy.as_deref().unwrap_or_default();
        Ok(Self {
            http: parse("HTTP_PROXY", options.http.as_ref())?,
            https: parse("HTTPS_PROXY", options.https.as_ref())?,
            except: except.split([',', ' ']).filter_map(exception).collect(),
        })
    }

    /// The proxy for a URL; `None` to go directly.
    pub(crate) fn choose(&self, secure: bool, host: &str, port: u16) -> Option<&Proxy> {
        let proxy = if secure { &self.https } else { &self.http }.as_ref()?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok();
        // A proxy elsewhere could never reach what we call localhost.
        let local = host == "localhost" || address.is_some_and(|a| a.is_loopback());
        let direct = local || self.except.iter().any(|e| e.covers(&host, address, port));
        (!direct).then_some(proxy)
    }
}

impl Exception {
    fn covers(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Network { address: network, prefix } => {
                address.is_some_and(|address| in_network(address, *network, *prefix))
            }
            Self::Name { suffix, subdomains_only, port: only } => {
                let exact = !subdomains_only && host == suffix;
                let below = host.strip_suffix(suffix.as_str()).is_some_and(|h| h.ends_with('.'));
                (exact || below) && only.is_none_or(|only| only == port)
            }
        }
    }
}

fn in_network(address: IpAddr, network: IpAddr, prefix: u8) -> bool {
    let top =
        |bits: u128, width: u32| bits.checked_shr(width.saturating_sub(prefix.into())).unwrap_or(0);
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => {
            top(a.to_bits().into(), 32) == top(n.to_bits().into(), 32)
        }
        (IpAddr::V6(a), IpAddr::V6(n)) => top(a.to_bits(), 128) == top(n.to_bits(), 128),
        _ => false,
    }
}

fn exception(text: &str) -> Option<Exception> {
    let text = text.trim().to_ascii_lowercase();
    if text.is_empty() {
        return None;
    }
    if text == "*" {
        return Some(Exception::All);
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        return Some(Exception::Network { address, prefix });
    }
    if let Some((address, prefix)) = text.split_once('/') {
        let (address, prefix) = (address.parse().ok()?, prefix.parse().ok()?);
        return Some(Exception::Network { address, prefix });
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, Some(port.parse().ok()?)),
        None => (text.as_str(), None),
    };
    let name = name.strip_prefix('*').unwrap_or(name);
    let suffix = name.trim_start_matches('.').to_owned();
    Some(Exception::Name { subdomains_only: name.starts_with('.'), suffix, port })
}

fn parse(variable: &'static str, value: Option<&Secret>) -> Result<Option<Proxy>, ProxyError> {
    let Some(value) = value.map(Secret::reveal).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let bad = |reason: &str| ProxyError { variable, reason: reason.to_owned() };
    let url = match value.contains("://") {
        true => Url::parse(value),
        false => Url::parse(&format!("http://{value}")),
    };
    let url = url.map_err(|error| bad(&error.to_string()))?;
    if url.scheme() != "http" {
        return Err(bad(&format!("scheme {:?} is not supported", url.scheme())));
    }
    let host = url.host().ok_or_else(|| bad("it has no host"))?;
    Ok(Some(Proxy {
        host: match host {
            Host::Ipv6(address) => address.to_string(),
            other => other.to_string(),
        },
        port: url.port_or_known_default().unwrap_or(80),
        authorization: authorization(&url),
    }))
}

fn authorization(url: &Url) -> Option<String> {
    if url.username().is_empty() {
        return None;
    }
    let mut pair = percent_decode(url.username());
    pair.push(b':');
    pair.extend(percent_decode(url.password().unwrap_or_default()));
    Some(format!("Basic {}", STANDARD.encode(pair)))
}

fn percent_decode(text: &str) -> Vec<u8> {
    // The url crate writes user and password percent-encoded; its form decoder undoes exactly that,
    // once a plus sign is kept from becoming a space.
    let query = format!("v={}", text.replace('+', "%2B").replace('&', "%26"));
    url::form_urlencoded::parse(query.as_bytes())
        .next()
        .map(|(_, value)| value.into_owned().into_bytes())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(no_proxy: &str) -> Proxies {
        Proxies::new(&ProxyOptions {
            http: Some(Secret::new("http://u:p%40w+1@proxy.example:3128")),
            https: Some(Secret::new("secure.example:8080")),
            no_proxy: Some(no_proxy.to_owned()),
        })
        .unwrap()
    }

    #[test]
    fn each_scheme_has_its_own() {
        let all = proxies("");
        let plain = all.choose(false, "h.example", 80).unwrap();
        assert_eq!((plain.host.as_str(), plain.port), ("proxy.example", 3128));
        assert_eq!(plain.authorization.as_deref(), Some("Basic dTpwQHcrMQ=="));
        let secure = all.choose(true, "h.example", 443).unwrap();
        assert_eq!((secure.host.as_str(), secure.port), ("secure.example", 8080));
        assert!(Proxies::default().choose(true, "h.example", 443).is_none());
        assert!(!format!("{all:?}").contains("dTpw"));
    }

    fn check(no_proxy: &str, host: &str, port: u16, expected_direct: bool) {
        let direct = proxies(no_proxy).choose(false, host, port).is_none();
        assert_eq!(direct, expected_direct, "{no_proxy:?} {host}:{port}");
    }

    #[test]
    fn exceptions() {
        check("", "localhost", 80, true);
        check("", "127.1.2.3", 80, true);
        check("", "[::1]", 80, true);
        check("*", "h.example", 80, true);
        check("example.com", "example.com", 80, true);
        check("example.com", "a.example.com", 80, true);
        check("example.com", "notexample.com", 80, false);
        check(".example.com", "example.com", 80, false);
        check(".example.com", "a.Example.com", 80, true);
        check("x,h.example:5000", "h.example", 5000, true);
        check("x,h.example:5000", "h.example", 80, false);
        check("10.0.0.0/8", "10.9.8.7", 80, true);
        check("10.0.0.0/8", "11.9.8.7", 80, false);
        check("0.0.0.0/0", "11.9.8.7", 80, true);
        check("fd00::/8", "[fd01::2]", 80, true);
        check("fd00::/8", "h.example", 80, false);
        check("192.0.2.1", "192.0.2.1", 80, true);
        check("10.0.0.0/x, /8,:", "10.0.0.1", 80, false);
    }

    #[test]
    fn what_is_no_proxy_is_refused() {
        for value in ["socks5://h:1", "https://h:1", "http://", "http://h:99999"] {
            let options = ProxyOptions { https: Some(Secret::new(value)), ..Default::default() };
            let error = Proxies::new(&options).unwrap_err();
            assert!(error.to_string().starts_with("HTTPS_PROXY is not"), "{error}");
        }
    }
}
