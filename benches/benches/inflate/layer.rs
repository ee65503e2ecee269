//! The layers that are measured.

use std::hint::black_box;
use std::path::Path;

use spanfs_cache::build::{BuildOptions, Built, LayerBuilder, Toc};
use spanfs_cache::inflate::{Decoder, HEADROOM, Pool, VerifiedSpan};
use spanfs_fetch::Fetched;
use spanfs_layer::{Digest, Restart, SpanTable, UncompressedOffset};

/// A tar of files below /usr, up to about `len` bytes.
pub(crate) fn tar_of_programs(len: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for folder in ["/usr/bin", "/usr/lib"] {
        append(&mut builder, Path::new(folder), len);
    }
    builder.into_inner().unwrap()
}

fn append(builder: &mut tar::Builder<Vec<u8>>, folder: &Path, len: usize) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if builder.get_ref().len() + metadata.len() as usize > len {
            continue;
        }
        if metadata.is_dir() {
            append(builder, &path, len);
        } else if metadata.is_file()
            && let Ok(mut file) = std::fs::File::open(&path)
        {
            builder.append_file(path.strip_prefix("/").unwrap(), &mut file).unwrap();
        }
    }
}

/// A gzip layer with its zTOC.
pub(crate) struct Layer {
    pub(crate) blob: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) encoded: Vec<u8>,
    pub(crate) table: SpanTable,
}

impl Layer {
    /// Of a blob and its zTOC as somebody wrote them down.
    pub(crate) fn of(blob: Vec<u8>, encoded: Vec<u8>) -> Self {
        let table = SpanTable::from_ztoc(&encoded).unwrap();
        Self { digest: Digest::of(&blob), blob, encoded, table }
    }

    pub(crate) fn new(blob: Vec<u8>) -> Self {
        let Toc::Lazy(ztoc) = build(&blob) else { panic!("no zTOC") };
        Self::of(blob, ztoc.encode())
    }

    pub(crate) fn data(&self, number: usize) -> &[u8] {
        let range = &self.table.spans()[number].compressed;
        &self.blob[range.start.0 as usize..range.end.0 as usize]
    }

    pub(crate) fn restart(&self, number: usize) -> (u8, Option<&[u8; 32768]>) {
        let Restart::Deflate { bits, window_at } = self.table.spans()[number].restart else {
            panic!("not a gzip layer")
        };
        let window = self.encoded[window_at as usize..].first_chunk();
        (bits, window.filter(|_| window_at > 0))
    }

    pub(crate) fn fetched(&self, number: usize) -> Fetched {
        let mut bytes = Vec::with_capacity(HEADROOM + self.data(number).len() + 8);
        bytes.resize(HEADROOM, 0);
        bytes.extend_from_slice(self.data(number));
        Fetched { bytes, headroom: HEADROOM }
    }

    /// Inflate every span by itself.
    pub(crate) fn inflate_all(&self, decoder: &mut Decoder) {
        for number in 0..self.table.spans().len() {
            let span =
                VerifiedSpan::unverified(&self.digest, &self.table, number, self.fetched(number));
            black_box(decoder.inflate(span.unwrap(), self.restart(number).1).unwrap().bytes());
        }
    }

    /// How many spans it has.
    pub(crate) fn spans(&self) -> usize {
        self.table.spans().len()
    }

    pub(crate) fn len(&self) -> u64 {
        self.table.uncompressed_len()
    }
}

/// One pass over a blob, whose tar goes nowhere.
pub(crate) fn build(blob: &[u8]) -> Toc {
    pass(blob, None).toc
}

/// The same, perhaps with helpers.
pub(crate) fn pass(blob: &[u8], pool: Option<&Pool>) -> Built {
    let sink = |_: UncompressedOffset, bytes: &[u8]| {
        black_box(bytes);
        Ok(())
    };
    let mut builder = LayerBuilder::new(BuildOptions::default(), sink).unwrap();
    if let Some(pool) = pool {
        builder = builder.helped_by(pool);
    }
    // As the fetch engine delivers it.
    for piece in blob.chunks(1 << 20) {
        builder.feed(piece).unwrap();
    }
    builder.finish().unwrap()
}

/// What is repeated in [`synthetic_tar`].
const WORDS: [&[u8]; 3] = [b"function ", b"return 0;", b"\x48\x89\xe5\x41"];

/// A tar of noise between repeated words, which compresses to two fifths.
pub(crate) fn synthetic_tar(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut content = Vec::with_capacity(len + 64);
    while content.len() < len {
        let word = next();
        match word % 4 {
            0 => content.extend_from_slice(&next().to_le_bytes()),
            kind => content.extend_from_slice(WORDS[kind as usize - 1]),
        }
        content.push((word >> 32) as u8 & 0x3f);
    }
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, "synthetic", content.as_slice()).unwrap();
    builder.into_inner().unwrap()
}
