//! Two result files side by side: what became slower, beyond noise.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use crate::results::{Figures, Results};
use crate::statistics::ratio;

/// What of a run is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// From the pull to ready.
    Ready,
    /// Ready, less what the program needs with everything local.
    Penalty,
    /// From the pull to the end of the steady phase, or to ready where there is none.
    Steady,
    /// The pull alone.
    Pull,
    /// CPU seconds of snapshotter and containerd.
    Cpu,
    /// Bytes on the link.
    Bytes,
}

impl Metric {
    /// Its value in a run, if it has one. `floor` is what the program itself needs.
    pub(crate) fn of(self, figures: &Figures, floor: f64) -> f64 {
        match self {
            Self::Ready => figures.ready,
            // What is within a millisecond of the floor is no penalty.
            Self::Penalty => (figures.ready - floor).max(0.001),
            Self::Steady => figures.steady.unwrap_or(figures.ready),
            Self::Pull => figures.pull,
            Self::Cpu => ["snapshotter", "containerd"]
                .iter()
                .filter_map(|name| figures.usage.get(*name))
                .map(crate::cgroup::Usage::cpu)
                .sum(),
            Self::Bytes => figures.link.bytes as f64,
        }
    }

    /// All counted values of a workload with a subject.
    pub(crate) fn values(self, results: &Results, workload: &str, subject: &str) -> Vec<f64> {
        let floor = results.floor(workload).unwrap_or(0.0);
        let runs = results.counted(workload, subject);
        runs.into_iter().map(|figures| self.of(figures, floor)).collect()
    }
}

/// A subject of the first file that is compared with another of the second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    before: String,
    after: String,
}

impl std::str::FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((before, after)) if !before.is_empty() && !after.is_empty() => {
                Ok(Self { before: before.to_owned(), after: after.to_owned() })
            }
            _ => Err("expected BEFORE=AFTER, two subjects".to_owned()),
        }
    }
}

/// One workload with one subject, in both files.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) workload: String,
    pub(crate) subject: String,
    pub(crate) runs: (usize, usize),
    /// After over before, and the ends of its interval; none where one side has failed.
    pub(crate) ratio: Option<(f64, f64, f64)>,
    pub(crate) is_worse: bool,
    /// Others were at work during all runs of one side alone: what that cost can't be told.
    pub(crate) is_uneven: bool,
}

pub(crate) fn compare(
    before: &Results,
    after: &Results,
    metric: Metric,
    tolerance: f64,
    pair: Option<&Pair>,
) -> Result<Vec<Row>> {
    ensure!(
        before.head.link == after.head.link && before.head.caches == after.head.caches,
        "the two were measured over different links or caches: {} {}, {} {}",
        before.head.link.name,
        before.head.caches,
        after.head.link.name,
        after.head.caches
    );
    let mut rows = Vec::new();
    for workload in &before.head.workloads {
        for subject in before.head.subjects.iter().map(|subject| subject.name.as_str()) {
            let instead = match pair {
                Some(pair) if pair.before != subject => continue,
                Some(pair) => pair.after.as_str(),
                None => subject,
            };
            let old = metric.values(before, &workload.name, subject);
            let new = metric.values(after, &workload.name, instead);
            if old.is_empty() {
                continue;
            }
            let found = ratio(&new, &old);
            // What worked and fails now is worse, whatever it took.
            let is_broken = new.is_empty() && after.error(&workload.name, instead).is_some();
            if new.is_empty() && !is_broken {
                continue;
            }
            let is_disturbed = before.is_disturbed(&workload.name, subject);
            let is_uneven =
                !is_broken && is_disturbed != after.is_disturbed(&workload.name, instead);
            let is_slower = found.is_some_and(|it| it.low > 1.0 + tolerance);
            rows.push(Row {
                workload: workload.name.clone(),
                subject: instead.to_owned(),
                runs: (old.len(), new.len()),
                ratio: found.map(|it| (it.value, it.low, it.high)),
                is_worse: is_broken || (is_slower && !is_uneven),
                is_uneven,
            });
        }
    }
    ensure!(!rows.is_empty(), "the two files have no workload and subject in common");
    Ok(rows)
}

pub(crate) fn table(rows: &[Row], metric: Metric) -> String {
    let mut text = format!(
        "{:<14} {:<24} {:>7} {:>8} {:>16}  {metric:?}, after / before\n",
        "workload", "subject", "runs", "ratio", "95 %"
    );
    for row in rows {
        let (ratio, interval) = match row.ratio {
            Some((value, low, high)) => (format!("{value:.3}"), format!("{low:.3} .. {high:.3}")),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let verdict = match (row.is_worse, row.ratio) {
            (true, None) => "FAILS NOW",
            (true, Some(_)) => "SLOWER",
            (false, _) if row.is_uneven => "not judged: one side was disturbed",
            (false, Some((_, _, high))) if high < 1.0 => "better",
            _ => "",
        };
        let runs = format!("{}/{}", row.runs.0, row.runs.1);
        let _ = writeln!(
            text,
            "{:<14} {:<24} {runs:>7} {ratio:>8} {interval:>16}  {verdict}",
            row.workload, row.subject
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;
    use crate::statistics::Rng;

    #[test]
    fn noise_alone_is_not_slower_in_ten_repeats() {
        let mut rng = Rng(42);
        let mut times = || (0..5).map(|_| 3.0 + 0.6 * rng.share()).collect::<Vec<_>>();
        for _ in 0..10 {
            let (before, after) =
                (results(&[("a", &times())], 1.0), results(&[("a", &times())], 1.0));
            let rows = compare(&before, &after, Metric::Ready, 0.05, None).unwrap();
            assert!(!rows[0].is_worse, "{rows:?}");
        }
    }

    #[test]
    fn what_is_slower_or_fails_is_told() {
        let before = results(&[("a", &[3.0, 3.1, 2.9, 3.0, 3.2])], 1.0);
        let mut after = results(&[("a", &[4.0, 4.1, 3.9, 4.0, 4.2])], 1.0);
        let rows = compare(&before, &after, Metric::Ready, 0.05, None).unwrap();
        assert!(rows[0].is_worse, "{rows:?}");
        let both = results(&[("a", &[3.0, 3.1, 2.9]), ("b", &[4.0, 4.1, 3.9])], 1.0);
        let pair: Pair = "a=b".parse().unwrap();
        let rows = compare(&both, &both, Metric::Ready, 0.05, Some(&pair)).unwrap();
        assert!(rows.len() == 1 && rows[0].is_worse, "{rows:?}");
        let rows = compare(&after, &before, Metric::Penalty, 0.05, None).unwrap();
        assert!(!rows[0].is_worse, "{rows:?}");
        for run in &mut after.runs {
            run.figures = None;
            run.error = Some("dead".to_owned());
        }
        let rows = compare(&before, &after, Metric::Ready, 0.05, None).unwrap();
        assert!(rows[0].is_worse && table(&rows, Metric::Ready).contains("FAILS NOW"));
        let mut busy = results(&[("a", &[4.0, 4.1, 3.9, 4.0, 4.2])], 1.0);
        busy.runs.iter_mut().for_each(|run| run.disturbed = Some(0.5));
        let rows = compare(&before, &busy, Metric::Ready, 0.05, None).unwrap();
        assert!(!rows[0].is_worse && table(&rows, Metric::Ready).contains("not judged"));
        after.head.link.name = "wan".to_owned();
        assert!(compare(&before, &after, Metric::Ready, 0.05, None).is_err());
    }
}
