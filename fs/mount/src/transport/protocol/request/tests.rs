use proptest::prelude::*;

use super::*;

/// A message as the kernel makes it, 7.38's header in front of `body`.
pub(crate) fn message(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(((abi::IN_HEADER_LEN + body.len()) as u32).to_ne_bytes());
    bytes.extend(opcode.to_ne_bytes());
    bytes.extend(unique.to_ne_bytes());
    bytes.extend(node.to_ne_bytes());
    bytes.extend([0; 16]); // Who asks, which nobody looks at.
    bytes.extend(body);
    bytes
}

/// The body of READ, READDIR and READDIRPLUS.
pub(crate) fn window_body(offset: u64, len: u32) -> Vec<u8> {
    let mut body = vec![0xee; abi::READ_IN_LEN];
    body[abi::READ_OFFSET_AT..][..8].copy_from_slice(&offset.to_ne_bytes());
    body[abi::READ_SIZE_AT..][..4].copy_from_slice(&len.to_ne_bytes());
    body
}

/// The body of INIT, as kernels from 5.17 send it.
pub(crate) fn init_body(major: u32, minor: u32, flags: u64) -> Vec<u8> {
    let (low, high) = (flags as u32, (flags >> 32) as u32);
    let mut body = [major, minor, 131_072, low, high].map(u32::to_ne_bytes).concat();
    body.resize(64, 0);
    body
}

fn check(opcode: u32, body: &[u8], expected: Option<Operation<'_>>) {
    let bytes = message(opcode, 0xdead_beef_0000_0002, 77, body);
    let found = Request::parse(&bytes);
    match expected {
        Some(operation) => {
            let request = Request { unique: 0xdead_beef_0000_0002, node: 77, operation };
            assert_eq!(found, Ok(request), "opcode {opcode}");
        }
        None => assert!(
            matches!(found, Err(Malformed::Body { unique: 0xdead_beef_0000_0002, .. })),
            "opcode {opcode}: {found:?}"
        ),
    }
}

#[test]
fn requests_are_understood() {
    let read = window_body(1 << 40, 131_072);
    let (offset, len_max) = (1 << 40, 131_072);
    let init = InitIn { major: 7, minor: 45, read_ahead_max: 131_072, flags: 0xf0f0_f0f0 };
    check(opcode::INIT, &init_body(7, 45, 0xf0f0_f0f0), Some(Operation::Init(init)));
    let short = InitIn { flags: 0xb0f0_f0f0, ..init };
    check(opcode::INIT, &init_body(7, 45, 0xb0f0_f0f0)[..16], Some(Operation::Init(short)));
    let more = InitIn { flags: 0x123_f0f0_f0f0, ..init };
    check(opcode::INIT, &init_body(7, 45, 0x123_f0f0_f0f0), Some(Operation::Init(more)));
    let hidden = init_body(7, 45, 0x123_b0f0_f0f0);
    check(opcode::INIT, &hidden, Some(Operation::Init(short)));
    check(opcode::LOOKUP, b"name\0", Some(Operation::Lookup { name: b"name" }));
    check(opcode::LOOKUP, b"\xff\xfe\0tail\0", Some(Operation::Lookup { name: b"\xff\xfe" }));
    check(opcode::GETATTR, &[0; 16], Some(Operation::GetAttr));
    check(opcode::READ, &read, Some(Operation::Read { offset, len: len_max }));
    check(opcode::READDIR, &read, Some(Operation::ReadDir { offset, len_max }));
    check(opcode::READDIRPLUS, &read, Some(Operation::ReadDirPlus { offset, len_max }));
    let xattr = b"\x10\0\0\0\0\0\0\0user.a\0";
    let len_max = u32::from_ne_bytes(*xattr.first_chunk().unwrap());
    check(opcode::GETXATTR, xattr, Some(Operation::GetXattr { name: b"user.a", len_max }));
    check(opcode::LISTXATTR, &xattr[..8], Some(Operation::ListXattr { len_max }));
    check(opcode::FORGET, &[0; 8], Some(Operation::Silent));
    check(opcode::BATCH_FORGET, &[], Some(Operation::Silent));
    check(opcode::DESTROY, &[], Some(Operation::Acknowledge));
    for unknown in [0, 4, 16, 36, 46, 52, 4096, u32::MAX] {
        check(unknown, b"whatever", Some(Operation::Unsupported));
    }
}

#[test]
fn what_is_cut_short_is_refused() {
    check(opcode::LOOKUP, b"no zero byte", None);
    check(opcode::LOOKUP, b"", None);
    check(opcode::INIT, &init_body(7, 45, 0)[..15], None);
    check(opcode::INIT, &init_body(7, 45, u64::MAX)[..19], None);
    check(opcode::READ, &window_body(0, 1)[..39], None);
    check(opcode::READDIR, &[], None);
    check(opcode::READDIRPLUS, &[0; 8], None);
    check(opcode::GETXATTR, &[0; 8], None);
    check(opcode::GETXATTR, &[0; 7], None);
    check(opcode::LISTXATTR, &[0; 7], None);
    for len in 0..abi::IN_HEADER_LEN {
        let bytes = message(opcode::STATFS, 1, 1, &[]);
        assert_eq!(Request::parse(&bytes[..len]), Err(Malformed::Header { found: len }));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_request_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let parsed = Request::parse(&bytes);
        prop_assert_eq!(
            bytes.len() < abi::IN_HEADER_LEN,
            matches!(parsed, Err(Malformed::Header { .. }))
        );
    }

    #[test]
    fn any_body_of_a_known_opcode_is_judged(
        opcode in 0u32..60,
        body in prop::collection::vec(any::<u8>(), 0..100),
        lie in -3i64..4,
    ) {
        let mut bytes = message(opcode, 9, 1, &body);
        let claimed = (bytes.len() as i64 + lie) as u32;
        bytes[..4].copy_from_slice(&claimed.to_ne_bytes());
        match Request::parse(&bytes) {
            Ok(request) => prop_assert!(lie == 0 && request.unique == 9),
            Err(Malformed::Body { unique, .. }) => prop_assert_eq!(unique, 9),
            Err(Malformed::Header { .. }) => prop_assert!(false, "the header is whole"),
        }
    }
}
