//! The smallest front: a directory whose single file is the layer file.
//!
//! EROFS is mounted over that file; a read of it is a range of the uncompressed tar. It has two names:
//! by the first the kernel keeps what it reads, and small files that lie together come together; by
//! the second reads go past that page cache to those of the large files themselves. Where an index
//! needs the data of sparse files at other places behind the tar's end, these are shown there
//! without ever being copied.

use std::borrow::Cow;
use std::sync::Arc;

use spanfs_cache::Content;
use spanfs_layer::erofs::DataCopy;

use super::Failures;
use super::runs::{self, Run};
use crate::filesystem::{
    Attributes, DirectoryEntry, FileType, Filesystem, FillReply, Ino, Located, Open, Statfs,
};
use crate::shortcuts::Shortcuts;
use crate::{Errno, front::dots};

/// Name of the file.
pub const FILE_NAME: &str = "layer";

/// Its name for reads of large files.
pub const LARGE_NAME: &str = "large";

const FILE: Ino = Ino(2);
const LARGE: Ino = Ino(3);

/// A root directory and the layer file, twice.
pub struct OneFile {
    content: Arc<dyn Content>,
    /// The tar, and behind it what the index wants in a second place.
    runs: Vec<Run>,
    len: u64,
    open: Open,
    failures: Arc<Failures>,
    /// They follow the content as long as the file is shown.
    _shortcuts: Option<Arc<Shortcuts>>,
}

impl OneFile {
    /// Show `content`, the layer called `name` in the log, as it is.
    ///
    /// [`Open::Direct`] halves the page cache (EROFS keeps its own), and costs speed.
    pub fn new(content: Arc<dyn Content>, name: &str, open: Open) -> Self {
        Self::with_copies(content, name, open, 0, &[])
    }

    /// The same with `copies` behind the tar's end, in a file of at least `len_min` bytes.
    pub fn with_copies(
        content: Arc<dyn Content>,
        name: &str,
        open: Open,
        len_min: u64,
        copies: &[DataCopy],
    ) -> Self {
        let tar = Run { file: 0, data: 0, len: content.len() };
        let behind = copies.iter().map(|copy| Run {
            file: copy.to.0,
            data: copy.from.start.0,
            len: copy.from.end.checked_since(copy.from.start).unwrap_or(0),
        });
        let mut runs: Vec<Run> = std::iter::once(tar).chain(behind).collect();
        runs.sort_unstable_by_key(|run| run.file);
        let len = content.len().max(len_min);
        let failures = Arc::new(Failures::of(name));
        Self { content, runs, len, open, failures, _shortcuts: None }
    }

    pub(crate) fn with_shortcuts(self, shortcuts: Option<Arc<Shortcuts>>) -> Self {
        Self { _shortcuts: shortcuts, ..self }
    }

    /// The runs that hold any byte from `offset` on.
    fn runs_from(&self, offset: u64) -> impl Iterator<Item = Run> {
        let first = self.runs.partition_point(|run| run.file + run.len <= offset);
        self.runs.get(first..).unwrap_or_default().iter().copied()
    }

    fn of(&self, ino: Ino) -> Attributes {
        let is_root = ino == Ino::ROOT;
        let size = if is_root { 0 } else { self.len };
        Attributes {
            ino,
            file_type: if is_root { FileType::Directory } else { FileType::Regular },
            permissions: if is_root { 0o555 } else { 0o444 },
            nlink: if is_root { 2 } else { 1 },
            uid: 0,
            gid: 0,
            device: (0, 0),
            size,
            blocks: size.div_ceil(512),
            mtime: (0, 0),
        }
    }
}

impl Filesystem for OneFile {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Attributes>, Errno> {
        if parent != Ino::ROOT {
            return Err(Errno::NotDirectory);
        }
        Ok(match name {
            _ if name == FILE_NAME.as_bytes() => Some(self.of(FILE)),
            _ if name == LARGE_NAME.as_bytes() => Some(self.of(LARGE)),
            _ => None,
        })
    }

    fn attributes(&self, ino: Ino) -> Result<Attributes, Errno> {
        match ino {
            Ino::ROOT | FILE | LARGE => Ok(self.of(ino)),
            _ => Err(Errno::NotFound),
        }
    }

    fn entry(&self, directory: Ino, offset: u64) -> Result<Option<DirectoryEntry<'_>>, Errno> {
        if directory != Ino::ROOT {
            return Err(Errno::NotDirectory);
        }
        let root = self.of(Ino::ROOT);
        let file = |name: &'static str, ino, next| DirectoryEntry {
            name: Cow::Borrowed(name.as_bytes()),
            attributes: self.of(ino),
            next,
        };
        Ok(dots(offset, root, root).or_else(|| match offset {
            2 => Some(file(FILE_NAME, FILE, 3)),
            3 => Some(file(LARGE_NAME, LARGE, 4)),
            _ => None,
        }))
    }

    fn readlink(&self, _ino: Ino) -> Result<Cow<'_, [u8]>, Errno> {
        Err(Errno::Invalid)
    }

    fn xattr(&self, _ino: Ino, _name: &[u8]) -> Result<Cow<'_, [u8]>, Errno> {
        Err(Errno::NoAttribute)
    }

    fn xattr_names(&self, _ino: Ino) -> Result<Vec<u8>, Errno> {
        Ok(Vec::new())
    }

    fn statfs(&self) -> Statfs {
        Statfs { bytes: self.len, inodes: 3 }
    }

    fn open(&self, ino: Ino) -> Result<Open, Errno> {
        match ino {
            FILE => Ok(self.open),
            LARGE => Ok(Open::Direct),
            Ino::ROOT => Err(Errno::IsDirectory),
            _ => Err(Errno::NotFound),
        }
    }

    fn read_present(
        &self,
        ino: Ino,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, Errno> {
        self.open(ino)?;
        runs::read_present(&*self.content, self.runs_from(offset), self.len, offset, buffer)
            .map_err(|error| self.failures.note(offset, &error))
    }

    fn located(&self, ino: Ino, offset: u64, len: usize) -> Option<Located<'_>> {
        self.open(ino).ok()?;
        runs::located(&*self.content, self.runs_from(offset), self.len, offset, len)
    }

    fn describe(&self, _ino: Ino, offset: u64, len: u64) -> String {
        let ranges = runs::data_ranges(self.runs_from(offset), self.len, offset, len);
        runs::describe(&*self.content, ranges, &self.failures)
    }

    fn fill(&self, ino: Ino, offset: u64, len: u64, reply: FillReply) {
        if let Err(errno) = self.open(ino) {
            return reply(Err(errno));
        }
        let ranges = runs::data_ranges(self.runs_from(offset), self.len, offset, len);
        runs::fill_all(&*self.content, ranges, &self.failures, reply);
    }
}
