//! What a command prints: results on stdout, progress and warnings on stderr.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, SystemTime};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use spanfs_layer::oci::Descriptor;

use crate::daemon::log::rfc3339;

/// Where a command talks to. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Output {
    /// Only on a terminal.
    bars: Option<MultiProgress>,
}

impl Output {
    /// Of this process.
    pub fn of_process() -> Self {
        let target = || MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        Self { bars: io::stderr().is_terminal().then(target) }
    }

    /// A line of the result. A reader who has gone (`| head`) is no error.
    pub fn line(&self, text: impl Display) {
        self.beside_bars(|| drop(writeln!(io::stdout().lock(), "{text}")));
    }

    /// A warning, in the form of the peer's logger.
    pub fn warn(&self, text: impl Display) {
        let time = rfc3339(SystemTime::now());
        let (seconds, _) = time.split_at_checked(SECONDS_LEN).unwrap_or((&time, ""));
        let text = text.to_string();
        let line = format!("time=\"{seconds}Z\" level=warning msg={text:?}");
        self.beside_bars(|| drop(writeln!(io::stderr().lock(), "{line}")));
    }

    fn beside_bars(&self, write: impl FnOnce()) {
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }

    /// Progress of a layer being read; it goes with its drop.
    pub fn bar(&self, layer: &Descriptor) -> Bar {
        let bar = self.bars.as_ref().map(|bars| {
            let style = ProgressStyle::with_template("{prefix} {bar:30} {bytes} of {total_bytes}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            let prefix = format!("layer {:.19}", layer.digest.to_string());
            let bar = bars.add(ProgressBar::new(layer.size).with_prefix(prefix).with_style(style));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Bar { bar }
    }
}

/// `2026-01-02T03:04:05`.
pub(super) const SECONDS_LEN: usize = 19;

/// See [`Output::bar`].
#[derive(Debug)]
pub struct Bar {
    bar: Option<ProgressBar>,
}

impl Bar {
    /// So many more bytes are done.
    pub fn add(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
