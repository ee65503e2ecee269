//! The log: one JSON object a line on stderr, with the keys of the program that we stand in for.
//!
//! `level`, `msg`, `time` (RFC 3339, nine digits), `error`, and the fields of the event, sorted by key.

use std::error::Error;
use std::fmt::{self, Debug};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Everything, also of libraries.
    Trace,
    /// Every call.
    Debug,
    /// What an operator wants to see.
    Info,
    /// What looks wrong.
    Warn,
    /// What is wrong.
    Error,
}

impl Level {
    /// From its name in a flag; `fatal` and `panic` are told as errors.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "info" => Self::Info,
            "warn" | "warning" => Self::Warn,
            "error" | "fatal" | "panic" => Self::Error,
            _ => return None,
        })
    }

    /// Libraries are heard at `trace` only, but for their warnings.
    fn filter(self) -> Targets {
        let ours = match self {
            Self::Trace => return Targets::new().with_default(LevelFilter::TRACE),
            Self::Debug => LevelFilter::DEBUG,
            Self::Info => LevelFilter::INFO,
            Self::Warn => LevelFilter::WARN,
            Self::Error => LevelFilter::ERROR,
        };
        Targets::new().with_default(ours.min(LevelFilter::WARN)).with_target("spanfs", ours)
    }
}

/// Log everything of this process from now on.
pub fn start(level: Level) {
    let lines =
        tracing_subscriber::fmt::layer().event_format(JsonLines).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(level.filter()).with(lines).init();
}

struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let level = match *event.metadata().level() {
            tracing::Level::TRACE => "trace",
            tracing::Level::DEBUG => "debug",
            tracing::Level::INFO => "info",
            tracing::Level::WARN => "warning",
            tracing::Level::ERROR => "error",
        };
        fields.0.insert("level".into(), level.into());
        fields.0.insert("time".into(), rfc3339(SystemTime::now()).into());
        writeln!(writer, "{}", Value::Object(fields.0))
    }
}

struct Fields(Map<String, Value>);

impl Fields {
    fn insert(&mut self, field: &Field, value: impl Into<Value>) {
        let key = if field.name() == "message" { "msg" } else { field.name() };
        self.0.insert(key.to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.insert(field, chain(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.insert(field, format!("{value:?}"));
    }
}

/// An error with all its causes.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let nanoseconds = since.subsec_nanos();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanoseconds:09}Z")
}

/// Year, month and day of a day since 1970 (Gregorian; Hinnant's `civil_from_days`).
fn date(day: u64) -> (u64, u64, u64) {
    // Years are counted from March, so that the leap day is last; 400 of them repeat.
    let day = day + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn times() {
        let check = |seconds, nanoseconds, expected: &str| {
            let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
            assert_eq!(rfc3339(time), expected);
        };
        check(0, 0, "1970-01-01T00:00:00.000000000Z");
        check(951_782_399, 5, "2000-02-28T23:59:59.000000005Z");
        check(951_782_400, 0, "2000-02-29T00:00:00.000000000Z");
        check(1_709_251_199, 999_999_999, "2024-02-29T23:59:59.999999999Z");
        check(4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z");
    }

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_has_the_known_keys() {
        let out = Shared::default();
        let writer = out.clone();
        let lines = tracing_subscriber::fmt::layer()
            .event_format(JsonLines)
            .with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(Level::Info.filter()).with(lines);
        tracing::subscriber::with_default(subscriber, || {
            let error = std::io::Error::other("broken\n\"pipe\"");
            let error = &error as &dyn Error;
            tracing::warn!(
                error,
                key = "a/b",
                count = 3,
                "remote-snapshot-prepared" = "false",
                "it failed"
            );
            tracing::debug!("not heard");
        });
        let text = String::from_utf8(out.0.lock().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let mut line: Map<String, Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(line.remove("time").unwrap().as_str().unwrap().len(), 30);
        let expected = serde_json::json!({
            "level": "warning", "msg": "it failed", "error": "broken\n\"pipe\"", "key": "a/b",
            "count": 3, "remote-snapshot-prepared": "false",
        });
        assert_eq!(Value::Object(line), expected);
    }
}
