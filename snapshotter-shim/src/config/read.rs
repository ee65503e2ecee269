//! From the text of the settings file to [`RawConfig`].
//!
//! Which keys there are, and of which type, says `RawConfig` itself: a value with one entry in each
//! list and map is the pattern that the file is held against. Case does not count, as for the peer.

use std::ops::Range;

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::raw::{DecompressStream, Mirror, RawConfig, ResolverHost};
use super::resolve::socket_path;
use super::{Fault, Finding};

/// Stands for any name in the pattern.
const ANY: &str = "*";

/// Keys that older releases knew, and what became of them.
const DEAD: [(&str, &str); 2] = [
    ("allow_no_verification", "spans are always verified"),
    ("content_store.namespace", "the namespace is that of each request"),
];

/// Keys that the peer reads and that mean nothing here. All others are in the settings.
const WITHOUT_EFFECT: [(&str, &str); 29] = [
    ("http_cache_type", "the peer does not use it either"),
    ("filesystem_cache_type", "spans are kept in layer files"),
    ("resolve_result_entry", "resolved layers are kept as long as they are mounted"),
    ("metadata_store", "file metadata is in the layer index"),
    ("metadata_db_no_sync", "file metadata is in the layer index"),
    ("metadata_insertion_chunk_size", "file metadata is in the layer index"),
    ("directory_cache.max_lru_cache_entry", "spans are kept in layer files"),
    ("directory_cache.max_cache_fds", "spans are kept in layer files"),
    ("directory_cache.sync_add", "spans are kept in layer files"),
    ("directory_cache.direct", "spans are kept in layer files"),
    ("debug", "the kernel answers most operations itself; see /debug/layers"),
    ("fuse.log_fuse_operations", "the kernel answers most operations itself; see /debug/layers"),
    ("fuse.attr_timeout", "layers never change: the kernel keeps what it knows"),
    ("fuse.entry_timeout", "layers never change: the kernel keeps what it knows"),
    ("fuse.negative_timeout", "layers never change: the kernel keeps what it knows"),
    ("fuse_metrics_emit_wait_duration_sec", "the kernel answers most operations itself"),
    ("disable_verification", "spans and layers are always verified"),
    ("max_concurrency", "an image is looked up once for all its layers"),
    ("blob.valid_interval", "a blob is asked for when it is read"),
    ("blob.check_always", "a blob is asked for when it is read"),
    ("blob.force_single_range_mode", "a request never asks for more than one range"),
    (
        "blob.max_span_verification_retries",
        "a wrong span is asked for again as often as a lost one",
    ),
    ("background_fetch.fetch_period_msec", "idle bandwidth is used, and yields to who waits"),
    ("background_fetch.max_queue_size", "each image plans its own fetches, within bounds"),
    ("background_fetch.drop_policy", "each image plans its own fetches, within bounds"),
    ("background_fetch.emit_metric_period_sec", "there is no such queue"),
    ("prefetch.max_concurrency", "the fetcher has its own limits, and yields to who waits"),
    ("resolver.auth_client_ttl_sec", "logins are asked for with every token"),
    ("resolver.enable_auth_client_sharing", "tokens are shared as far as their scope allows"),
];

/// What a file says.
pub(super) struct Read {
    pub(super) raw: RawConfig,
    pub(super) faults: Vec<Fault>,
    pub(super) warnings: Vec<Finding>,
}

/// Read a file. Keys that can't be are left out of the settings and told as faults.
pub(super) fn read(text: &str) -> Read {
    let mut reader = Reader { text, faults: Vec::new(), warnings: Vec::new() };
    let mut table = Table::new();
    match DeTable::parse(text) {
        Ok(parsed) => table = reader.table(parsed.get_ref(), &pattern(), ""),
        Err(error) => {
            let line = error.span().map(|span| reader.line(&span));
            reader.faults.push(Fault { line, problem: error.message().to_owned() });
        }
    }
    let raw = RawConfig::deserialize(table).unwrap_or_else(|error| {
        // The walk lets pass only what fits; this is for what it can't know.
        reader.faults.push(Fault { line: None, problem: error.to_string() });
        RawConfig::default()
    });
    Read { raw, faults: reader.faults, warnings: reader.warnings }
}

fn pattern() -> Table {
    let mut raw = RawConfig::default();
    let stream = DecompressStream { args: vec![String::new()], ..DecompressStream::default() };
    raw.pull_modes.parallel_pull_unpack.decompress_streams.insert(ANY.to_owned(), stream);
    let host = ResolverHost { mirrors: vec![Mirror::default()] };
    raw.resolver.host.insert(ANY.to_owned(), host);
    raw.spanfs.overlay.mount_options.push(String::new());
    Table::try_from(raw).expect("settings are texts, numbers, lists and tables")
}

struct Reader<'a> {
    text: &'a str,
    faults: Vec<Fault>,
    warnings: Vec<Finding>,
}

impl Reader<'_> {
    /// `found` with the pattern's spelling of its keys, and only what fits.
    fn table(&mut self, found: &DeTable<'_>, pattern: &Table, path: &str) -> Table {
        let mut table = Table::new();
        for (key, value) in found {
            let line = self.line(&key.span());
            let name = key.get_ref().as_ref();
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            let Some((known, pattern)) = known(pattern, name) else {
                self.unknown(line, &path, name, pattern);
                continue;
            };
            let known = if known == ANY { name } else { known };
            let Some(value) = self.value(value, pattern, &path) else { continue };
            if table.insert(known.to_owned(), value.clone()).is_some() {
                self.fault(line, format!("key {path} is given twice"));
            }
            if path.eq_ignore_ascii_case("debug_address")
                && value.as_str().is_some_and(|it| !it.is_empty() && socket_path(it).is_none())
            {
                let text = "debug_address is no path of a socket, and nothing else is served";
                self.warn(line, text.to_owned());
            }
            if let Some(why) = reason(&WITHOUT_EFFECT, &path)
                && value != *pattern
            {
                self.warn(line, format!("key {path} has no effect here: {why}"));
            }
        }
        table
    }

    fn value(
        &mut self,
        found: &Spanned<DeValue<'_>>,
        pattern: &Value,
        path: &str,
    ) -> Option<Value> {
        let line = self.line(&found.span());
        let value = match (found.get_ref(), pattern) {
            (DeValue::Table(table), Value::Table(pattern)) => {
                Some(Value::Table(self.table(table, pattern, path)))
            }
            (DeValue::Array(list), Value::Array(pattern)) => {
                let pattern = pattern.first().expect("a list of the pattern has one entry");
                let list = list.iter().filter_map(|entry| self.value(entry, pattern, path));
                Some(Value::Array(list.collect()))
            }
            (DeValue::String(text), Value::String(_)) => Some(Value::String(text.to_string())),
            (DeValue::Boolean(value), Value::Boolean(_)) => Some(Value::Boolean(*value)),
            (DeValue::Integer(number), Value::Integer(_)) => {
                let number = i64::from_str_radix(number.as_str(), number.radix());
                if number.is_err() {
                    self.fault(line, format!("{path} is out of the range of numbers"));
                    return None;
                }
                number.ok().map(Value::Integer)
            }
            _ => None,
        };
        if value.is_none() {
            let (wanted, found) = (pattern.type_str(), found.get_ref().type_str());
            self.fault(line, format!("{path} is {found}, expected {wanted}"));
        }
        value
    }

    fn unknown(&mut self, line: usize, path: &str, name: &str, siblings: &Table) {
        if let Some(why) = reason(&DEAD, path) {
            self.warn(line, format!("key {path} is no more: {why}"));
            return;
        }
        let nearest = siblings
            .keys()
            .map(|key| (distance(&key.to_ascii_lowercase(), &name.to_ascii_lowercase()), key))
            .min()
            .filter(|(distance, key)| *distance <= key.len() / 2);
        let hint = match nearest {
            Some((_, key)) => format!(", did you mean {key}?"),
            None => String::new(),
        };
        self.fault(line, format!("unknown key {path}{hint}"));
    }

    fn fault(&mut self, line: usize, problem: String) {
        self.faults.push(Fault { line: Some(line), problem });
    }

    fn warn(&mut self, line: usize, text: String) {
        self.warnings.push(Finding { line, text });
    }

    fn line(&self, span: &Range<usize>) -> usize {
        let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
        1 + before.iter().filter(|&&byte| byte == b'\n').count()
    }
}

fn known<'p>(pattern: &'p Table, name: &str) -> Option<(&'p str, &'p Value)> {
    pattern
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name) || *key == ANY)
        .map(|(key, value)| (key.as_str(), value))
}

fn reason(table: &[(&str, &'static str)], path: &str) -> Option<&'static str> {
    table.iter().find(|(key, _)| key.eq_ignore_ascii_case(path)).map(|(_, why)| *why)
}

/// Least number of letters to insert, delete or replace (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in
            [("", "", 0), ("a", "", 1), ("retry", "retries", 3), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
