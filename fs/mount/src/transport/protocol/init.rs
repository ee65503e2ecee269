//! INIT: what we take of what the kernel offers. Pure.

use super::abi::{self, init_flag};
use super::reply::{Body, Record};
use super::request::InitIn;
use crate::transport::READ_LEN_MAX;

/// What we take of what is offered. A kernel without any of it lacks speed only.
pub(crate) const WANTED: u64 = init_flag::ASYNC_READ
    | init_flag::DO_READDIRPLUS
    | init_flag::READDIRPLUS_AUTO
    | init_flag::ASYNC_DIO
    | init_flag::NO_OPEN_SUPPORT
    | init_flag::PARALLEL_DIROPS
    | init_flag::MAX_PAGES
    | init_flag::CACHE_SYMLINKS
    | init_flag::NO_OPENDIR_SUPPORT
    | init_flag::INIT_EXT
    | init_flag::HAS_RESEND;

/// Requests of read-ahead that the kernel may have under way.
const BACKGROUND_MAX: u16 = 64;
/// From here the kernel calls the device congested: three quarters, its own rule.
const CONGESTION: u16 = BACKGROUND_MAX / 4 * 3;
/// Data of a write request: nobody writes here, so the smallest that the kernel takes.
pub(crate) const WRITE_LEN_MAX: u32 = 4096;
/// Times are given to the nanosecond.
const TIME_GRANULARITY: u32 = 1;
const PAGE_LEN: usize = 4096;
const PAGES_MAX: u16 = (READ_LEN_MAX / PAGE_LEN) as u16;

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Negotiated {
    /// Requests will follow, with these flags in force.
    Agreed(u64),
    /// The kernel speaks a newer major version and asks again.
    AskedAgain,
}

/// A kernel that we can't talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel speaks FUSE {major}.{minor}, expected {}.{} or newer", abi::MAJOR, abi::MINOR_MIN)]
pub(crate) struct TooOld {
    major: u32,
    minor: u32,
}

/// Answer INIT into `body`, which has room for it, taking no other flags than those of `wanted`.
pub(crate) fn negotiate(
    offer: InitIn,
    wanted: u64,
    body: &mut Body<'_>,
) -> Result<Negotiated, TooOld> {
    let InitIn { major, minor, read_ahead_max, flags } = offer;
    if major < abi::MAJOR || major == abi::MAJOR && minor < abi::MINOR_MIN {
        return Err(TooOld { major, minor });
    }
    let mut out = Record::<{ abi::INIT_OUT_LEN }>::new();
    out.u32(abi::MAJOR).u32(minor.min(abi::MINOR));
    if major > abi::MAJOR {
        let short = out.bytes.get(..abi::INIT_OUT_COMPAT_LEN).unwrap_or_default();
        body.put(short).ok_or(TooOld { major, minor })?;
        return Ok(Negotiated::AskedAgain);
    }
    let mut taken = flags & wanted;
    if taken & init_flag::INIT_EXT == 0 {
        taken &= u64::from(u32::MAX);
    }
    out.u32(read_ahead_max).u32(taken as u32);
    out.u16(BACKGROUND_MAX).u16(CONGESTION).u32(WRITE_LEN_MAX).u32(TIME_GRANULARITY);
    out.u16(PAGES_MAX).u16(0).u32((taken >> 32) as u32);
    body.put(&out.bytes).ok_or(TooOld { major, minor })?;
    Ok(Negotiated::Agreed(taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(major: u32, minor: u32, flags: u64) -> InitIn {
        InitIn { major, minor, read_ahead_max: 131_072, flags }
    }

    const ASKED: u64 = WANTED | init_flag::OVER_IO_URING;

    fn check(offer: InitIn, expected: Result<(Negotiated, usize), TooOld>) -> Vec<u8> {
        let mut bytes = [0; 100];
        let mut body = Body::new(&mut bytes);
        let outcome = negotiate(offer, ASKED, &mut body);
        let len = body.len();
        assert_eq!(outcome.map(|outcome| (outcome, len)), expected, "{offer:?}");
        bytes[..len].to_vec()
    }

    #[test]
    fn versions_are_agreed_on_or_refused() {
        use Negotiated::{Agreed, AskedAgain};
        for (major, minor, expected) in [
            (7, 45, Ok((Agreed(ASKED), 64))),
            (7, 28, Ok((Agreed(ASKED), 64))),
            (7, 27, Err(TooOld { major: 7, minor: 27 })),
            (6, 99, Err(TooOld { major: 6, minor: 99 })),
            (8, 0, Ok((AskedAgain, 8))),
        ] {
            check(offer(major, minor, u64::MAX), expected);
        }
    }

    #[test]
    fn nothing_is_taken_that_was_not_offered() {
        for offered in [0, init_flag::ASYNC_READ, !init_flag::MAX_PAGES, u64::MAX] {
            let expected = Ok((Negotiated::Agreed(offered & ASKED), 64));
            let bytes = check(offer(7, 31, offered), expected);
            let field = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!((field(0), field(4), field(8)), (7, 31, 131_072));
            let found = u64::from(field(12)) | u64::from(field(32)) << 32;
            assert_eq!(found, offered & ASKED);
        }
    }

    #[test]
    fn high_flags_need_the_extension() {
        let expected = Ok((Negotiated::Agreed(init_flag::ASYNC_READ), 64));
        check(offer(7, 45, init_flag::ASYNC_READ | init_flag::OVER_IO_URING), expected);
    }
}
