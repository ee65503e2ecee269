//! Whiteouts: how a layer says that a name of the layers below is gone.
//!
//! Source: OCI image specification, *layer*, "Whiteouts"; the AUFS names are older than it.

const PREFIX: &[u8] = b".wh.";
const AUFS_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Meaning of the last component of an entry's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name<'a> {
    /// An ordinary name.
    Plain,
    /// Whatever lower layers hold under this name is gone.
    Whiteout(&'a [u8]),
    /// Whatever lower layers hold in the containing directory is gone.
    Opaque,
    /// Bookkeeping of AUFS, never shown.
    Aufs,
    /// Would hide the containing directory or its parent.
    Invalid,
}

impl<'a> Name<'a> {
    /// Reads one path component.
    pub fn of(component: &'a [u8]) -> Self {
        let Some(target) = component.strip_prefix(PREFIX) else { return Self::Plain };
        match target {
            _ if component == OPAQUE => Self::Opaque,
            _ if component.starts_with(AUFS_PREFIX) => Self::Aufs,
            b"" | b"." | b".." => Self::Invalid,
            target => Self::Whiteout(target),
        }
    }
}

/// The part of a directory path before its first reserved component, if it has one: nothing that
/// lies in such a directory is shown.
pub(crate) fn before_reserved(path: &[u8]) -> Option<&[u8]> {
    let mut start = 0usize;
    for component in path.split(|&byte| byte == b'/') {
        if component.starts_with(PREFIX) {
            return Some(path.get(..start.saturating_sub(1)).unwrap_or_default());
        }
        start += component.len() + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        for (component, expected) in [
            (&b"wh.x"[..], Name::Plain),
            (b".wh", Name::Plain),
            (b".wh.x", Name::Whiteout(b"x")),
            (b".wh..x", Name::Whiteout(b".x")),
            (b".wh....", Name::Whiteout(b"...")),
            (b".wh..wh..opq", Name::Opaque),
            (b".wh..wh..opq2", Name::Aufs),
            (b".wh..wh.plnk", Name::Aufs),
            (b".wh.", Name::Invalid),
            (b".wh..", Name::Invalid),
            (b".wh...", Name::Invalid),
        ] {
            assert_eq!(Name::of(component), expected, "{}", component.escape_ascii());
        }
    }

    #[test]
    fn reserved_directories_end_the_visible_path() {
        for (path, expected) in [
            (&b"a/b"[..], None),
            (b"", None),
            (b"a/.wh.x/b", Some(&b"a"[..])),
            (b".wh..wh.plnk", Some(b"")),
            (b"a/b/.wh.c", Some(b"a/b")),
        ] {
            assert_eq!(before_reserved(path), expected, "{}", path.escape_ascii());
        }
    }
}
