//! `linux/fuse.h`, read as text: what the tests hold our numbers against.

use std::collections::HashMap;

use super::{init_flag, opcode};

/// Offset and length of each field by name, and the whole length under the empty name.
pub(crate) type Layout = HashMap<String, (usize, usize)>;

/// Structures and numbers of the header.
pub(crate) struct Header {
    structures: HashMap<String, Layout>,
    numbers: HashMap<String, u64>,
}

/// The installed header; `None`, and a word about it, where there is none.
pub(crate) fn installed() -> Option<Header> {
    let path = "/usr/include/linux/fuse.h";
    match std::fs::read_to_string(path) {
        Ok(text) => Some(Header::parse(&text)),
        Err(error) => {
            assert!(std::env::var_os("SPANFS_TEST_STRICT").is_none(), "{path}: {error}");
            eprintln!("layouts not checked: {path}: {error}");
            None
        }
    }
}

impl Header {
    fn parse(text: &str) -> Self {
        let mut header = Self { structures: HashMap::new(), numbers: HashMap::new() };
        let mut lines = text.lines().map(str::trim);
        while let Some(line) = lines.next() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["struct", name, "{"] => {
                    let fields = lines.by_ref().take_while(|line| *line != "};");
                    let layout = header.layout(fields);
                    header.structures.insert(name.to_owned(), layout);
                }
                ["#define", name, ref value @ ..] => header.number(name, &value.concat()),
                [name, "=", value, ..] => header.number(name, value.trim_end_matches(',')),
                _ => {}
            }
        }
        header
    }

    fn number(&mut self, name: &str, value: &str) {
        let value = value.split("/*").next().unwrap_or_default();
        let value = value.trim_start_matches('(').trim_end_matches(')').replace("ULL", "");
        let (base, shift) = value.split_once("<<").unwrap_or((&value, "0"));
        if let (Ok(base), Ok(shift)) = (base.parse::<u64>(), shift.parse::<u32>()) {
            self.numbers.insert(name.to_owned(), base << shift);
        }
    }

    fn layout<'a>(&self, fields: impl Iterator<Item = &'a str>) -> Layout {
        let mut layout = Layout::new();
        let (mut at, mut widest) = (0, 1);
        for field in fields.filter_map(|line| line.split_once(';').map(|(field, _)| field)) {
            let Some((kind, name)) = field.rsplit_once(char::is_whitespace) else { continue };
            let (name, count) = match name.trim_end_matches(']').split_once('[') {
                Some((name, count)) => (name, count.parse().unwrap_or(0)),
                None => (name, 1),
            };
            let (len, alignment) = match kind.trim() {
                "uint64_t" | "int64_t" => (8, 8),
                "uint32_t" | "int32_t" => (4, 4),
                "uint16_t" => (2, 2),
                "char" => (1, 1),
                // What no structure of ours has counts for nothing.
                nested => nested
                    .strip_prefix("struct ")
                    .and_then(|nested| self.structures.get(nested))
                    .map_or((0, 1), |nested| (nested[""].1, 8)),
            };
            at = usize::next_multiple_of(at, alignment);
            widest = widest.max(alignment);
            layout.insert(name.to_owned(), (at, len * count));
            at += len * count;
        }
        layout.insert(String::new(), (0, at.next_multiple_of(widest)));
        layout
    }

    pub(crate) fn offset(&self, structure: &str, field: &str) -> usize {
        self.structures[structure][field].0
    }

    pub(crate) fn len(&self, structure: &str) -> usize {
        self.structures[structure][""].1
    }

    /// A field of `structure`, which starts at `at` of `bytes`.
    pub(crate) fn field(&self, bytes: &[u8], at: usize, structure: &str, field: &str) -> u64 {
        let (offset, len) = self.structures[structure][field];
        let mut value = [0; 8];
        value[..len].copy_from_slice(&bytes[at + offset..][..len]);
        u64::from_le_bytes(value)
    }
}

#[test]
fn lengths_and_offsets_are_the_headers() {
    let Some(header) = installed() else { return };
    for (structure, expected) in [
        ("fuse_in_header", super::IN_HEADER_LEN),
        ("fuse_out_header", super::OUT_HEADER_LEN),
        ("fuse_read_in", super::READ_IN_LEN),
        ("fuse_getxattr_in", super::GETXATTR_IN_LEN),
        ("fuse_entry_out", super::ENTRY_OUT_LEN),
        ("fuse_attr_out", super::ATTR_OUT_LEN),
        ("fuse_open_out", super::OPEN_OUT_LEN),
        ("fuse_statfs_out", super::STATFS_OUT_LEN),
        ("fuse_getxattr_out", super::GETXATTR_OUT_LEN),
        ("fuse_init_out", super::INIT_OUT_LEN),
    ] {
        assert_eq!(header.len(structure), expected, "{structure}");
    }
    for (structure, field, expected) in [
        ("fuse_in_header", "len", super::IN_LEN_AT),
        ("fuse_in_header", "opcode", super::IN_OPCODE_AT),
        ("fuse_in_header", "unique", super::IN_UNIQUE_AT),
        ("fuse_in_header", "nodeid", super::IN_NODE_AT),
        ("fuse_init_in", "major", super::INIT_MAJOR_AT),
        ("fuse_init_in", "minor", super::INIT_MINOR_AT),
        ("fuse_init_in", "max_readahead", super::INIT_READ_AHEAD_AT),
        ("fuse_init_in", "flags", super::INIT_FLAGS_AT),
        ("fuse_init_in", "flags2", super::INIT_FLAGS2_AT),
        ("fuse_read_in", "offset", super::READ_OFFSET_AT),
        ("fuse_read_in", "size", super::READ_SIZE_AT),
        ("fuse_getxattr_in", "size", super::GETXATTR_SIZE_AT),
        ("fuse_dirent", "name", super::DIRENT_NAME_AT),
        ("fuse_direntplus", "dirent", super::ENTRY_OUT_LEN),
    ] {
        assert_eq!(header.offset(structure, field), expected, "{structure}.{field}");
    }
}

#[test]
fn numbers_are_the_headers() {
    let Some(header) = installed() else { return };
    for (name, expected) in [
        ("FUSE_KERNEL_VERSION", super::MAJOR),
        ("FUSE_MIN_READ_BUFFER", super::READ_BUFFER_LEN_MIN as u32),
        ("FUSE_COMPAT_INIT_OUT_SIZE", super::INIT_OUT_COMPAT_LEN as u32),
        ("FOPEN_DIRECT_IO", super::FOPEN_DIRECT_IO),
        ("FUSE_LOOKUP", opcode::LOOKUP),
        ("FUSE_FORGET", opcode::FORGET),
        ("FUSE_GETATTR", opcode::GETATTR),
        ("FUSE_READLINK", opcode::READLINK),
        ("FUSE_OPEN", opcode::OPEN),
        ("FUSE_READ", opcode::READ),
        ("FUSE_STATFS", opcode::STATFS),
        ("FUSE_RELEASE", opcode::RELEASE),
        ("FUSE_GETXATTR", opcode::GETXATTR),
        ("FUSE_LISTXATTR", opcode::LISTXATTR),
        ("FUSE_INIT", opcode::INIT),
        ("FUSE_READDIR", opcode::READDIR),
        ("FUSE_RELEASEDIR", opcode::RELEASEDIR),
        ("FUSE_DESTROY", opcode::DESTROY),
        ("FUSE_NOTIFY_REPLY", opcode::NOTIFY_REPLY),
        ("FUSE_BATCH_FORGET", opcode::BATCH_FORGET),
        ("FUSE_READDIRPLUS", opcode::READDIRPLUS),
    ] {
        assert_eq!(header.numbers.get(name), Some(&u64::from(expected)), "{name}");
    }
    for (name, expected) in [
        ("FUSE_ASYNC_READ", init_flag::ASYNC_READ),
        ("FUSE_DO_READDIRPLUS", init_flag::DO_READDIRPLUS),
        ("FUSE_READDIRPLUS_AUTO", init_flag::READDIRPLUS_AUTO),
        ("FUSE_ASYNC_DIO", init_flag::ASYNC_DIO),
        ("FUSE_NO_OPEN_SUPPORT", init_flag::NO_OPEN_SUPPORT),
        ("FUSE_PARALLEL_DIROPS", init_flag::PARALLEL_DIROPS),
        ("FUSE_MAX_PAGES", init_flag::MAX_PAGES),
        ("FUSE_CACHE_SYMLINKS", init_flag::CACHE_SYMLINKS),
        ("FUSE_NO_OPENDIR_SUPPORT", init_flag::NO_OPENDIR_SUPPORT),
        ("FUSE_INIT_EXT", init_flag::INIT_EXT),
    ] {
        assert_eq!(header.numbers.get(name), Some(&expected), "{name}");
    }
    // Of a later protocol than some installed headers know.
    let found = header.numbers.get("FUSE_OVER_IO_URING");
    assert!(found.is_none_or(|&found| found == init_flag::OVER_IO_URING));
}
