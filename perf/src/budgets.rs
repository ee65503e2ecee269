//! Ratios that are promised, checked against a result file.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::compare::Metric;
use crate::results::Results;
use crate::statistics::{Estimate, median, ratio};

/// What is promised.
const PROMISED: &str = include_str!("../budgets.toml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    budget: Vec<Budget>,
}

/// A ratio of one subject to the best of others.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Budget {
    name: String,
    subject: String,
    /// It is held against the best of these.
    against: Against,
    metric: Metric,
    /// Only over this link.
    link: Option<String>,
    at_most: f64,
    /// Instead, where nothing but containerd's overlayfs is there to compare with, by workload or `*`.
    at_most_of_overlayfs: Option<std::collections::BTreeMap<String, f64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Against {
    /// All that are not ours.
    Others,
    /// Those that are not ours and have the whole image first.
    EagerOthers,
    /// All that have the whole image first, ours too.
    Eager,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Met,
    /// The median misses it, but its interval does not: more runs would tell.
    WithinNoise,
    Missed,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) budget: String,
    pub(crate) workload: String,
    pub(crate) subject: String,
    pub(crate) against: String,
    pub(crate) ratio: Option<(f64, f64, f64)>,
    pub(crate) at_most: f64,
    pub(crate) verdict: Verdict,
}

pub(crate) fn load(path: Option<&Path>) -> Result<Vec<Budget>> {
    let (text, source) = match path {
        Some(path) => (
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?,
            path.display().to_string(),
        ),
        None => (PROMISED.to_owned(), "the promised budgets".to_owned()),
    };
    let File { budget } = toml::from_str(&text).with_context(|| format!("reading {source}"))?;
    Ok(budget)
}

/// Every budget with every workload that its subject was measured on.
pub(crate) fn check(budgets: &[Budget], results: &Results) -> Vec<Row> {
    let mut rows = Vec::new();
    for budget in budgets {
        let is_of_link = budget.link.as_ref().is_none_or(|link| *link == results.head.link.name);
        for workload in results.head.workloads.iter().filter(|_| is_of_link) {
            rows.extend(row(budget, results, &workload.name));
        }
    }
    rows
}

fn row(budget: &Budget, results: &Results, workload: &str) -> Option<Row> {
    let values = |subject: &str| budget.metric.values(results, workload, subject);
    let own = values(&budget.subject);
    let others = results.head.subjects.iter().filter(|subject| match budget.against {
        Against::Others => !subject.is_ours,
        Against::EagerOthers => !subject.is_ours && subject.is_eager,
        Against::Eager => subject.is_eager && subject.name != budget.subject,
    });
    let others: Vec<_> = others
        .map(|subject| (subject.name.as_str(), values(&subject.name)))
        .filter_map(|(name, values)| median(&values).map(|median| (name, values, median)))
        .collect();
    let (best, theirs, _) = others.iter().min_by(|a, b| a.2.total_cmp(&b.2))?;
    let only_overlayfs = others.iter().all(|(name, ..)| name.starts_with("overlayfs"));
    let instead = budget.at_most_of_overlayfs.as_ref().filter(|_| only_overlayfs);
    let instead = instead.and_then(|by| by.get(workload).or_else(|| by.get("*")));
    let at_most = instead.copied().unwrap_or(budget.at_most);
    let has_failed = results.error(workload, &budget.subject).is_some();
    if own.is_empty() && !has_failed {
        return None;
    }
    let found = ratio(&own, theirs);
    let verdict = match found {
        Some(Estimate { value, .. }) if value <= at_most => Verdict::Met,
        Some(Estimate { low, .. }) if low <= at_most => Verdict::WithinNoise,
        _ => Verdict::Missed,
    };
    Some(Row {
        budget: budget.name.clone(),
        workload: workload.to_owned(),
        subject: budget.subject.clone(),
        against: (*best).to_owned(),
        ratio: found.map(|it| (it.value, it.low, it.high)),
        at_most,
        verdict,
    })
}

pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<30} {:<12} {:<18} {:>7} {:>16} {:>7}\n",
        "budget", "workload", "against", "ratio", "95 %", "budget"
    );
    for row in rows {
        let (ratio, interval) = match row.ratio {
            Some((value, low, high)) => (format!("{value:.2}"), format!("{low:.2} .. {high:.2}")),
            None => ("failed".to_owned(), "-".to_owned()),
        };
        let verdict = match row.verdict {
            Verdict::Met => "met",
            Verdict::WithinNoise => "within noise",
            Verdict::Missed => "MISSED",
        };
        let _ = writeln!(
            text,
            "{:<30} {:<12} {:<18} {ratio:>7} {interval:>16} {:>7.2}  {verdict}",
            row.budget, row.workload, row.against, row.at_most
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    fn verdicts(subjects: &[(&str, &[f64])]) -> Vec<(String, Verdict)> {
        let mut measured = results(subjects, 1.0);
        measured.head.link.name = "cloud".to_owned();
        let rows = check(&load(None).unwrap(), &measured);
        rows.into_iter().map(|row| (row.budget, row.verdict)).collect()
    }

    #[test]
    fn promises_are_held_against_the_best_other() {
        let slow: &[f64] = &[5.0, 5.1, 4.9];
        let erofs: &[f64] = &[3.0, 3.1, 2.9];
        let first = |lazy: &[f64]| {
            let all = verdicts(&[("overlayfs", slow), ("erofs", erofs), ("spanfs-lazy", lazy)]);
            all.into_iter().find(|(name, _)| name == "lazy, first start").unwrap().1
        };
        // The best other has a penalty of 2.
        assert_eq!(first(&[1.8, 1.85, 1.9]), Verdict::Met);
        assert_eq!(first(&[2.5, 2.6, 2.4]), Verdict::Missed);
        assert_eq!(first(&[1.85, 1.95, 2.0]), Verdict::WithinNoise);
    }

    #[test]
    fn overlayfs_alone_has_budgets_of_its_own() {
        let all = verdicts(&[("overlayfs", &[5.0]), ("spanfs-lazy", &[2.5])]);
        let first = all.iter().find(|(name, _)| name == "lazy, first start").unwrap();
        assert_eq!(first.1, Verdict::Missed, "0.375 of overlayfs is more than was promised");
    }
}
