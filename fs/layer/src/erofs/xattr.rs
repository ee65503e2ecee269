//! Extended attributes.
//!
//! Behind the inode: header (name filter 4, number of shared attributes 1, zeros 7), 4 bytes for
//! each shared one (its place / 4), then the inode's own. An attribute: length of the name 1,
//! prefix 1, length of the value 2, name without prefix, value, zeros up to a multiple of 4. The
//! inode counts 0 for none, else 1 + (bytes − 12) / 4.

use alloc::vec::Vec;

use hashbrown::HashMap;

use super::ErofsError;
use crate::Tree;

pub(super) const HEADER_LEN: usize = 12;
/// By the width of the count in the inode.
const BODY_LEN_MAX: usize = HEADER_LEN + 4 * (u16::MAX as usize - 1);
const SHARED_MAX: usize = u8::MAX as usize;
const FILTER_SEED: u32 = 0x25BB_E08F;

/// Prefixes that can be stored, with their numbers; the access lists are names of their own.
pub(super) const PREFIXES: [(&[u8], u8); 5] = [
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// An attribute as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Xattr<'a> {
    prefix: u8,
    suffix: &'a [u8],
    value: &'a [u8],
}

impl<'a> Xattr<'a> {
    fn new(name: &'a [u8], value: &'a [u8]) -> Result<Self, ErofsError> {
        let refused = ErofsError::Xattr { len: value.len() };
        let stored = PREFIXES.iter().find_map(|&(prefix, number)| {
            let suffix = name.strip_prefix(prefix)?;
            (suffix.is_empty() != prefix.ends_with(b".")).then_some((number, suffix))
        });
        let Some((prefix, suffix)) = stored else { return Err(refused) };
        if u8::try_from(suffix.len()).is_err() || u16::try_from(value.len()).is_err() {
            return Err(refused);
        }
        Ok(Self { prefix, suffix, value })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.suffix.len() as u8, self.prefix]);
        out.extend_from_slice(&(self.value.len() as u16).to_le_bytes());
        out.extend_from_slice(self.suffix);
        out.extend_from_slice(self.value);
        out.resize(out.len().next_multiple_of(4), 0);
    }

    /// Its bit in the filter, which is cleared where the attribute is present.
    fn filter_bit(&self) -> u32 {
        1 << (xxh32(self.suffix, FILTER_SEED.wrapping_add(self.prefix.into())) & 31)
    }
}

type Key = (u32, bool);

/// Every inode's attributes, encoded once for each distinct set.
pub(super) struct Bodies<'a> {
    sets: HashMap<Key, Set<'a>>,
    /// Attributes that several inodes have, with their place / 4.
    shared: HashMap<Xattr<'a>, u32>,
    pub(super) area: Vec<u8>,
}

struct Set<'a> {
    xattrs: Vec<Xattr<'a>>,
    uses: u32,
    body: Vec<u8>,
}

impl<'a> Bodies<'a> {
    /// Collects what the nodes of a tree have.
    pub(super) fn collect(tree: &'a Tree) -> Result<Self, ErofsError> {
        let mut sets: HashMap<Key, Set<'a>> = HashMap::new();
        for node in tree.nodes().filter(|node| node.has_xattrs()) {
            let key = node.xattrs_key();
            if let Some(set) = sets.get_mut(&key) {
                set.uses += 1;
                continue;
            }
            let xattrs: Result<Vec<_>, _> =
                node.xattrs().map(|(name, value)| Xattr::new(name, value)).collect();
            sets.insert(key, Set { xattrs: xattrs?, uses: 1, body: Vec::new() });
        }
        let mut uses: HashMap<Xattr<'a>, u32> = HashMap::new();
        for set in sets.values() {
            for xattr in &set.xattrs {
                *uses.entry(*xattr).or_default() += set.uses;
            }
        }
        let mut several: Vec<Xattr<'a>> =
            uses.into_iter().filter_map(|(xattr, uses)| (uses > 1).then_some(xattr)).collect();
        several.sort_unstable();
        let mut area = Vec::new();
        let mut shared = HashMap::new();
        for xattr in several {
            shared.insert(xattr, (area.len() / 4) as u32);
            xattr.encode(&mut area);
        }
        let mut bodies = Self { sets, shared, area };
        bodies.encode()?;
        Ok(bodies)
    }

    fn encode(&mut self) -> Result<(), ErofsError> {
        let Self { sets, shared, .. } = self;
        for set in sets.values_mut() {
            let (mut ids, mut own, mut filter) = (Vec::new(), Vec::new(), u32::MAX);
            for xattr in &set.xattrs {
                filter &= !xattr.filter_bit();
                match shared.get(xattr) {
                    Some(id) if ids.len() < SHARED_MAX => ids.push(*id),
                    _ => xattr.encode(&mut own),
                }
            }
            let body = &mut set.body;
            body.extend_from_slice(&filter.to_le_bytes());
            body.extend_from_slice(&[ids.len() as u8, 0, 0, 0, 0, 0, 0, 0]);
            body.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
            body.append(&mut own);
            if body.len() > BODY_LEN_MAX {
                return Err(ErofsError::Xattr { len: body.len() });
            }
        }
        Ok(())
    }

    /// Tells where the shared attributes came to lie.
    pub(super) fn place_area(&mut self, at: u64) {
        let base = (at / 4) as u32;
        for set in self.sets.values_mut() {
            let ids = set.body.get(4).copied().map_or(0, usize::from);
            let ids = set.body.get_mut(HEADER_LEN..HEADER_LEN + 4 * ids).unwrap_or_default();
            for id in ids.chunks_exact_mut(4) {
                let Ok(bytes) = <[u8; 4]>::try_from(&*id) else { continue };
                id.copy_from_slice(&(u32::from_le_bytes(bytes) + base).to_le_bytes());
            }
        }
    }

    /// Encoded attributes of a node, empty if it has none.
    pub(super) fn of(&self, node: &crate::tree::Node<'_>) -> &[u8] {
        if !node.has_xattrs() {
            return &[];
        }
        self.sets.get(&node.xattrs_key()).map_or(&[], |set| &set.body)
    }
}

/// What the inode says of an encoded body.
pub(super) fn count(body: &[u8]) -> u16 {
    if body.is_empty() { 0 } else { ((body.len() - HEADER_LEN) / 4 + 1) as u16 }
}

/// xxHash, 32 bits.
pub(super) fn xxh32(data: &[u8], seed: u32) -> u32 {
    const P1: u32 = 2_654_435_761;
    const P2: u32 = 2_246_822_519;
    const P3: u32 = 3_266_489_917;
    const P4: u32 = 668_265_263;
    const P5: u32 = 374_761_393;
    let word = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).map_or(0, u32::from_le_bytes);
    let mut stripes = data.chunks_exact(16);
    let mut hash = if data.len() < 16 {
        seed.wrapping_add(P5)
    } else {
        let first = seed.wrapping_add(P1).wrapping_add(P2);
        let mut lanes = [first, seed.wrapping_add(P2), seed, seed.wrapping_sub(P1)];
        for stripe in &mut stripes {
            for (lane, bytes) in lanes.iter_mut().zip(stripe.chunks_exact(4)) {
                let mixed = lane.wrapping_add(word(bytes).wrapping_mul(P2));
                *lane = mixed.rotate_left(13).wrapping_mul(P1);
            }
        }
        let rotated = lanes.iter().zip([1, 7, 12, 18]).map(|(lane, by)| lane.rotate_left(by));
        rotated.fold(0, u32::wrapping_add)
    };
    hash = hash.wrapping_add(data.len() as u32);
    let rest = if data.len() < 16 { data } else { stripes.remainder() };
    let mut words = rest.chunks_exact(4);
    for bytes in &mut words {
        hash = hash.wrapping_add(word(bytes).wrapping_mul(P3)).rotate_left(17).wrapping_mul(P4);
    }
    for &byte in words.remainder() {
        hash = hash.wrapping_add(u32::from(byte).wrapping_mul(P5));
        hash = hash.rotate_left(11).wrapping_mul(P1);
    }
    hash = (hash ^ hash >> 15).wrapping_mul(P2);
    hash = (hash ^ hash >> 13).wrapping_mul(P3);
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_xxh32() {
        assert_eq!(xxh32(b"", 0), 0x02CC_5D05);
        assert_eq!(xxh32(b"abc", 0), 0x32D1_53FF);
        assert_eq!(xxh32(b"Nobody inspects the spammish repetition", 0), 0xE229_3B2F);
    }

    #[test]
    fn names_without_a_known_prefix_are_refused() {
        assert!(Xattr::new(b"odd.x", b"").is_err());
        assert!(Xattr::new(b"user.", b"").is_err());
        assert!(Xattr::new(b"system.posix_acl_access2", b"").is_err());
        assert!(Xattr::new(b"user.x", &[0; 65536]).is_err());
        let acl = Xattr::new(b"system.posix_acl_access", b"v").unwrap();
        assert_eq!(acl, Xattr { prefix: 2, suffix: b"", value: b"v" });
    }
}
