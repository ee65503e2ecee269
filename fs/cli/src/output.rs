//! What goes to the terminal: results on stdout, progress on stderr.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How the command talks.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
    progress: Progress,
}

#[derive(Clone, Debug)]
enum Progress {
    /// Bars that move.
    Bars(MultiProgress),
    /// A line now and then.
    Lines,
    Silent,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        let progress = if json || quiet {
            Progress::Silent
        } else if io::stderr().is_terminal() {
            let target = ProgressDrawTarget::stderr_with_hz(20);
            Progress::Bars(MultiProgress::with_draw_target(target))
        } else {
            Progress::Lines
        };
        Self { json, progress }
    }

    /// A line of the result. A reader who has gone (`| head`) is no error.
    pub(crate) fn line(&self, text: impl std::fmt::Display) {
        let write = || writeln!(io::stdout().lock(), "{text}");
        match &self.progress {
            Progress::Bars(bars) => bars.suspend(|| drop(write())),
            _ => drop(write()),
        }
    }

    /// A result that is a file's content. A reader who has gone is no error here either.
    pub(crate) fn raw(&self, bytes: &[u8]) -> io::Result<()> {
        match io::stdout().lock().write_all(bytes) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) fn json(&self, value: &serde_json::Value) {
        self.line(value);
    }

    /// A line for people, on stderr; nothing with --json or --quiet.
    pub(crate) fn note(&self, text: impl std::fmt::Display) {
        let write = || writeln!(io::stderr().lock(), "{text}");
        match &self.progress {
            Progress::Bars(bars) => bars.suspend(|| drop(write())),
            Progress::Lines => drop(write()),
            Progress::Silent => {}
        }
    }

    /// Progress of something whose bytes are counted.
    pub(crate) fn bar(&self, label: &str, bytes: u64) -> Bar {
        let shown = match &self.progress {
            Progress::Bars(bars) => {
                let template =
                    "{prefix:32} {bar:30} {bytes:>10} of {total_bytes:10} {elapsed} {msg}";
                let style = ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar());
                let bar = ProgressBar::new(bytes).with_prefix(label.to_owned());
                let bar = bars.add(bar.with_style(style.progress_chars("█▉▊▋▌▍▎▏ ")));
                bar.enable_steady_tick(Duration::from_millis(100));
                Shown::Bar(bar)
            }
            Progress::Lines => Shown::Lines(Lines {
                label: label.to_owned(),
                bytes,
                next: Instant::now() + LINE_INTERVAL,
            }),
            Progress::Silent => Shown::Nothing,
        };
        Bar { shown, start: Instant::now() }
    }
}

/// Between two lines of the same progress, where it can't move.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Progress of one thing.
#[derive(Debug)]
pub(crate) struct Bar {
    shown: Shown,
    start: Instant,
}

#[derive(Debug)]
enum Shown {
    Bar(ProgressBar),
    Lines(Lines),
    Nothing,
}

#[derive(Debug)]
struct Lines {
    label: String,
    bytes: u64,
    next: Instant,
}

impl Bar {
    /// So many bytes are done.
    pub(crate) fn set(&mut self, done: u64) {
        match &mut self.shown {
            Shown::Bar(bar) => bar.set_position(done),
            Shown::Lines(lines) if Instant::now() >= lines.next => {
                lines.next = Instant::now() + LINE_INTERVAL;
                let (label, bytes) = (&lines.label, lines.bytes);
                let share = done.saturating_mul(100) / bytes.max(1);
                drop(writeln!(io::stderr().lock(), "{label}: {share} %"));
            }
            _ => {}
        }
    }

    /// What it is doing.
    pub(crate) fn say(&self, text: &str) {
        if let Shown::Bar(bar) = &self.shown {
            bar.set_message(text.to_owned());
        }
    }

    /// Leave the bar as it is, with a last word.
    pub(crate) fn finish(self, text: &str) {
        match self.shown {
            Shown::Bar(bar) => bar.abandon_with_message(text.to_owned()),
            Shown::Lines(lines) => {
                let seconds = self.start.elapsed().as_secs_f64();
                let label = lines.label;
                drop(writeln!(io::stderr().lock(), "{label}: {text} ({seconds:.2} s)"));
            }
            Shown::Nothing => {}
        }
    }

    /// Take the bar away.
    pub(crate) fn clear(self) {
        if let Shown::Bar(bar) = self.shown {
            bar.finish_and_clear();
        }
    }
}
