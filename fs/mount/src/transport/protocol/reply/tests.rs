use std::borrow::Cow;

use proptest::prelude::*;

use super::*;
use crate::filesystem::Ino;
use crate::transport::protocol::abi::header::{Header, installed};

pub(crate) fn attributes() -> Attributes {
    Attributes {
        ino: Ino(0x0102_0304_0506_0708),
        file_type: FileType::CharDevice,
        permissions: 0o7654,
        nlink: 11,
        uid: 12,
        gid: 13,
        device: (259, 70_000),
        size: 0x1111_2222_3333_4444,
        blocks: 0x5555_6666,
        mtime: (-5, 999_999_999),
    }
}

fn written(write: impl FnOnce(&mut Body<'_>) -> Option<()>) -> Vec<u8> {
    let mut bytes = [0xee; 1000];
    let mut body = Body::new(&mut bytes);
    write(&mut body).unwrap();
    let len = body.len();
    bytes[..len].to_vec()
}

fn check_attr(header: &Header, bytes: &[u8], at: usize) {
    let five_before = (-5i64).cast_unsigned();
    for (field, expected) in [
        ("ino", 0x0102_0304_0506_0708),
        ("size", 0x1111_2222_3333_4444),
        ("blocks", 0x5555_6666),
        ("atime", five_before),
        ("mtime", five_before),
        ("ctime", five_before),
        ("atimensec", 999_999_999),
        ("mtimensec", 999_999_999),
        ("ctimensec", 999_999_999),
        ("mode", 0o027_654),
        ("nlink", 11),
        ("uid", 12),
        ("gid", 13),
        ("rdev", u64::from(encode_device((259, 70_000)))),
        ("blksize", 4096),
        ("flags", 0),
    ] {
        assert_eq!(header.field(bytes, at, "fuse_attr", field), expected, "{field}");
    }
}

#[test]
fn replies_have_their_fields_where_the_header_says() {
    let Some(header) = installed() else { return };
    let attr = attributes();
    let entry = written(|body| body.entry(Some(&attr)));
    assert_eq!(entry.len(), header.len("fuse_entry_out"));
    check_attr(&header, &entry, header.offset("fuse_entry_out", "attr"));
    for (field, expected) in [
        ("nodeid", attr.ino.0),
        ("generation", 0),
        ("entry_valid", FOREVER),
        ("attr_valid", FOREVER),
    ] {
        assert_eq!(header.field(&entry, 0, "fuse_entry_out", field), expected, "{field}");
    }
    let nothing = written(|body| body.entry(None));
    assert_eq!(header.field(&nothing, 0, "fuse_entry_out", "nodeid"), 0);
    assert_eq!(header.field(&nothing, 0, "fuse_entry_out", "entry_valid"), FOREVER);

    let out = written(|body| body.attributes(&attr));
    assert_eq!(out.len(), header.len("fuse_attr_out"));
    assert_eq!(header.field(&out, 0, "fuse_attr_out", "attr_valid"), FOREVER);
    check_attr(&header, &out, header.offset("fuse_attr_out", "attr"));

    let out = written(|body| body.open(abi::FOPEN_DIRECT_IO));
    assert_eq!(header.field(&out, 0, "fuse_open_out", "open_flags"), 1);

    let out = written(|body| body.statfs(Statfs { bytes: 1025, inodes: 9 }));
    assert_eq!(out.len(), header.len("fuse_statfs_out"));
    for (field, expected) in [
        ("blocks", 3),
        ("bfree", 0),
        ("files", 9),
        ("ffree", 0),
        ("bsize", 512),
        ("frsize", 512),
        ("namelen", 255),
    ] {
        assert_eq!(header.field(&out, 0, "fuse_kstatfs", field), expected, "{field}");
    }
    let out = super::header(7, 5, 100);
    assert_eq!(header.field(&out, 0, "fuse_out_header", "len"), 116);
    assert_eq!(header.field(&out, 0, "fuse_out_header", "unique"), 7);
    assert_eq!(header.field(&out, 0, "fuse_out_header", "error"), u64::from((-5i32) as u32));
}

#[test]
fn devices_take_the_kernels_form() {
    for (device, expected) in
        [((0, 0), 0), ((1, 3), 0x103), ((8, 0x12345), 0x1230_0845), ((4095, 0xfffff), u32::MAX)]
    {
        assert_eq!(encode_device(device), expected, "{device:?}");
    }
}

proptest! {
    /// Entries are read back the way the kernel walks them, and none is ever cut.
    #[test]
    fn directory_entries_are_walked(
        names in prop::collection::vec(prop::collection::vec(1u8.., 1..300), 0..20),
        room in 0usize..4096,
        plus: bool,
    ) {
        let Some(header) = installed() else { return Ok(()) };
        let mut bytes = vec![0xee; room];
        let mut body = Body::new(&mut bytes);
        let mut count = 0;
        for (name, next) in names.iter().zip(1..) {
            let name = Cow::Borrowed(&name[..]);
            let entry = DirectoryEntry { name, attributes: attributes(), next };
            if body.directory_entry(&entry, plus).is_none() {
                break;
            }
            count += 1;
        }
        let len = body.len();
        let mut at = 0;
        for (name, next) in names.iter().zip(1..).take(count) {
            if plus {
                check_attr(&header, &bytes, at + header.offset("fuse_entry_out", "attr"));
                at += header.len("fuse_entry_out");
            }
            let field = |field| header.field(&bytes, at, "fuse_dirent", field);
            prop_assert_eq!(field("namelen"), name.len() as u64);
            prop_assert_eq!((field("off"), field("type")), (next, 2));
            at += header.offset("fuse_dirent", "name");
            prop_assert_eq!(&bytes[at..at + name.len()], &name[..]);
            at = (at + name.len()).next_multiple_of(8);
        }
        prop_assert_eq!(at, len);
        let fits = |name: &Vec<u8>| {
            len + if plus { 128 } else { 0 } + (24 + name.len()).next_multiple_of(8) <= room
        };
        prop_assert!(!names.get(count).is_some_and(fits), "an entry was left out");
    }
}

#[test]
fn dots_carry_no_reference() {
    let Some(header) = installed() else { return };
    for name in [b".".as_slice(), b".."] {
        let entry = DirectoryEntry { name: Cow::Borrowed(name), attributes: attributes(), next: 1 };
        let bytes = written(|body| body.directory_entry(&entry, true));
        assert_eq!(header.field(&bytes, 0, "fuse_entry_out", "nodeid"), 0);
        assert_eq!(header.field(&bytes, 128, "fuse_dirent", "ino"), attributes().ino.0);
    }
}
