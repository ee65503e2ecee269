//! `/etc/ld.so.cache`: where the dynamic loader finds libraries by name.
//!
//! Source: glibc `elf/cache.c`, `dl-cache.h`. The form since 1.1, little-endian:
//!
//! | byte | what |
//! |---|---|
//! | 0 | `glibc-ld.so.cache1.1` |
//! | 20 | entries, u32 |
//! | 48 | entries of 24 bytes: flags, offset of the name, offset of the path (u32 each), … |
//!
//! Offsets count from the magic. Older files have another table before it.

use std::collections::HashMap;

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEADER_LEN: usize = 48;
const ENTRY_LEN: usize = 24;
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0\0";
const OLD_HEADER_LEN: usize = 16;
const OLD_ENTRY_LEN: usize = 12;

/// Paths by name, in the loader's order of preference.
#[derive(Debug, Default)]
pub(super) struct LdCache(HashMap<Vec<u8>, Vec<Vec<u8>>>);

impl LdCache {
    /// Reads a cache; what it does not understand is as good as absent.
    pub(super) fn parse(file: &[u8]) -> Self {
        let mut cache = Self::default();
        let Some(table) = new_table(file) else { return cache };
        let count = number(table, MAGIC.len()).unwrap_or(0) as usize;
        let entries = table.get(HEADER_LEN..).unwrap_or_default();
        for entry in entries.chunks_exact(ENTRY_LEN).take(count) {
            let (Some(name), Some(path)) = (text(table, entry, 4), text(table, entry, 8)) else {
                continue;
            };
            cache.0.entry(name.to_vec()).or_default().push(path.to_vec());
        }
        cache
    }

    pub(super) fn paths(&self, name: &[u8]) -> impl Iterator<Item = &[u8]> {
        self.0.get(name).into_iter().flatten().map(Vec::as_slice)
    }
}

fn new_table(file: &[u8]) -> Option<&[u8]> {
    if file.starts_with(MAGIC) {
        return Some(file);
    }
    let count = file.starts_with(OLD_MAGIC).then(|| number(file, OLD_MAGIC.len()))??;
    let end = (count as usize).checked_mul(OLD_ENTRY_LEN)?.checked_add(OLD_HEADER_LEN)?;
    let table = file.get(end.checked_next_multiple_of(8)?..)?;
    table.starts_with(MAGIC).then_some(table)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

/// The text whose offset stands at `at` of an entry; longer than a path is none.
fn text<'a>(table: &'a [u8], entry: &[u8], at: usize) -> Option<&'a [u8]> {
    let start = number(entry, at)? as usize;
    let text = table.get(start..)?.split(|&byte| byte == 0).next()?;
    (!text.is_empty() && text.len() < 4096).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        file.extend((entries.len() as u32).to_le_bytes());
        file.resize(HEADER_LEN, 0);
        let mut texts = Vec::new();
        let base = HEADER_LEN + entries.len() * ENTRY_LEN;
        for (name, path) in entries {
            let name_at = base + texts.len();
            texts.extend_from_slice(format!("{name}\0").as_bytes());
            let path_at = base + texts.len();
            texts.extend_from_slice(format!("{path}\0").as_bytes());
            for value in [3, name_at as u32, path_at as u32, 0, 0, 0] {
                file.extend(value.to_le_bytes());
            }
        }
        file.extend(texts);
        file
    }

    #[test]
    fn names_lead_to_paths_in_order() {
        let new = cache(&[("a.so", "/x/a.so"), ("b.so", "/b.so"), ("a.so", "/y/a.so")]);
        let mut old = OLD_MAGIC.to_vec();
        old.extend(1u32.to_le_bytes());
        old.resize((OLD_HEADER_LEN + OLD_ENTRY_LEN).next_multiple_of(8), 0);
        old.extend_from_slice(&new);
        for file in [new, old] {
            let cache = LdCache::parse(&file);
            assert_eq!(cache.paths(b"a.so").collect::<Vec<_>>(), [b"/x/a.so", b"/y/a.so"]);
            assert_eq!(cache.paths(b"c.so").count(), 0);
        }
    }

    #[test]
    fn a_cut_cache_yields_what_is_there() {
        let whole = cache(&[("a.so", "/x/a.so"), ("b.so", "/b.so")]);
        for len in 0..whole.len() {
            LdCache::parse(&whole[..len]);
        }
        assert_eq!(LdCache::parse(&[0xff; 4096]).paths(b"a.so").count(), 0);
    }
}
