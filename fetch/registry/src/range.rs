//! The Range header (RFC 9110 §14), one range only.

use std::ops::Range;

/// What a Range header asks of a blob of known length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// All of it: no header, or one that a server may ignore.
    Whole,
    /// One half-open range, within the blob.
    Part(Range<u64>),
    /// Nothing that the blob has.
    Unsatisfiable,
}

/// Reads `bytes=a-b`, `bytes=a-` and `bytes=-n`. Other units and several ranges are ignored, as the
/// RFC allows and as many registries do.
pub(crate) fn asked(header: Option<&str>, len: u64) -> Asked {
    let Some((first, last)) = header
        .and_then(|header| header.strip_prefix("bytes="))
        .filter(|set| !set.contains(','))
        .and_then(|set| set.trim().split_once('-'))
    else {
        return Asked::Whole;
    };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if last < first => return Asked::Whole,
        (Ok(first), Ok(last)) => first..last.saturating_add(1).min(len),
        (Ok(first), Err(_)) if last.is_empty() => first..len,
        (Err(_), Ok(count)) if first.is_empty() => len.saturating_sub(count)..len,
        _ => return Asked::Whole,
    };
    if range.start >= range.end { Asked::Unsatisfiable } else { Asked::Part(range) }
}

/// `Content-Range` of an upload's PATCH: `first-last`, both inclusive, without unit.
pub(crate) fn chunk_start(header: &str) -> Option<u64> {
    let header = header.strip_prefix("bytes ").unwrap_or(header);
    header.split_once('-')?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let check = |header, expected| assert_eq!(asked(header, 100), expected, "{header:?}");
        check(None, Asked::Whole);
        check(Some("bytes=0-9"), Asked::Part(0..10));
        check(Some("bytes=90-200"), Asked::Part(90..100));
        check(Some("bytes=90-"), Asked::Part(90..100));
        check(Some("bytes=-5"), Asked::Part(95..100));
        check(Some("bytes=-500"), Asked::Part(0..100));
        check(Some("bytes=100-"), Asked::Unsatisfiable);
        check(Some("bytes=-0"), Asked::Unsatisfiable);
        check(Some("bytes=9-3"), Asked::Whole);
        check(Some("bytes=0-1,5-6"), Asked::Whole);
        check(Some("lines=0-1"), Asked::Whole);
        check(Some("bytes=a-b"), Asked::Whole);
        assert_eq!(asked(Some("bytes=0-"), 0), Asked::Unsatisfiable);
    }

    #[test]
    fn chunk_starts() {
        assert_eq!(chunk_start("10-19"), Some(10));
        assert_eq!(chunk_start("x-19"), None);
    }
}
