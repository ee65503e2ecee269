//! Looking into one file, a few bytes at a time.

use std::ops::Range;

use object::ReadRef;
use spanfs_layer::UncompressedOffset;
use spanfs_layer::tree::{Node, NodeKind};

use super::Need;
use super::elf::{self, Linkage};
use super::ld_cache::LdCache;
use super::pieces::{PART_LEN_MAX, Pieces};

/// What a file is looked at for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A program, a library or a script.
    Program,
    /// The loader's cache.
    LdCache,
}

/// What came out.
pub(super) enum Outcome {
    /// Further bytes are needed.
    More,
    /// A script: what follows its `#!`.
    Script(Vec<u8>),
    /// An ELF file.
    Elf(Linkage),
    /// The loader's cache.
    LdCache(LdCache),
    /// Nothing to follow.
    Nothing,
}

/// One file being looked at.
pub(super) struct Exam {
    pub(super) id: u64,
    pub(super) path: Vec<u8>,
    pub(super) what: What,
    layer: u16,
    data: u64,
    pieces: Pieces,
    /// What to ask next.
    ask: Option<Range<u64>>,
    /// What has been asked last.
    asked: Range<u64>,
    asks_left: u32,
}

/// The program headers are in the first page, a script's first line too.
const HEAD_LEN: u64 = 4096;
/// Headers, interpreter, dynamic section, names: a handful in real files.
const ASKS_MAX: u32 = 64;
/// As much of a script as the kernel looks at (`BINPRM_BUF_SIZE`).
const SHEBANG_LEN_MAX: usize = 256;

impl Exam {
    /// `None` for a file that is empty, sparse or of another kind.
    pub(super) fn new(id: u64, node: Node<'_>, path: Vec<u8>, what: What) -> Option<Self> {
        let extent = node.extents().next()?;
        if node.kind() != NodeKind::Regular || extent.file.0 != 0 || extent.len != node.size() {
            return None;
        }
        let head = match what {
            What::Program => HEAD_LEN,
            What::LdCache => PART_LEN_MAX,
        };
        Some(Self {
            id,
            path,
            what,
            layer: node.layer(),
            data: extent.data.0,
            pieces: Pieces::of_file(extent.len),
            ask: Some(0..head.min(extent.len)),
            asked: 0..0,
            asks_left: ASKS_MAX,
        })
    }

    pub(super) fn poll_need(&mut self) -> Option<Need> {
        let range = self.ask.take()?;
        self.asked = range.clone();
        let place = |offset: u64| UncompressedOffset(self.data.saturating_add(offset));
        Some(Need { id: self.id, layer: self.layer, range: place(range.start)..place(range.end) })
    }

    pub(super) fn handle_bytes(&mut self, bytes: Vec<u8>) -> Outcome {
        if bytes.len() as u64 != self.asked.end - self.asked.start {
            return Outcome::Nothing;
        }
        if self.what == What::LdCache {
            return Outcome::LdCache(LdCache::parse(&bytes));
        }
        self.pieces.add(self.asked.start, bytes);
        let head = (&self.pieces).read_bytes_at(0, self.first_len()).unwrap_or_default();
        if let Some(line) = head.strip_prefix(b"#!") {
            let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
            return Outcome::Script(line.get(..SHEBANG_LEN_MAX).unwrap_or(line).to_vec());
        }
        if !head.starts_with(b"\x7fELF") {
            return Outcome::Nothing;
        }
        if let Some(linkage) = elf::read(&self.pieces) {
            return Outcome::Elf(linkage);
        }
        self.asks_left -= 1;
        self.ask = self.pieces.take_missing().filter(|_| self.asks_left > 0);
        if self.ask.is_some() { Outcome::More } else { Outcome::Nothing }
    }

    /// Bytes that the first answer brought, as far as a script's line may reach.
    fn first_len(&self) -> u64 {
        let len = ReadRef::len(&self.pieces).unwrap_or(0);
        len.min(SHEBANG_LEN_MAX as u64)
    }
}
