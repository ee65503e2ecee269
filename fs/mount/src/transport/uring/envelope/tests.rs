use proptest::prelude::*;

use super::*;
use crate::transport::READ_LEN_MAX;
use crate::transport::protocol::abi::opcode;
use crate::transport::protocol::request::tests::{message as whole_message, window_body};
use crate::transport::protocol::request::{Malformed, Request};

/// Headers and payload as the kernel makes them of a message whose first argument has
/// `operation_len` bytes.
fn split(message: &[u8], operation_len: usize) -> ([u8; HEADERS_LEN], Vec<u8>) {
    let mut headers = [0xee; HEADERS_LEN];
    let (header, body) = message.split_at(abi::IN_HEADER_LEN);
    let (operation, payload) = body.split_at(operation_len);
    headers[..header.len()].copy_from_slice(header);
    headers[OPERATION_AT..][..operation.len()].copy_from_slice(operation);
    headers[COMMIT_ID_AT..][..8].copy_from_slice(&77u64.to_ne_bytes());
    headers[PAYLOAD_LEN_AT..][..4].copy_from_slice(&(payload.len() as u32).to_ne_bytes());
    let mut padded = payload.to_vec();
    padded.resize(NAMES_LEN_MAX * 2, 0xdd);
    (headers, padded)
}

fn joined(headers: &[u8; HEADERS_LEN], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1; 3];
    message(headers, payload, &mut bytes);
    bytes
}

#[test]
fn requests_come_out_as_the_device_would_give_them() {
    for (opcode, body, operation_len) in [
        (opcode::READ, window_body(1 << 40, 4096), abi::READ_IN_LEN),
        (opcode::LOOKUP, b"name\0".to_vec(), 0),
        (opcode::GETXATTR, b"\x10\0\0\0\0\0\0\0user.a\0".to_vec(), abi::GETXATTR_IN_LEN),
        (opcode::STATFS, Vec::new(), 0),
    ] {
        let bytes = whole_message(opcode, 5, 2, &body);
        let (headers, payload) = split(&bytes, operation_len);
        assert_eq!(joined(&headers, &payload), bytes, "opcode {opcode}");
        assert_eq!(commit_id(&headers), 77);
    }
}

#[test]
fn lengths_that_cannot_be_are_malformed_and_no_more() {
    let bytes = whole_message(opcode::READ, 5, 2, &window_body(0, 1));
    let (headers, payload) = split(&bytes, abi::READ_IN_LEN);
    for (at, value) in [(abi::IN_LEN_AT, 0), (abi::IN_LEN_AT, u32::MAX), (PAYLOAD_LEN_AT, u32::MAX)]
    {
        let mut headers = headers;
        headers[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        let found = joined(&headers, &payload);
        let parsed = Request::parse(&found);
        assert!(matches!(parsed, Err(Malformed::Body { unique: 5, .. })), "{parsed:?}");
    }
}

#[test]
fn a_reply_names_its_request_and_its_length() {
    let bytes = whole_message(opcode::READ, 5, 2, &window_body(0, 1));
    let (mut headers, _) = split(&bytes, abi::READ_IN_LEN);
    seal(&mut headers, 5, 0, READ_LEN_MAX);
    assert_eq!(headers[..16], reply::header(5, 0, READ_LEN_MAX));
    assert_eq!(field(&headers, PAYLOAD_LEN_AT), READ_LEN_MAX as u32);
    assert_eq!(commit_id(&headers), 77);
    seal(&mut headers, 5, 2, 0);
    assert_eq!((field(&headers, 4), field(&headers, PAYLOAD_LEN_AT)), ((-2i32) as u32, 0));
}

proptest! {
    #[test]
    fn any_split_comes_together(
        body in prop::collection::vec(any::<u8>(), 0..300),
        at in 0usize..=OPERATION_LEN_MAX,
    ) {
        let bytes = whole_message(15, 9, 1, &body);
        let (headers, payload) = split(&bytes, at.min(body.len()));
        prop_assert_eq!(joined(&headers, &payload), bytes);
    }

    #[test]
    fn any_headers_are_judged(
        headers in prop::collection::vec(any::<u8>(), HEADERS_LEN),
        len in 0usize..3 * NAMES_LEN_MAX,
    ) {
        let headers: [u8; HEADERS_LEN] = headers.try_into().unwrap();
        let found = joined(&headers, &vec![0; len]);
        let len_max = abi::IN_HEADER_LEN + OPERATION_LEN_MAX + NAMES_LEN_MAX;
        prop_assert!(found.len() <= len_max);
        let is_whole = !matches!(Request::parse(&found), Err(Malformed::Header { .. }));
        prop_assert!(is_whole, "the header is whole");
    }
}
