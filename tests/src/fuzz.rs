//! One function a decoder: hostile bytes in, a property checked beyond "no crash".
//!
//! The targets of `tests/fuzz` (cargo-fuzz) and the short deterministic runs of the test suite call
//! the same functions.

use spanfs_layer::oci::{Document, ImageConfig};
use spanfs_layer::soci::{Prefetch, SociIndex};
use spanfs_layer::tar::{Limits, Reader, TarError};
use spanfs_layer::tree::{TreeBuilder, TreeOptions};
use spanfs_layer::{Record, SpanTable, Ztoc, erofs};

/// Panics where a decoder breaks its word.
pub type Target = fn(&[u8]);

/// Every target by name.
pub const TARGETS: [(&str, Target); 11] = [
    ("gzip", gzip),
    ("gzip_ahead", gzip_ahead),
    ("tar", tar),
    ("ztoc", ztoc),
    ("zinfo", zinfo),
    ("index", index),
    ("erofs_reader", erofs_reader),
    ("range_reply", range_reply),
    ("hosts_toml", hosts_toml),
    ("docker_config", docker_config),
    ("fuse_request", spanfs_mount::fuzz::fuse_request),
];

/// Tar reader and tree: the pieces in which an archive arrives make no difference, no file lies
/// outside it, and whatever tree comes of it has an index.
pub fn tar(bytes: &[u8]) {
    let whole = read_tar(bytes, usize::MAX);
    let pieces = read_tar(bytes, 7 + bytes.len() % 600);
    assert_eq!(whole, pieces, "pieces make a difference");
    let Ok((records, size)) = whole else { return };
    let mut tree = TreeBuilder::new(TreeOptions::default());
    for record in &records {
        assert!(record.header < record.data, "a record without header");
        let end = record.data.0.checked_add(record.size).expect("an extent that wraps");
        assert!(
            record.kind != spanfs_layer::Kind::Regular || end <= size.max(bytes.len() as u64),
            "an extent outside the archive"
        );
        if tree.push(record).is_err() {
            return;
        }
    }
    let Ok(tree) = tree.finish() else { return };
    let device = erofs::Device { tag: b"fuzz", len: size.next_multiple_of(512) };
    if let Ok(index) = erofs::write(&tree, &[device]) {
        let reader = erofs::Reader::new(&index.bytes).expect("our own index is read");
        reader.inode(reader.root()).expect("our own root is read");
    }
}

/// Where the decoders are cut off, each after what it had in hand.
const BOMB_LEN: usize = 4 << 20;

/// Decoder of gzip layers: pieces and room make no difference, and zlib sees the same in it.
pub fn gzip(bytes: &[u8]) {
    use spanfs_cache::fuzz::{gunzip, gunzip_by_zlib};
    let (whole, zlib) = (gunzip(bytes, usize::MAX, 1 << 20), gunzip_by_zlib(bytes));
    let pieces = gunzip(bytes, 1 + bytes.len() % 600, 1 + bytes.len() % 5000);
    // How much comes out before a fault is found is nobody's business.
    let len = whole.bytes.len().min(pieces.bytes.len()).min(zlib.bytes.len());
    for other in [&pieces, &zlib] {
        assert!(whole.bytes[..len] == other.bytes[..len], "other bytes");
        if len < BOMB_LEN {
            assert_eq!(whole.is_bad, other.is_bad, "another verdict");
            assert!(whole.is_bad || whole.bytes.len() == other.bytes.len(), "another length");
        }
    }
}

/// A pass with helpers that decode ahead: the same tar and zTOC as without, or the same fault.
pub fn gzip_ahead(bytes: &[u8]) {
    let piece_len = 100 + bytes.len() % 5000;
    assert!(spanfs_cache::fuzz::gunzip_ahead(bytes, piece_len), "helpers make a difference");
}

fn read_tar(bytes: &[u8], piece: usize) -> Result<(Vec<Record>, u64), TarError> {
    let mut reader = Reader::new(Limits::default());
    let mut records = Vec::new();
    for piece in bytes.chunks(piece) {
        reader.feed(piece, &mut records)?;
    }
    let archive = reader.finish()?;
    Ok((records, archive.size))
}

/// zTOC codec: what is decoded is encoded to something that decodes to the same.
pub fn ztoc(bytes: &[u8]) {
    let Ok(ztoc) = Ztoc::decode(bytes) else { return };
    let again = Ztoc::decode(&ztoc.encode()).expect("our own zTOC is decoded");
    assert_eq!(ztoc, again);
}

/// Restart points: spans abut, rise, and windows lie inside the bytes they were read from.
pub fn zinfo(bytes: &[u8]) {
    let Ok(table) = SpanTable::from_ztoc(bytes) else { return };
    for (a, b) in table.spans().iter().zip(table.spans().iter().skip(1)) {
        assert_eq!(a.uncompressed.end, b.uncompressed.start, "spans do not abut");
        assert!(a.uncompressed.start < a.uncompressed.end, "an empty span");
        assert!(a.compressed.start < b.compressed.start, "spans do not rise");
    }
    for span in table.spans() {
        assert!(span.compressed.end.0 <= table.compressed_len(), "a span outside the blob");
        if let spanfs_layer::Restart::Deflate { window_at, .. } = span.restart {
            assert!(window_at + 32768 <= bytes.len() as u64, "a window outside the zTOC");
        }
    }
}

/// Image documents and SOCI indexes: the canonical form of what was understood is understood.
pub fn index(bytes: &[u8]) {
    if let Ok(index) = SociIndex::parse(bytes) {
        let canonical = index.to_canonical();
        let again = SociIndex::parse(&canonical).expect("our own index is parsed");
        assert_eq!(canonical, again.to_canonical());
    }
    if let Ok(prefetch) = Prefetch::parse(bytes) {
        assert!(!prefetch.runs().is_empty(), "a prefetch of nothing");
    }
    for media_type in [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ] {
        let _ = Document::parse(media_type, bytes);
    }
    let _ = ImageConfig::parse(bytes);
}

/// EROFS reader: a walk over whatever it gives ends.
pub fn erofs_reader(bytes: &[u8]) {
    let Ok(reader) = erofs::Reader::new(bytes) else { return };
    let mut next = vec![reader.root()];
    for _ in 0..1000 {
        let Some(nid) = next.pop() else { return };
        let Ok(inode) = reader.inode(nid) else { continue };
        let _ = (reader.link(&inode), reader.xattrs(&inode), reader.extents(&inode));
        if let Ok(entries) = reader.entries(&inode) {
            next.extend(entries.iter().map(|entry| entry.nid).take(100));
        }
    }
}

/// Header of a range reply: what is understood lies within what was given, and does not change when
/// the body follows.
pub fn range_reply(bytes: &[u8]) {
    let Some((len, status, range)) = spanfs_fetch::fuzz::range_reply(bytes) else { return };
    assert!(len <= bytes.len(), "a header longer than the reply");
    assert!(range.as_ref().is_none_or(|range| range.start < range.end), "an empty range");
    let more = [bytes, b"body"].concat();
    assert_eq!(spanfs_fetch::fuzz::range_reply(&more), Some((len, status, range)));
}

/// hosts.toml: whatever is understood names hosts by http or https.
pub fn hosts_toml(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for host in spanfs_fetch::fuzz::hosts_toml(text).unwrap_or_default() {
        assert!(host.starts_with("http://") || host.starts_with("https://"), "{host}");
    }
}

/// Docker's config.json: an error does not repeat what it could not read, for that may be a secret.
pub fn docker_config(bytes: &[u8]) {
    if let Err(error) = spanfs_fetch::fuzz::docker_config(bytes) {
        assert!(!error.contains("hunter2"), "a secret in {error:?}");
    }
}
