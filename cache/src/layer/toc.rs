//! What the zTOC says of the tar's entries against what the tar says.
//!
//! The diffID proves the bytes of the layer, the zTOC says which of them are which file, whose it is
//! and who may run it. It comes from whoever made the index, so it is held against the headers, once,
//! as soon as these are all there.

use std::io;
use std::ops::Range;

use spanfs_layer::tar::{Limits, Reader};
use spanfs_layer::ztoc::View;
use spanfs_layer::{Digest, Kind, Record};

use super::Layer;
use super::open::ZTOC;

/// Bytes of headers read at once; most entries have 512.
const PIECE_LEN: u64 = 64 << 10;
/// Headers of one entry: PAX records may have a megabyte, long names follow.
const HEADER_LEN_MAX: u64 = 8 << 20;
/// Permissions with setuid, setgid and sticky bit: all of a mode that is shown.
const MODE_MASK: i64 = 0o7777;

impl Layer {
    /// The first entry of the zTOC that the layer file belies, in words; `None` if all are true.
    pub(super) fn belied(&self) -> io::Result<Option<String>> {
        self.windows.settle()?;
        let bytes = std::fs::read(self.claim.file(ZTOC))?;
        if Digest::of(&bytes) != self.ztoc_digest {
            return Err(io::Error::other("the kept zTOC has changed on disk"));
        }
        let records =
            View::new(&bytes).and_then(|view| view.records()).map_err(io::Error::other)?;
        drop(bytes);
        for (number, told) in records.iter().enumerate() {
            if let Some(reason) = self.belied_entry(told)? {
                let name = String::from_utf8_lossy(&told.name).into_owned();
                return Ok(Some(format!(
                    "zTOC {} lies about entry {number}, {name:?}: {reason}",
                    self.ztoc_digest
                )));
            }
        }
        Ok(None)
    }

    fn belied_entry(&self, told: &Record) -> io::Result<Option<String>> {
        let headers = told.header.0..told.data.0;
        if headers.end > self.table.uncompressed_len()
            || headers.end - headers.start > HEADER_LEN_MAX
        {
            return Ok(Some(format!("no headers stand at {headers:?}")));
        }
        Ok(match self.entries(headers)? {
            Ok(found) => match &found[..] {
                [found] => difference(told, found),
                _ => Some(format!("{} entries stand there", found.len())),
            },
            Err(error) => Some(error),
        })
    }

    /// Entries whose headers lie in a range of the layer file.
    fn entries(&self, headers: Range<u64>) -> io::Result<Result<Vec<Record>, String>> {
        let mut reader = Reader::new(Limits::default());
        let mut found = Vec::new();
        let mut at = headers.start;
        let mut buffer = vec![0; (headers.end - at).min(PIECE_LEN) as usize];
        while at < headers.end {
            let len = (headers.end - at).min(PIECE_LEN) as usize;
            let piece = buffer.get_mut(..len).unwrap_or_default();
            self.file.read(spanfs_layer::UncompressedOffset(at), piece)?;
            if let Err(error) = reader.feed(piece, &mut found) {
                return Ok(Err(error.to_string()));
            }
            at += len as u64;
        }
        Ok(Ok(found))
    }
}

/// How two records of an entry differ in what is shown of it. `found` was read as if its first header
/// began the archive.
fn difference(told: &Record, found: &Record) -> Option<String> {
    let differs = |what: &str, told: &dyn std::fmt::Debug, found: &dyn std::fmt::Debug| {
        Some(format!("{what} {told:?}, the archive says {found:?}"))
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if told.name != found.name {
        return differs("name", &text(&told.name), &text(&found.name));
    }
    if told.kind != found.kind {
        return differs("kind", &told.kind, &found.kind);
    }
    if told.link != found.link {
        return differs("link", &text(&told.link), &text(&found.link));
    }
    let modes = (told.mode & MODE_MASK, found.mode & MODE_MASK);
    if modes.0 != modes.1 {
        return differs("mode", &modes.0, &modes.1);
    }
    let (owner, other) = ((told.uid, told.gid), (found.uid, found.gid));
    if owner != other {
        return differs("owner", &owner, &other);
    }
    if told.kind == Kind::Regular && found.sparse.is_none() && told.size != found.size {
        return differs("size", &told.size, &found.size);
    }
    if matches!(told.kind, Kind::CharDevice | Kind::BlockDevice) {
        let (device, other) = ((told.devmajor, told.devminor), (found.devmajor, found.devminor));
        if device != other {
            return differs("device", &device, &other);
        }
    }
    // zTOCs may be made without attributes, never with others.
    let unknown = |(name, value): &(&[u8], &[u8])| !found.xattrs().any(|it| it == (*name, *value));
    let attribute = told.xattrs().find(unknown);
    attribute.map(|(name, _)| format!("attribute {:?}, which the archive has not so", text(name)))
}
