//! Single values of the settings file, and what is wrong with them.

use std::time::Duration;

use super::settings::{DecompressProgram, Retry};
use super::{Fault, raw};

/// The longest time that a setting may name: numbers beyond are slips of the unit.
const DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// What was found wrong so far.
#[derive(Default)]
pub(super) struct Check(pub(super) Vec<Fault>);

impl Check {
    pub(super) fn fault(&mut self, problem: String) {
        self.0.push(Fault { line: None, problem });
    }

    pub(super) fn seconds(&mut self, key: &str, number: i64) -> Duration {
        self.duration(key, number, Duration::from_secs)
    }

    pub(super) fn millis(&mut self, key: &str, number: i64) -> Duration {
        self.duration(key, number, Duration::from_millis)
    }

    fn duration(&mut self, key: &str, number: i64, unit: fn(u64) -> Duration) -> Duration {
        match u64::try_from(number).map(unit) {
            Ok(duration) if duration <= DURATION_MAX => duration,
            _ => {
                self.fault(format!("{key} is {number}, expected a time from 0 to 7 days"));
                Duration::ZERO
            }
        }
    }

    pub(super) fn count(&mut self, key: &str, number: i64) -> u64 {
        u64::try_from(number).unwrap_or_else(|_| {
            self.fault(format!("{key} is {number}, expected 0 or more"));
            0
        })
    }

    pub(super) fn retry(&mut self, keys: [&str; 3], [retries, min, max]: [i64; 3]) -> Retry {
        let retries_max = match u32::try_from(retries) {
            Ok(retries) => retries,
            Err(_) if retries < 0 => 0,
            Err(_) => {
                self.fault(format!("{} is {retries}, expected at most {}", keys[0], u32::MAX));
                0
            }
        };
        let (wait_min, wait_max) = (self.millis(keys[1], min), self.millis(keys[2], max));
        if wait_min > wait_max {
            self.fault(format!("{} is {min}, more than the {max} of {}", keys[1], keys[2]));
        }
        Retry { retries_max, wait_min, wait_max }
    }

    pub(super) fn choice<T: Copy>(&mut self, key: &str, text: &str, choices: &[(&str, T)]) -> T {
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return *value;
        }
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        self.fault(format!("{key} is {text:?}, expected {}", names.join(" or ")));
        choices[0].1
    }

    pub(super) fn program(
        &mut self,
        key: &str,
        algorithm: &str,
        raw: &raw::DecompressStream,
    ) -> Option<(String, DecompressProgram)> {
        if !["gzip", "zstd"].contains(&algorithm) {
            self.fault(format!("{key}: no such algorithm, expected gzip or zstd"));
        }
        if raw.path.is_empty() {
            self.fault(format!("{key}.path is missing"));
        }
        if raw.path.contains(['#', '%', '{', '}', '\\', '|', ';', '&', '$', '<', '>']) {
            self.fault(format!("{key}.path {:?}: path contains invalid characters", raw.path));
        }
        let program = DecompressProgram { path: raw.path.clone().into(), args: raw.args.clone() };
        Some((algorithm.to_owned(), program))
    }
}
