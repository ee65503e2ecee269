//! `--debug`: the peer's lines for requests to registries on stdout, our log on stderr.

use std::fmt::Write as _;
use std::io::Write as _;

use spanfs_fetch::REQUESTS;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

/// Start both for this process.
pub(super) fn start_log() {
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log = log.with_filter(LevelFilter::from_level(Level::DEBUG));
    let subscriber = tracing_subscriber::registry().with(log).with(Requests);
    // A second command of one process keeps the log of the first.
    drop(tracing::subscriber::set_global_default(subscriber));
}

/// Prints `http req METHOD URL`, `http res STATUS` and `http err ERROR`.
struct Requests;

impl<S: Subscriber> Layer<S> for Requests {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == REQUESTS {
            let mut line = Line::default();
            event.record(&mut line);
            drop(writeln!(std::io::stdout().lock(), "http {}{}", line.message, line.values));
        }
    }
}

/// What an event says.
#[derive(Default)]
struct Line {
    message: String,
    /// All fields, each behind a space.
    values: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            _ => drop(write!(self.values, " {value:?}")),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}
