//! Paths as containerd's applier reads them: bytes, cleaned lexically, rooted at the layer.

use alloc::vec::Vec;

use super::Fault;

/// Longest component that Linux can name.
pub(super) const NAME_BYTES_MAX: usize = 255;
/// `PATH_MAX` without its NUL.
pub(super) const PATH_BYTES_MAX: usize = 4095;

/// What `..` does where no component is left to drop.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Above {
    /// Stay at the root.
    Root,
    /// Keep it: the path is relative to a place not known here.
    Keep,
}

/// Appends `path` to `clean` without empty, `.` and (where possible) `..` components, and without
/// slashes at either end. `clean` must be empty.
pub(super) fn clean(path: &[u8], above: Above, clean: &mut Vec<u8>) {
    for component in path.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                let (parent, last) = split_last(clean);
                if !last.is_empty() && last != b".." {
                    let kept = parent.len();
                    clean.truncate(kept);
                } else if above == Above::Keep {
                    append(clean, component);
                }
            }
            _ => append(clean, component),
        }
    }
}

/// Adds a component behind a slash, where one is needed.
pub(super) fn append(path: &mut Vec<u8>, component: &[u8]) {
    if !path.is_empty() && !component.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(component);
}

/// Directory part and last component of a clean path.
pub(super) fn split_last(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (&[], path),
    }
}

/// First component of a clean path and what follows it; `None` for the empty path.
pub(super) fn split_first(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    let mut parts = path.splitn(2, |&byte| byte == b'/');
    Some((parts.next()?, parts.next().unwrap_or_default()))
}

/// Refuses paths longer than Linux takes.
pub(super) fn check_len(path: &[u8]) -> Result<(), Fault> {
    if path.len() > PATH_BYTES_MAX {
        return Err(Fault::TooLong { what: "path", found: path.len(), max: PATH_BYTES_MAX });
    }
    Ok(())
}

/// Refuses what no Linux file system can name.
pub(super) fn check(path: &[u8]) -> Result<(), Fault> {
    check_len(path)?;
    if path.contains(&0) {
        return Err(Fault::BadText { what: "path" });
    }
    let longest = path.split(|&byte| byte == b'/').map(<[u8]>::len).max().unwrap_or(0);
    if longest > NAME_BYTES_MAX {
        return Err(Fault::TooLong { what: "name", found: longest, max: NAME_BYTES_MAX });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(path: &[u8], above: Above) -> Vec<u8> {
        let mut out = Vec::new();
        clean(path, above, &mut out);
        out
    }

    #[test]
    fn rooted_paths_cannot_climb() {
        for (path, expected) in [
            (&b""[..], &b""[..]),
            (b"./", b""),
            (b"/", b""),
            (b"..", b""),
            (b"../../x", b"x"),
            (b"/../../x", b"x"),
            (b"a/../../../x", b"x"),
            (b"./a//b/./c/", b"a/b/c"),
            (b"a/b/../c", b"a/c"),
            (b"...", b"..."),
            (b"a/..", b""),
        ] {
            assert_eq!(cleaned(path, Above::Root), expected, "{}", path.escape_ascii());
        }
    }

    #[test]
    fn relative_targets_keep_their_way_up() {
        for (path, expected) in [
            (&b"../a"[..], &b"../a"[..]),
            (b"../../a/../b", b"../../b"),
            (b"a/../..", b".."),
            (b"./a", b"a"),
        ] {
            assert_eq!(cleaned(path, Above::Keep), expected, "{}", path.escape_ascii());
        }
    }

    #[test]
    fn paths_split_at_either_end() {
        assert_eq!(split_last(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split_last(b"c"), (&b""[..], &b"c"[..]));
        assert_eq!(split_first(b"a/b/c"), Some((&b"a"[..], &b"b/c"[..])));
        assert_eq!(split_first(b"c"), Some((&b"c"[..], &b""[..])));
        assert_eq!(split_first(b""), None);
    }
}
