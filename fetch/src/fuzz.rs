//! Doors for the fuzz targets: the parsers of this crate that read what others wrote.
//!
//! Each gives a short form of what it understood, so that a target can state more than "no crash".

use std::ops::Range;
use std::path::Path;

/// The header of a reply to a range request: its length, status, and the range it says it has.
pub fn range_reply(bytes: &[u8]) -> Option<(usize, u16, Option<Range<u64>>)> {
    let head = crate::http::parse_head(bytes).ok()??;
    Some((head.len, head.status, head.content_range.map(|(range, _)| range)))
}

/// A `hosts.toml`: base URLs of its hosts in order, or the complaint.
pub fn hosts_toml(text: &str) -> Result<Vec<String>, String> {
    crate::hosts::parse_for_fuzzing(text, Path::new("/"))
}

/// A Docker `config.json`.
pub fn docker_config(text: &[u8]) -> Result<(), String> {
    crate::credentials::parse_for_fuzzing(text)
}
