//! Bytes and rates as people write them.

use std::fmt;
use std::str::FromStr;

/// A count of bytes: `4096`, `10M`, `1.5GiB`. Letters are powers of 1024, as everywhere where memory
/// and spans are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bytes(pub(crate) u64);

/// Bytes per second, written like [`Bytes`] with an optional `/s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rate(pub(crate) u64);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a number of bytes such as 4096, 10M or 1.5GiB, found {0:?}")]
pub(crate) struct QuantityError(String);

const UNITS: [(&str, u32); 5] = [("", 0), ("K", 10), ("M", 20), ("G", 30), ("T", 40)];

impl FromStr for Bytes {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let error = || QuantityError(text.to_owned());
        let number = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        let unit = text[number.len()..].to_ascii_uppercase();
        let unit = unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit);
        let (_, shift) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(error)?;
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(1 << shift).map(Self).ok_or_else(error);
        }
        let value: f64 = number.parse().map_err(|_| error())?;
        let bytes = value * (1_u64 << shift) as f64;
        // Beyond it a float no longer names one integer.
        if (0.0..9.0e15).contains(&bytes) { Ok(Self(bytes.round() as u64)) } else { Err(error()) }
    }
}

impl FromStr for Rate {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        text.strip_suffix("/s").unwrap_or(text).parse().map(|Bytes(bytes)| Self(bytes))
    }
}

impl fmt::Display for Bytes {
    /// Three digits and a decimal unit, as links and disks are sold: `118 MB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut units = ["B", "kB", "MB", "GB", "TB", "PB"].iter();
        let mut unit = units.next().unwrap_or(&"B");
        while value >= 999.5 {
            let Some(larger) = units.next() else { break };
            value /= 1000.0;
            unit = larger;
        }
        let digits = if value >= 99.95 || *unit == "B" {
            0
        } else if value >= 9.995 {
            1
        } else {
            2
        };
        f.pad(&format!("{value:.digits$} {unit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(text.parse().ok().map(|Bytes(bytes)| bytes), expected, "{text:?}");
        };
        check("0", Some(0));
        check("4096", Some(4096));
        check("10M", Some(10 << 20));
        check("10MB", Some(10 << 20));
        check("1.5GiB", Some(3 << 29));
        check("2k", Some(2048));
        for text in ["", "M", "-1", "1X", "1 M", "nan", "inf", "99999999T", "1e400", "5iB5"] {
            check(text, None);
        }
        assert_eq!("3M/s".parse(), Ok(Rate(3 << 20)));
    }

    #[test]
    fn display() {
        let check = |bytes, expected: &str| assert_eq!(Bytes(bytes).to_string(), expected);
        check(0, "0 B");
        check(999, "999 B");
        check(1000, "1.00 kB");
        check(118_234_567, "118 MB");
        check(9_999_999, "10.0 MB");
        check(1_310_000_000, "1.31 GB");
    }
}
