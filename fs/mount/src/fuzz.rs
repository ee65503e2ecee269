//! Hostile requests through codec and meaning, for `tests/fuzz`.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use spanfs_cache::{Content, ReadError, ReadReply};
use spanfs_layer::UncompressedOffset;

use crate::filesystem::Open;
use crate::front::one_file::OneFile;
use crate::transport::READ_LEN_MAX;
use crate::transport::protocol::answer::{Answer, answer};
use crate::transport::protocol::init::WANTED;
use crate::transport::protocol::request::{Malformed, Operation, Request};
use crate::transport::uring;

/// Take `bytes` for a request, as the device gives it and, if there are enough of them, as a ring
/// does: nobody gets more bytes than were asked for, every errno is one, and what has a header has
/// an answer.
pub fn fuse_request(bytes: &[u8]) {
    check(bytes);
    if let Some((headers, payload)) = bytes.split_first_chunk() {
        let mut message = Vec::new();
        uring::envelope::message(headers, payload, &mut message);
        let parsed = check(&message);
        let mut headers = *headers;
        let unique = parsed.map_or(0, |request| request.unique);
        uring::envelope::seal(&mut headers, unique, 0, payload.len());
        assert_eq!(
            uring::envelope::commit_id(&headers),
            uring::envelope::commit_id(bytes.first_chunk().expect("it was there")),
            "a reply lost its request"
        );
    }
}

fn check(bytes: &[u8]) -> Option<Request<'_>> {
    let request = match Request::parse(bytes) {
        Ok(request) => request,
        Err(Malformed::Header { found }) => {
            assert!(found < 40, "a whole header was not enough");
            return None;
        }
        Err(Malformed::Body { .. }) => return None,
    };
    let front = OneFile::new(Arc::new(Half), "fuzz", Open::Direct);
    let mut reply = vec![0; READ_LEN_MAX];
    match (answer(&front, WANTED, &request, &mut reply), request.operation) {
        (
            Answer::Body(found),
            Operation::Read { len: max, .. }
            | Operation::ReadDir { len_max: max, .. }
            | Operation::ReadDirPlus { len_max: max, .. },
        ) => assert!(found <= max as usize, "{found} bytes where {max} were asked for"),
        (Answer::Body(found), _) => assert!(found <= 256, "a small reply of {found} bytes"),
        (Answer::Code(code), _) => assert!((0..4096).contains(&code), "no errno: {code}"),
        (Answer::Missing { len, .. }, operation) => {
            assert!(
                matches!(operation, Operation::Read { len: asked, .. } if asked as usize == len)
            );
        }
        _ => {}
    }
    Some(request)
}

/// Content whose second half never comes.
struct Half;

const LEN: u64 = 10_000;

impl Content for Half {
    fn len(&self) -> u64 {
        LEN
    }

    fn read_present(
        &self,
        offset: UncompressedOffset,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, ReadError> {
        let count = LEN.saturating_sub(offset.0).min(buffer.len() as u64);
        Ok((offset.0 + count <= LEN / 2).then_some(count as usize))
    }

    fn fill(&self, _range: Range<UncompressedOffset>, _reply: ReadReply) {}

    fn complete_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
