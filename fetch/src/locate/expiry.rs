//! How long a signed URL is good for, as its query tells. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use url::Url;

/// No store signs for longer; a larger figure means something else.
const LIFE_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Time for which a URL can be used from now on, less a sixth of reserve; `None` if it does not say, or
/// says what our clock can't agree with.
pub(super) fn life(url: &Url, now: SystemTime) -> Option<Duration> {
    let query: Vec<_> = url.query_pairs().collect();
    let value = |wanted: &str| {
        query.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| &**value)
    };
    let seconds = |name: &str| value(name)?.parse::<u64>().ok().map(Duration::from_secs);
    // Signed at its creation, which was just now: counted on our clock alone.
    let relative = seconds("X-Amz-Expires").or_else(|| seconds("X-Goog-Expires"));
    let until = |end: SystemTime| end.duration_since(now).ok();
    let absolute = || {
        let epoch = seconds("Expires").or_else(|| seconds("exp"));
        let end = epoch.map(|since| UNIX_EPOCH + since.min(EPOCH_MAX));
        until(end.or_else(|| timestamp(value("se")?))?)
    };
    let life = relative.or_else(absolute)?;
    (life <= LIFE_MAX && !life.is_zero()).then(|| life - life / 6)
}

/// Year 9999: keeps the addition within the clock's range.
const EPOCH_MAX: Duration = Duration::from_secs(253_402_300_799);

/// `2026-01-02T03:04:05Z`, as Azure writes the end of a signature; fractions are ignored.
fn timestamp(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let time = time.split('.').next()?;
    let mut time = time.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next().unwrap_or(Some(0))?);
    let sane = (1970..10_000).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !sane {
        return None;
    }
    // Days from civil, counting years from March so that the leap day comes last.
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = (year % 400) * 365 + (year % 400) / 4 - (year % 400) / 100 + day_of_year;
    let days = (year / 400 * 146_097 + day_of_era).checked_sub(719_468)?;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, expected_s: Option<u64>) {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let url = format!("https://s.example/b?{query}").parse().unwrap();
        assert_eq!(life(&url, now), expected_s.map(Duration::from_secs), "{query}");
    }

    #[test]
    fn forms_of_the_object_stores() {
        check("", None);
        check("X-Amz-Date=20260101T000000Z&X-Amz-Expires=1200", Some(1000));
        check("x-goog-expires=600", Some(500));
        check("Expires=1700000060&Signature=x", Some(50));
        check("se=2023-11-14T22:14:20Z&sig=x", Some(50));
        check("se=2023-11-14T22:14:20.123Z", Some(50));
        check("se=2023-11-14T22:13Z", None);
        check("Expires=1600000000", None);
        check("Expires=never", None);
        check("X-Amz-Expires=99999999999999", None);
        check("X-Amz-Expires=18446744073709551615", None);
        check("Expires=18446744073709551615", None);
        check("se=99999999999999999999-01-01T00:00:00Z", None);
        check("se=2023-13-01T00:00:00Z", None);
    }

    #[test]
    fn dates() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2024-12-31T23:59:59Z", 1_735_689_599),
        ] {
            assert_eq!(timestamp(text), Some(UNIX_EPOCH + Duration::from_secs(seconds)), "{text}");
        }
    }
}
