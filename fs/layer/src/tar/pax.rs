//! PAX extended headers: `LENGTH KEY=VALUE\n` records.

use alloc::vec::Vec;

use crate::{Record, Time};

/// Records rising by key; of several with one key the last is kept.
pub(crate) type Pax = Vec<(Vec<u8>, Vec<u8>)>;

/// Key under which sparse format 0.1 keeps its map; 0.0's many records are gathered there.
pub(super) const SPARSE_MAP: &[u8] = b"GNU.sparse.map";

/// Read a header's payload.
pub(super) fn parse(mut payload: &[u8]) -> Result<Pax, &'static str> {
    let mut records = Pax::new();
    let mut sparse_map = Vec::new();
    while !payload.is_empty() {
        let (key, value, rest) = record(payload)?;
        payload = rest;
        if matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes") {
            if !sparse_map.is_empty() {
                sparse_map.push(b',');
            }
            sparse_map.extend_from_slice(value);
        } else {
            records.push((key.to_vec(), value.to_vec()));
        }
    }
    if !sparse_map.is_empty() {
        records.push((SPARSE_MAP.to_vec(), sparse_map));
    }
    keep_last_of_each(&mut records);
    Ok(records)
}

fn keep_last_of_each(records: &mut Pax) {
    // The sort is stable, so the last record of a key is the last of its run.
    records.sort_by(|a, b| a.0.cmp(&b.0));
    records.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        if same {
            core::mem::swap(&mut later.1, &mut kept.1);
        }
        same
    });
}

/// Key, value, and what follows.
type Split<'a> = (&'a [u8], &'a [u8], &'a [u8]);

fn record(payload: &[u8]) -> Result<Split<'_>, &'static str> {
    const LENGTH: &str = "a record's length is wrong";
    let space = payload.iter().position(|&byte| byte == b' ').ok_or(LENGTH)?;
    let (digits, _) = payload.split_at_checked(space).ok_or(LENGTH)?;
    let len = decimal(digits).and_then(|len| usize::try_from(len).ok()).ok_or(LENGTH)?;
    let (whole, rest) = payload.split_at_checked(len).ok_or(LENGTH)?;
    let body = whole.get(space + 1..).ok_or(LENGTH)?;
    let body = body.strip_suffix(b"\n").ok_or("a record does not end in a newline")?;
    let equals = body.iter().position(|&byte| byte == b'=').ok_or("a record has no `=`")?;
    let (key, value) = body.split_at_checked(equals).ok_or(LENGTH)?;
    let value = value.get(1..).unwrap_or_default();
    let checked = match key {
        b"path" | b"linkpath" | b"uname" | b"gname" => value,
        _ => key,
    };
    if checked.contains(&0) {
        return Err("a key or name holds a NUL");
    }
    Ok((key, value, rest))
}

/// Put what the records say over what the main header says. An empty value changes nothing.
pub(super) fn apply(pax: &Pax, record: &mut Record) -> Result<(), &'static str> {
    for (key, value) in pax.iter().filter(|(_, value)| !value.is_empty()) {
        match key.as_slice() {
            b"path" => record.name.clone_from(value),
            b"linkpath" => record.link.clone_from(value),
            b"uname" => record.uname.clone_from(value),
            b"gname" => record.gname.clone_from(value),
            b"uid" => record.uid = signed(value).ok_or("uid is not a number")?,
            b"gid" => record.gid = signed(value).ok_or("gid is not a number")?,
            b"size" => record.size = decimal(value).ok_or("size is not a number")?,
            b"mtime" => record.mtime = time(value).ok_or("mtime is not a time")?,
            _ => {}
        }
    }
    Ok(())
}

/// Value of a key.
pub(super) fn value<'a>(pax: &'a Pax, key: &[u8]) -> Option<&'a [u8]> {
    let index = pax.binary_search_by(|(probe, _)| probe.as_slice().cmp(key)).ok()?;
    pax.get(index).map(|(_, value)| value.as_slice())
}

/// Decimal digits, at least one, up to 2⁶³ − 1.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let value = digits.iter().try_fold(0_u64, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })?;
    (value <= i64::MAX as u64).then_some(value)
}

fn signed(text: &[u8]) -> Option<i64> {
    match text.split_first()? {
        (b'-', digits) => decimal(digits).map(|value| -(value as i64)),
        (b'+', digits) => decimal(digits).map(|value| value as i64),
        _ => decimal(text).map(|value| value as i64),
    }
}

/// `SECONDS[.FRACTION]`; digits below a nanosecond are cut.
pub(crate) fn time(text: &[u8]) -> Option<Time> {
    let mut parts = text.splitn(2, |&byte| byte == b'.');
    let whole = parts.next()?;
    let fraction = parts.next().unwrap_or_default();
    let seconds = signed(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(core::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    if nanoseconds == 0 || whole.first() != Some(&b'-') {
        return Some(Time { seconds, nanoseconds });
    }
    let seconds = seconds.checked_sub(1)?;
    Some(Time { seconds, nanoseconds: 1_000_000_000 - nanoseconds })
}
