//! The protocol: one message each, bytes in and out. Pure.
//!
//! ```text
//! byte 0  version, 1      byte 1  kind      byte 2…  name, or the count of an end in four bytes
//!
//! keep NAME + descriptor ─▶ done | refused      what had the name before is let go
//! release NAME                                  no reply: who releases may be about to end
//! take NAME              ─▶ held NAME + descriptor, … , end COUNT     those whose names begin so
//! ```
//!
//! The socket keeps messages apart (`SOCK_SEQPACKET`), descriptors travel beside them (`SCM_RIGHTS`).

/// Version of the protocol; both sides are refused by the other if theirs differs.
pub const VERSION: u8 = 1;
/// Longest name.
pub const NAME_LEN_MAX: usize = 120;
/// Longest message.
pub const MESSAGE_LEN_MAX: usize = 2 + NAME_LEN_MAX;

/// A descriptor's name: visible ASCII without a colon, which is what systemd takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

impl Name {
    /// `None` if it is not allowed.
    pub fn new(name: &str) -> Option<Self> {
        let is_allowed = |byte: u8| byte.is_ascii_graphic() && byte != b':';
        let fits = (1..=NAME_LEN_MAX).contains(&name.len());
        (fits && name.bytes().all(is_allowed)).then(|| Self(name.into()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is asked of the holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Keep the descriptor that comes along.
    Keep(Name),
    /// Close one.
    Release(Name),
    /// Give copies of all whose names begin so.
    Take(Name),
}

/// What the holder says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is kept.
    Done,
    /// It is not kept: too many are, none came along, or the request was nonsense.
    Refused,
    /// One that is kept; it comes along.
    Held(Name),
    /// So many came.
    End(u32),
}

/// An encoded message.
pub type Message = Vec<u8>;

const KEEP: u8 = b'k';
const RELEASE: u8 = b'r';
const TAKE: u8 = b't';
const DONE: u8 = b'd';
const REFUSED: u8 = b'x';
const HELD: u8 = b'h';
const END: u8 = b'e';

impl Request {
    /// As it travels.
    pub fn encode(&self) -> Message {
        match self {
            Self::Keep(name) => message(KEEP, name.as_str().as_bytes()),
            Self::Release(name) => message(RELEASE, name.as_str().as_bytes()),
            Self::Take(prefix) => message(TAKE, prefix.as_str().as_bytes()),
        }
    }

    /// `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match parts(bytes)? {
            (KEEP, body) => name(body).map(Self::Keep),
            (RELEASE, body) => name(body).map(Self::Release),
            (TAKE, body) => name(body).map(Self::Take),
            _ => None,
        }
    }
}

impl Reply {
    /// As it travels.
    pub fn encode(&self) -> Message {
        match self {
            Self::Done => message(DONE, &[]),
            Self::Refused => message(REFUSED, &[]),
            Self::Held(name) => message(HELD, name.as_str().as_bytes()),
            Self::End(count) => message(END, &count.to_le_bytes()),
        }
    }

    /// `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match parts(bytes)? {
            (DONE, []) => Some(Self::Done),
            (REFUSED, []) => Some(Self::Refused),
            (HELD, body) => name(body).map(Self::Held),
            (END, body) => Some(Self::End(u32::from_le_bytes(body.try_into().ok()?))),
            _ => None,
        }
    }
}

fn message(kind: u8, body: &[u8]) -> Message {
    [&[VERSION, kind], body].concat()
}

fn parts(bytes: &[u8]) -> Option<(u8, &[u8])> {
    match bytes {
        [VERSION, kind, body @ ..] => Some((*kind, body)),
        _ => None,
    }
}

fn name(body: &[u8]) -> Option<Name> {
    std::str::from_utf8(body).ok().and_then(Name::new)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_come_back() {
        let name = Name::new("17-0.fuse-0").unwrap();
        let requests = [Request::Keep, Request::Release, Request::Take].map(|it| it(name.clone()));
        for request in requests {
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        for reply in [Reply::Done, Reply::Refused, Reply::Held(name), Reply::End(70_000)] {
            assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        }
    }

    #[test]
    fn names_that_systemd_would_change_are_none() {
        let long = "n".repeat(NAME_LEN_MAX + 1);
        for name in ["", "a:b", "a b", "ä", "a\n", &long] {
            assert_eq!(Name::new(name), None, "{name:?}");
        }
        assert!(Name::new(&long[1..]).is_some());
    }

    #[test]
    fn nonsense_is_no_message() {
        for bytes in [&b""[..], b"\x01", b"\x02k", b"\x01t", b"\x01k", b"\x01ka:b", b"\x01e123"] {
            assert_eq!(Request::decode(bytes), None, "{bytes:?}");
            assert_eq!(Reply::decode(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_understood_is_written_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for bytes in [bytes.clone(), [&[VERSION][..], &bytes].concat()] {
                if let Some(request) = Request::decode(&bytes) {
                    prop_assert_eq!(request.encode(), bytes.clone());
                }
                if let Some(reply) = Reply::decode(&bytes) {
                    prop_assert_eq!(reply.encode(), bytes);
                }
            }
        }
    }
}
