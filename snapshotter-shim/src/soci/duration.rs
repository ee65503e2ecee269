//! Times as Go writes and reads them.

use std::time::Duration;

/// Read `300ms`, `1m30s`, `0`. Negative times are refused: nobody can wait for them.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut nanoseconds = 0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|&end| end > 0)?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let factor = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        nanoseconds += number.parse::<f64>().ok()? * factor;
        rest = tail;
    }
    // Go's own limit: 292 years.
    (nanoseconds < i64::MAX as f64).then(|| Duration::from_nanos(nanoseconds.round() as u64))
}

/// A time rounded to seconds: `0s`, `1m5s`, `7h23m0s`.
pub(super) fn in_seconds(time: Duration) -> String {
    let seconds = time.as_secs() + u64::from(time.subsec_millis() >= 500);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let millis = |text| parse(text).map(|time| time.as_millis());
        for (text, expected) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("300ms", Some(300)),
            ("1.5s", Some(1500)),
            ("1h2m3s", Some(3_723_000)),
            ("2000us", Some(2)),
            ("", None),
            ("5", None),
            ("s", None),
            ("1x", None),
            ("-1s", None),
            ("1e9h", None),
        ] {
            assert_eq!(millis(text), expected, "{text}");
        }
        for (seconds, expected) in [(0.4, "0s"), (0.5, "1s"), (65.0, "1m5s"), (26580.0, "7h23m0s")]
        {
            assert_eq!(in_seconds(Duration::from_secs_f64(seconds)), expected);
        }
    }
}
