//! Extended attributes of a tree: which are shown, and how equal sets are kept once.

use alloc::vec::Vec;
use core::hash::BuildHasher as _;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::{Fault, NodeKind};

/// `XATTR_NAME_MAX` of Linux.
const NAME_BYTES_MAX: usize = 255;
/// `XATTR_SIZE_MAX` of Linux.
const VALUE_BYTES_MAX: usize = 65536;
/// Room for offsets of 32 bits.
const SETS_BYTES_MAX: u64 = u32::MAX as u64;

/// Length of an access list that says no more than a mode: version, and three entries for owner,
/// group and others. The kernel keeps none like it.
const MINIMAL_LIST_LEN: usize = 4 + 3 * 8;

/// Whether an attribute that the image supplies is set on a file of this kind.
///
/// `trusted.*` is not the image's to give, and overlayfs would act on `*.overlay.*`. The kernel
/// takes `user.*` only on files and directories, access lists on no symlink, default lists only on
/// directories, and no other namespace; containerd skips what the kernel refuses so.
pub(super) fn is_shown(name: &[u8], value: &[u8], kind: NodeKind) -> bool {
    let mut parts = name.splitn(2, |&byte| byte == b'.');
    let (space, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if rest.is_empty() || rest.starts_with(b"overlay.") {
        return false;
    }
    match space {
        b"user" => matches!(kind, NodeKind::Regular | NodeKind::Directory),
        b"security" => true,
        b"system" if rest == b"posix_acl_access" => {
            kind != NodeKind::Symlink && value.len() > MINIMAL_LIST_LEN
        }
        b"system" if rest == b"posix_acl_default" => kind == NodeKind::Directory,
        _ => false,
    }
}

/// Sets of attributes one behind the other: length of the set (4 bytes, native to this process),
/// then for each attribute, rising by name: name length (1), value length (4), name, value.
/// A set is known by its offset; the set at 0 is empty.
#[derive(Clone, Debug)]
pub(super) struct XattrSets {
    bytes: Vec<u8>,
}

pub(super) const EMPTY_SET: u32 = 0;

impl XattrSets {
    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Attributes of a set, rising by name.
    pub(super) fn iter(&self, set: u32) -> Xattrs<'_> {
        Xattrs { rest: self.encoded(set) }
    }

    fn encoded(&self, set: u32) -> &[u8] {
        let at = set as usize;
        let body = self.bytes.get(at..).and_then(|tail| tail.split_first_chunk());
        let (len, body) = body.unwrap_or((&[0; 4], &[]));
        body.get(..u32::from_le_bytes(*len) as usize).unwrap_or_default()
    }
}

/// Attributes of one set, rising by name.
#[derive(Clone, Debug)]
pub(super) struct Xattrs<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[name_len], rest) = self.rest.split_first_chunk()?;
        let (value_len, rest) = rest.split_first_chunk()?;
        let (name, rest) = rest.split_at_checked(usize::from(name_len))?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value_len) as usize)?;
        self.rest = rest;
        Some((name, value))
    }
}

/// Sets under construction: equal ones are found again.
#[derive(Debug)]
pub(super) struct XattrInterner {
    sets: XattrSets,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
    scratch: Vec<u8>,
}

impl XattrInterner {
    pub(super) fn new() -> Self {
        Self {
            sets: XattrSets { bytes: [0; 4].to_vec() },
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            scratch: Vec::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn sets(&self) -> &XattrSets {
        &self.sets
    }

    pub(super) fn into_sets(mut self) -> XattrSets {
        self.sets.bytes.shrink_to_fit();
        self.sets
    }

    /// Number of the set with these attributes; of two with one name, the later counts.
    pub(super) fn intern(&mut self, mut xattrs: Vec<(&[u8], &[u8])>) -> Result<u32, Fault> {
        if xattrs.is_empty() {
            return Ok(EMPTY_SET);
        }
        xattrs.reverse();
        xattrs.sort_by_key(|&(name, _)| name);
        xattrs.dedup_by_key(|&mut (name, _)| name);
        self.scratch.clear();
        for (name, value) in xattrs {
            encode(name, value, &mut self.scratch)?;
        }
        self.find_or_add()
    }

    fn find_or_add(&mut self) -> Result<u32, Fault> {
        let Self { sets, index, hasher, scratch } = self;
        let hash = hasher.hash_one(scratch.as_slice());
        if let Some(&set) = index.find(hash, |&set| sets.encoded(set) == scratch.as_slice()) {
            return Ok(set);
        }
        let too_many = Fault::TooMany { what: "bytes of xattrs", max: SETS_BYTES_MAX };
        let at = sets.bytes.len();
        if at as u64 + 4 + scratch.len() as u64 > SETS_BYTES_MAX {
            return Err(too_many);
        }
        sets.bytes.extend_from_slice(&(scratch.len() as u32).to_le_bytes());
        sets.bytes.extend_from_slice(scratch);
        let set = at as u32;
        index.insert_unique(hash, set, |&set| hasher.hash_one(sets.encoded(set)));
        Ok(set)
    }

    /// The set without the attribute of that name.
    pub(super) fn without(&mut self, set: u32, name: &[u8]) -> Result<u32, Fault> {
        if self.sets.iter(set).all(|(found, _)| found != name) {
            return Ok(set);
        }
        let old = self.sets.encoded(set).to_vec();
        self.intern(Xattrs { rest: &old }.filter(|&(found, _)| found != name).collect())
    }

    /// The union of a set with these attributes, which win.
    pub(super) fn union(&mut self, set: u32, added: Vec<(&[u8], &[u8])>) -> Result<u32, Fault> {
        if set == EMPTY_SET || added.is_empty() {
            return if added.is_empty() { Ok(set) } else { self.intern(added) };
        }
        let old = self.sets.encoded(set).to_vec();
        let mut all: Vec<_> = Xattrs { rest: &old }.collect();
        all.extend(added);
        self.intern(all)
    }
}

fn encode(name: &[u8], value: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    let long = |what, found, max| Fault::TooLong { what, found, max };
    let Ok(name_len) = u8::try_from(name.len()) else {
        return Err(long("xattr name", name.len(), NAME_BYTES_MAX));
    };
    if value.len() > VALUE_BYTES_MAX {
        return Err(long("xattr value", value.len(), VALUE_BYTES_MAX));
    }
    if name.contains(&0) {
        return Err(Fault::BadText { what: "xattr name" });
    }
    out.push(name_len);
    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    out.extend_from_slice(name);
    out.extend_from_slice(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn equal_sets_are_one() {
        let mut interner = XattrInterner::new();
        let one = interner.intern(vec![(b"user.b", b"2"), (b"user.a", b"1")]).unwrap();
        let two = interner.intern(vec![(b"user.a", b"1"), (b"user.b", b"2")]).unwrap();
        let other = interner.intern(vec![(b"user.a", b"1")]).unwrap();
        assert_eq!(one, two);
        assert_ne!(one, other);
        let found: Vec<_> = interner.sets().iter(one).collect();
        assert_eq!(found, [(&b"user.a"[..], &b"1"[..]), (b"user.b", b"2")]);
        assert_eq!(interner.sets().iter(EMPTY_SET).count(), 0);
    }

    #[test]
    fn a_union_prefers_the_added() {
        let mut interner = XattrInterner::new();
        let old = interner.intern(vec![(b"user.a", b"1"), (b"user.b", b"2")]).unwrap();
        let new = interner.union(old, vec![(b"user.b", b"3"), (b"user.c", b"")]).unwrap();
        let found: Vec<_> = interner.sets().iter(new).collect();
        assert_eq!(found, [(&b"user.a"[..], &b"1"[..]), (b"user.b", b"3"), (b"user.c", b"")]);
    }

    #[test]
    fn access_lists_that_say_no_more_than_the_mode_are_dropped() {
        let shown = |len| is_shown(b"system.posix_acl_access", &[0; 36][..len], NodeKind::Regular);
        assert_eq!((shown(28), shown(36)), (false, true));
    }

    #[test]
    fn only_harmless_namespaces_are_shown() {
        for (name, kind, expected) in [
            (&b"user.a"[..], NodeKind::Regular, true),
            (b"user.a", NodeKind::Symlink, false),
            (b"user.overlay.opaque", NodeKind::Directory, false),
            (b"trusted.overlay.redirect", NodeKind::Directory, false),
            (b"trusted.note", NodeKind::Regular, false),
            (b"security.capability", NodeKind::Regular, true),
            (b"security.overlay.x", NodeKind::Regular, false),
            (b"security.selinux", NodeKind::Symlink, true),
            (b"system.posix_acl_access", NodeKind::Regular, true),
            (b"system.posix_acl_default", NodeKind::Regular, false),
            (b"system.posix_acl_default", NodeKind::Directory, true),
            (b"system.nfs4_acl", NodeKind::Regular, false),
            (b"user.", NodeKind::Regular, false),
            (b"odd", NodeKind::Regular, false),
        ] {
            let value = [0; 36];
            assert_eq!(is_shown(name, &value, kind), expected, "{}", name.escape_ascii());
        }
    }
}
