//! What a user sees while it runs: a line a run, and the time left.

use std::time::Instant;

use crate::results::Run;

pub(super) struct Progress {
    began: Instant,
    done: usize,
    all: usize,
    quiet: bool,
}

impl Progress {
    pub(super) fn new(all: usize, quiet: bool) -> Self {
        Self { began: Instant::now(), done: 0, all, quiet }
    }

    pub(super) fn done(&mut self, run: &Run, repeat: usize) {
        if repeat == 0 {
            self.done += 1;
        }
        let what = match (&run.error, &run.figures) {
            (Some(error), _) => format!("FAILED: {}", error.lines().next().unwrap_or_default()),
            (None, Some(figures)) => format!(
                "ready {:.2} s (pull {:.2} s, {:.1} MB)",
                figures.ready,
                figures.pull,
                figures.link.bytes_until_ready as f64 / 1e6
            ),
            (None, None) => String::new(),
        };
        let disturbed = match run.disturbed {
            Some(share) => format!(", disturbed: others used {:.0} % of the CPU", share * 100.0),
            None => String::new(),
        };
        let round =
            if run.is_warm_up { "warm-up".to_owned() } else { format!("run {}", run.number) };
        self.line(run, &format!("{round}: {what}{disturbed}"));
    }

    pub(super) fn skipped(&mut self, run: &Run) {
        self.done += 1;
        self.line(run, "skipped: it has failed twice");
    }

    fn line(&self, run: &Run, what: &str) {
        if self.quiet {
            return;
        }
        let left = self.began.elapsed().as_secs_f64() / self.done.max(1) as f64
            * self.all.saturating_sub(self.done) as f64;
        let left = match left {
            left if left >= 90.0 => format!("{:.0} min left", left / 60.0),
            left => format!("{left:.0} s left"),
        };
        eprintln!(
            "[{}/{}, {left}] {} with {}, {what}",
            self.done, self.all, run.workload, run.subject
        );
    }
}
