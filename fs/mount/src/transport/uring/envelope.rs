//! How a request and its reply lie in the headers of a ring slot. Pure.
//!
//! ```text
//!   0  fuse_in_header (40), later fuse_out_header (16)     `in_out`
//! 128  first argument of the request, the fixed one        `op_in`
//! 256  u64 flags                                           `fuse_uring_ent_in_out`
//! 264  u64 commit id: names the request when its reply is committed
//! 272  u32 bytes of the payload in use
//! ```
//!
//! The payload has the request's other arguments (names), later the reply's body. Numbers of
//! `struct fuse_uring_req_header`, protocol 7.42.

use crate::transport::protocol::abi;
use crate::transport::protocol::reply;

/// `sizeof(struct fuse_uring_req_header)`.
pub(crate) const HEADERS_LEN: usize = 288;
const OPERATION_AT: usize = 128;
const OPERATION_LEN_MAX: usize = 128;
const COMMIT_ID_AT: usize = 264;
const PAYLOAD_LEN_AT: usize = 272;

/// Longest payload of a request that anybody here looks at: a name, or the name of an attribute.
const NAMES_LEN_MAX: usize = 4096;

/// Put the request together as a read(2) of the device would give it. What the headers say of
/// lengths is taken as far as it can be true; [`super::super::protocol::request`] judges the rest.
pub(crate) fn message(headers: &[u8; HEADERS_LEN], payload: &[u8], into: &mut Vec<u8>) {
    let payload_len = (field(headers, PAYLOAD_LEN_AT) as usize).min(NAMES_LEN_MAX);
    let claimed = field(headers, abi::IN_LEN_AT) as usize;
    let operation_len = claimed.saturating_sub(abi::IN_HEADER_LEN + payload_len);
    let operation = headers.get(OPERATION_AT..).unwrap_or_default();
    into.clear();
    into.extend_from_slice(headers.get(..abi::IN_HEADER_LEN).unwrap_or_default());
    into.extend_from_slice(
        operation.get(..operation_len.min(OPERATION_LEN_MAX)).unwrap_or_default(),
    );
    into.extend_from_slice(payload.get(..payload_len).unwrap_or_default());
}

/// Write the reply's headers: `error` is an errno, or 0; `len` bytes of the payload are its body.
pub(crate) fn seal(headers: &mut [u8; HEADERS_LEN], unique: u64, error: i32, len: usize) {
    headers[..abi::OUT_HEADER_LEN].copy_from_slice(&reply::header(unique, error, len));
    headers[PAYLOAD_LEN_AT..PAYLOAD_LEN_AT + 4].copy_from_slice(&(len as u32).to_ne_bytes());
}

/// Names the request in the headers when its reply is committed.
pub(crate) fn commit_id(headers: &[u8; HEADERS_LEN]) -> u64 {
    let bytes = headers.get(COMMIT_ID_AT..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

fn field(headers: &[u8; HEADERS_LEN], at: usize) -> u32 {
    let bytes = headers.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests;
