//! `soci ztoc get-file`: one file of a layer, from the spans that hold it.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use spanfs_cache::inflate::{Buffers, Decoder, VerifiedSpan};
use spanfs_fetch::Fetched;
use spanfs_layer::ztoc::WINDOW_LEN;
use spanfs_layer::{Digest, Kind, Record, Restart, SpanTable, Ztoc};

use super::super::SociError;
use super::super::session::Session;
use super::super::store::{Store, ZTOC_LEN_MAX};
use super::index::recorded;

/// Memory that the decoder keeps between spans.
const BUFFER_BYTES_MAX: usize = 64 << 20;
/// Links that lead from one to the next.
const LINKS_MAX: usize = 40;

pub(in crate::soci) async fn get_file(session: &Session) -> Result<(), SociError> {
    let [digest, name] = session.arguments.positionals();
    let (Some(digest), Some(name)) = (digest, name) else {
        let text = "please provide both a ztoc digest and a filename to extract";
        return Err(SociError::said(text));
    };
    let digest: Digest =
        digest.parse().map_err(|_| SociError::said("invalid checksum digest format"))?;
    let layer = recorded(session, &digest).await?.of;
    let failed = |reason: String| SociError::said(format!("ztoc {digest}: {reason}"));
    let layer: Digest = layer.parse().map_err(|it| failed(format!("its layer {layer:?}: {it}")))?;
    let bytes = session.store().await?.bytes(&digest, ZTOC_LEN_MAX).await?;
    let ztoc = Ztoc::decode(&bytes).map_err(|it| failed(it.to_string()))?;
    let table = SpanTable::from_ztoc(&bytes).map_err(|it| failed(it.to_string()))?;
    let record = find(&ztoc.records, name)
        .ok_or_else(|| SociError::said(format!("file {name} does not exist in metadata")))?;
    // Layers are containerd's, wherever artifacts are.
    let layers = Store::Containerd(session.client().await?);
    let source = Source { layers: &layers, layer, encoded: &bytes, table: &table };
    match session.arguments.text("output").filter(|it| !it.is_empty()) {
        None => {
            let mut out = std::io::stdout().lock();
            source.write(record, &mut out, Path::new("/dev/stdout")).await
        }
        Some(path) => {
            let path = Path::new(path);
            let file = File::create(path);
            let mut file = file.map_err(|error| SociError::disk("open", path, error))?;
            source.write(record, &mut file, path).await
        }
    }
}

/// The entry of a name, links followed. Later entries of a name stand for earlier ones.
fn find<'a>(records: &'a [Record], name: &str) -> Option<&'a Record> {
    let mut name = name.as_bytes().to_vec();
    for _ in 0..LINKS_MAX {
        let record = records.iter().rfind(|record| bare(&record.name) == bare(&name))?;
        name = match record.kind {
            Kind::Hardlink => record.link.clone(),
            Kind::Symlink => target(&record.name, &record.link),
            _ => return Some(record),
        };
    }
    None
}

/// Where a symlink leads, within the layer.
fn target(link: &[u8], to: &[u8]) -> Vec<u8> {
    let directory = bare(link);
    let mut parts: Vec<&[u8]> = match to.first() {
        Some(b'/') => Vec::new(),
        _ => directory.split(|&byte| byte == b'/').collect(),
    };
    if to.first() != Some(&b'/') {
        parts.pop();
    }
    for part in to.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// A name without `./` or `/` in front and `/` behind.
fn bare(name: &[u8]) -> &[u8] {
    let mut name = name;
    while let Some(rest) = name.strip_prefix(b"./").or_else(|| name.strip_prefix(b"/")) {
        name = rest;
    }
    name.strip_suffix(b"/").unwrap_or(name)
}

struct Source<'a> {
    layers: &'a Store,
    layer: Digest,
    encoded: &'a [u8],
    table: &'a SpanTable,
}

impl Source<'_> {
    async fn write(
        &self,
        record: &Record,
        out: &mut impl Write,
        path: &Path,
    ) -> Result<(), SociError> {
        let failed = |reason: String| SociError::said(format!("layer {}: {reason}", self.layer));
        let end = record.data.checked_add(record.size);
        let wanted = record.data..end.ok_or_else(|| failed("file without end".to_owned()))?;
        let mut decoder = Decoder::new(Buffers::new(BUFFER_BYTES_MAX));
        for number in self.table.covering(wanted.clone()) {
            let span = &self.table.spans()[number];
            let range = span.compressed.start.0..span.compressed.end.0;
            let bytes = self.layers.range(&self.layer, range).await?;
            let fetched = Fetched { bytes, headroom: 0 };
            let verified = VerifiedSpan::check(&self.layer, self.table, number, fetched);
            let verified = verified.map_err(|it| failed(it.to_string()))?;
            let window = match span.restart {
                Restart::Deflate { window_at, .. } if window_at > 0 => usize::try_from(window_at)
                    .ok()
                    .and_then(|at| self.encoded.get(at..)?.first_chunk::<WINDOW_LEN>()),
                _ => None,
            };
            let inflated = decoder.inflate(verified, window);
            let inflated = inflated.map_err(|it| failed(it.to_string()))?;
            let at = |offset: u64| {
                let from_start = offset.saturating_sub(span.uncompressed.start.0);
                usize::try_from(from_start).unwrap_or(usize::MAX).min(inflated.bytes().len())
            };
            let piece = &inflated.bytes()[at(wanted.start.0)..at(wanted.end.0)];
            out.write_all(piece).map_err(|error| SociError::disk("write", path, error))?;
        }
        out.flush().map_err(|error| SociError::disk("write", path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_on() {
        let check = |link: &str, to: &str, expected: &str| {
            let found = target(link.as_bytes(), to.as_bytes());
            assert_eq!(String::from_utf8(found).unwrap(), expected);
        };
        check("usr/bin/a", "b", "usr/bin/b");
        check("./usr/bin/a", "../lib/b", "usr/lib/b");
        check("a", "/etc/b", "etc/b");
        check("a", "../../b", "b");
        assert_eq!(bare(b"././/x/"), b"x");
    }
}
