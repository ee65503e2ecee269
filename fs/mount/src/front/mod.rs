//! How a layer is shown: as one file, as EROFS over it, or as inodes.

pub mod erofs;
mod failures;
pub mod files;
pub mod inode;
pub mod one_file;
mod runs;

pub(crate) use failures::Failures;

use std::borrow::Cow;

use crate::filesystem::{Attributes, DirectoryEntry};

/// The entries `.` and `..`, which every directory lists at offsets 0 and 1.
pub(crate) fn dots(
    offset: u64,
    itself: Attributes,
    parent: Attributes,
) -> Option<DirectoryEntry<'static>> {
    let (name, attributes) = match offset {
        0 => (b".".as_slice(), itself),
        1 => (b"..".as_slice(), parent),
        _ => return None,
    };
    Some(DirectoryEntry { name: Cow::Borrowed(name), attributes, next: offset + 1 })
}
