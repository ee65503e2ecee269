//! containerd's `hosts.toml`.
//!
//! Source: containerd `docs/hosts.md`. Keys that we don't know are warned of, not refused: newer
//! containerd versions add some.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use toml::{Table, Value};
use url::Url;

use super::{Capabilities, HostOptions};

/// Hosts of one file: its `[host]` tables in their order, then the server. Paths are relative to
/// `directory`.
pub(super) fn parse(
    text: &str,
    directory: &Path,
    origin: HostOptions,
) -> Result<Vec<HostOptions>, String> {
    let file: Table = text.parse().map_err(|error: toml::de::Error| {
        format!("not TOML: {} at {:?}", error.message(), error.span().unwrap_or_default())
    })?;
    let reader = Reader { directory };
    let mut hosts = Vec::new();
    if let Some(tables) = file.get("host") {
        let tables = tables.as_table().ok_or("`host` is not a table of URLs")?;
        for url in in_file_order(text, tables) {
            let table = tables.get(url).and_then(Value::as_table);
            let table = table.ok_or_else(|| format!("host {url:?} is not a table"))?;
            let base = base_url(url).map_err(|error| format!("host {url:?}: {error}"))?;
            let plain = HostOptions { base, capabilities: Capabilities::ALL, ..origin.clone() };
            hosts.push(reader.host(table, plain, url)?);
        }
    }
    let mut server = origin;
    if let Some(url) = file.get("server") {
        let url = url.as_str().ok_or("`server` is not a text")?;
        server.base = base_url(url).map_err(|error| format!("server {url:?}: {error}"))?;
    }
    let mut server = reader.host(&file, server, "server")?;
    if server.tls.is_special() && !file.contains_key("server") {
        // TLS settings mean TLS, also for a name that would else be spoken to without.
        let _ = server.base.set_scheme("https");
    }
    hosts.push(server);
    Ok(hosts)
}

/// The order of mirrors is the order of preference, which a parsed table does not keep.
fn in_file_order<'a>(text: &str, tables: &'a Table) -> Vec<&'a str> {
    let parsed = toml::de::DeTable::parse(text);
    let spans = parsed.as_ref().ok().and_then(|file| {
        let hosts = file.get_ref().get("host")?.get_ref().as_table()?;
        Some(hosts.iter().map(|(key, _)| (key.get_ref().as_ref(), key.span().start)).collect())
    });
    let spans: Vec<(&str, usize)> = spans.unwrap_or_default();
    let place = |name: &str| spans.iter().find(|(key, _)| *key == name).map(|(_, at)| *at);
    let mut names: Vec<&str> = tables.keys().map(String::as_str).collect();
    names.sort_by_key(|name| place(name));
    names
}

/// A URL, or a bare host that means https.
fn base_url(text: &str) -> Result<Url, String> {
    let url = match text.contains("://") {
        true => Url::parse(text),
        false => Url::parse(&format!("https://{text}")),
    };
    let mut url = url.map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("scheme {:?} is neither http nor https", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials do not belong into a URL".to_owned());
    }
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

struct Reader<'a> {
    directory: &'a Path,
}

impl Reader<'_> {
    fn host(
        &self,
        table: &Table,
        mut host: HostOptions,
        name: &str,
    ) -> Result<HostOptions, String> {
        let mut override_path = false;
        for (key, value) in table {
            let wrong = |expected: &str| format!("{name}: `{key}` is not {expected}");
            match key.as_str() {
                "capabilities" => {
                    host.capabilities =
                        capabilities(value).ok_or_else(|| wrong("a list of texts"))?;
                }
                "ca" => host.tls.ca_files = self.paths(value).ok_or_else(|| wrong("paths"))?,
                "client" => {
                    host.tls.client_pairs =
                        self.pairs(value).ok_or_else(|| wrong("a path or pairs of paths"))?;
                }
                "skip_verify" => {
                    host.tls.skip_verify = value.as_bool().ok_or_else(|| wrong("true or false"))?;
                }
                "override_path" => {
                    override_path = value.as_bool().ok_or_else(|| wrong("true or false"))?;
                }
                "header" => {
                    let table = value.as_table().ok_or_else(|| wrong("a table"))?;
                    host.headers = headers(table).map_err(|error| format!("{name}: {error}"))?;
                }
                "dial_timeout" => {
                    let text = value.as_str().ok_or_else(|| wrong("a text"))?;
                    host.dial_timeout =
                        Some(duration(text).ok_or_else(|| wrong("a duration such as \"5s\""))?);
                }
                "server" | "host" if name == "server" => {}
                _ => tracing::warn!(
                    directory = %self.directory.display(),
                    "hosts.toml: unknown key {key:?} of {name} is ignored"
                ),
            }
        }
        let path = host.base.path().trim_end_matches('/').to_owned();
        if !override_path && path.rsplit('/').next() != Some("v2") {
            host.base.set_path(&format!("{path}/v2"));
        }
        Ok(host)
    }

    fn path(&self, value: &Value) -> Option<PathBuf> {
        value.as_str().map(|path| self.directory.join(path))
    }

    /// One path or a list of them.
    fn paths(&self, value: &Value) -> Option<Vec<PathBuf>> {
        match value {
            Value::String(_) => Some(vec![self.path(value)?]),
            Value::Array(values) => values.iter().map(|value| self.path(value)).collect(),
            _ => None,
        }
    }

    /// A file with both, a list of such files, or a list of `[certificate, key]`.
    fn pairs(&self, value: &Value) -> Option<Vec<(PathBuf, PathBuf)>> {
        let both = |path: PathBuf| (path.clone(), path);
        match value {
            Value::String(_) => Some(vec![both(self.path(value)?)]),
            Value::Array(values) => values
                .iter()
                .map(|value| match value {
                    Value::Array(pair) => match pair.as_slice() {
                        [one] => Some(both(self.path(one)?)),
                        [certificate, key] => {
                            let key = key.as_str().filter(|key| !key.is_empty());
                            let certificate = self.path(certificate)?;
                            Some(match key {
                                Some(key) => (certificate, self.directory.join(key)),
                                None => both(certificate),
                            })
                        }
                        _ => None,
                    },
                    _ => Some(both(self.path(value)?)),
                })
                .collect(),
            _ => None,
        }
    }
}

fn capabilities(value: &Value) -> Option<Capabilities> {
    let mut capabilities = Capabilities::NONE;
    for name in value.as_array()? {
        let name = name.as_str()?;
        if !capabilities.add(name) {
            tracing::warn!("hosts.toml: unknown capability {name:?} is ignored");
        }
    }
    Some(capabilities)
}

fn headers(table: &Table) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in table {
        let key: HeaderName =
            name.parse().map_err(|_| format!("header name {name:?} is not valid"))?;
        let texts = match value {
            Value::Array(values) => values.iter().map(Value::as_str).collect::<Option<Vec<_>>>(),
            other => other.as_str().map(|text| vec![text]),
        };
        for text in texts.ok_or_else(|| format!("header {name:?} is not a text or texts"))? {
            // The value may be a secret: it is not repeated in the message.
            let mut value: HeaderValue =
                text.parse().map_err(|_| format!("value of header {name:?} is not valid"))?;
            value.set_sensitive(true);
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}

/// Durations as Go writes them: `1m30s`, `500ms`, `1.5h`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at_checked(digits)?;
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at_checked(end)?;
        let factor = match unit {
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * factor;
        rest = next;
    }
    let sane = seconds > 0.0 && seconds < 86_400.0;
    sane.then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests;
