//! RFC 3339 texts of a zTOC's `mod_time`.

use alloc::format;
use alloc::string::String;

use crate::Time;

const DAY_SECONDS: i64 = 86_400;
/// Days of 400 years, after which the calendar repeats.
const ERA_DAYS: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01: years are counted from March, so that the leap day is last.
const EPOCH_DAYS: i64 = 719_468;

/// The text of an instant in UTC; empty outside the years 0 to 9999, as the peer writes it.
pub(super) fn format(time: Time) -> String {
    let (year, month, day) = civil(time.seconds.div_euclid(DAY_SECONDS));
    if !(0..=9999).contains(&year) {
        return String::new();
    }
    let second = time.seconds.rem_euclid(DAY_SECONDS);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if time.nanoseconds > 0 {
        text.push_str(format!(".{:09}", time.nanoseconds).trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// The instant of a text in any zone.
pub(super) fn parse(text: &[u8]) -> Option<Time> {
    let mut text = Cursor(text);
    let year = text.digits(4)?;
    let month = text.after(b'-')?.digits(2).filter(|month| (1..=12).contains(month))?;
    let day = text.after(b'-')?.digits(2)?;
    let days = days(year, month, day);
    if civil(days) != (year, month, day) {
        return None;
    }
    let hour = text.after(b'T')?.digits(2).filter(|&hour| hour < 24)?;
    let minute = text.after(b':')?.digits(2).filter(|&minute| minute < 60)?;
    let second = text.after(b':')?.digits(2).filter(|&second| second < 60)?;
    let nanoseconds = text.fraction()?;
    let zone = text.zone()?;
    let seconds = days * DAY_SECONDS + hour * 3600 + minute * 60 + second - zone;
    text.0.is_empty().then_some(Time { seconds, nanoseconds })
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn digits(&mut self, count: usize) -> Option<i64> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        digits.iter().try_fold(0, |value, digit| {
            digit.is_ascii_digit().then(|| value * 10 + i64::from(digit - b'0'))
        })
    }

    fn after(&mut self, byte: u8) -> Option<&mut Self> {
        self.0 = self.0.strip_prefix(&[byte])?;
        Some(self)
    }

    /// Nanoseconds of `.DIGITS`, if there are any; digits below are cut.
    fn fraction(&mut self) -> Option<u32> {
        if self.after(b'.').is_none() {
            return Some(0);
        }
        let end = self.0.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(self.0.len());
        let (digits, rest) = self.0.split_at_checked(end).filter(|_| end > 0)?;
        self.0 = rest;
        let digits = digits.iter().copied().chain(core::iter::repeat(b'0')).take(9);
        Some(digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0')))
    }

    /// Seconds that the zone is ahead of UTC.
    fn zone(&mut self) -> Option<i64> {
        if self.after(b'Z').is_some() {
            return Some(0);
        }
        let (&sign, rest) = self.0.split_first()?;
        self.0 = rest;
        let hours = self.digits(2).filter(|&hours| hours < 24)?;
        let minutes = self.after(b':')?.digits(2).filter(|&minutes| minutes < 60)?;
        let ahead = hours * 3600 + minutes * 60;
        match sign {
            b'+' => Some(ahead),
            b'-' => Some(-ahead),
            _ => None,
        }
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    let from_march = days.saturating_add(EPOCH_DAYS);
    let (era, day) = (from_march.div_euclid(ERA_DAYS), from_march.rem_euclid(ERA_DAYS));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (year + era * 400 + later, month, day)
}

fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let day = (153 * month + 2) / 5 + day - 1 + year * 365 + year / 4 - year / 100;
    era * ERA_DAYS + day - EPOCH_DAYS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_instants_agree() {
        for (text, seconds, nanoseconds) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2023-11-14T22:13:20Z", 1_700_000_000, 0),
            ("2026-01-01T00:00:00.123456789Z", 1_767_225_600, 123_456_789),
            ("1969-12-31T23:59:58.75Z", -2, 750_000_000),
            ("2000-02-29T12:00:00Z", 951_825_600, 0),
            ("0000-01-01T00:00:00Z", -62_167_219_200, 0),
            ("9999-12-31T23:59:59Z", 253_402_300_799, 0),
        ] {
            let time = Time { seconds, nanoseconds };
            assert_eq!(parse(text.as_bytes()), Some(time), "{text}");
            assert_eq!(format(time), text);
        }
        assert_eq!(format(Time { seconds: 253_402_300_800, nanoseconds: 0 }), "");
        assert_eq!(format(Time { seconds: i64::MIN, nanoseconds: 0 }), "");
        assert_eq!(format(Time { seconds: i64::MAX, nanoseconds: 0 }), "");
    }

    #[test]
    fn zones_are_read() {
        let noon = parse(b"2026-07-01T12:00:00Z");
        assert_eq!(parse(b"2026-07-01T14:00:00+02:00"), noon);
        assert_eq!(parse(b"2026-07-01T02:30:00.0-09:30"), noon);
    }

    #[test]
    fn odd_texts_are_refused() {
        for text in [
            "",
            "2026-07-01",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-07-01T24:00:00Z",
            "2026-07-01T12:00:00",
            "2026-07-01T12:00:00.Z",
            "2026-07-01T12:00:00ZZ",
            "2026-07-01T12:00:00+2:00",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
