//! The table of a terminal.

use std::fmt::Write as _;

use super::cells;
use crate::results::Results;

pub(crate) fn table(results: &Results) -> String {
    let head = &results.head;
    let mut text = format!("{}; link {}; caches {}\n", head.machine, head.link.name, head.caches);
    for absent in &head.absent {
        let _ = writeln!(text, "absent: {}: {}", absent.name, absent.reason);
    }
    let _ = writeln!(
        text,
        "{:<12} {:<24} {:>5} {:>7} {:>15} {:>7} {:>8} {:>7} {:>8} {:>6} {:>8} {:>7}",
        "workload",
        "subject",
        "runs",
        "ready",
        "95 %",
        "pull",
        "penalty",
        "steady",
        "MB",
        "CPU s",
        "CPU s/GB",
        "RSS MB"
    );
    for cell in cells(results) {
        let _ = write!(text, "{:<12} {:<24} ", cell.workload, cell.subject);
        let _ = match (cell.ready, cell.error) {
            (Some(ready), _) => writeln!(
                text,
                "{:>5} {:>7.2} {:>15} {:>7.2} {:>8} {:>7} {:>8.1} {:>6.2} {:>8.1} {:>7.0}{}",
                cell.runs,
                ready.value,
                format!("{:.2} .. {:.2}", ready.low, ready.high),
                cell.pull,
                seconds(cell.penalty),
                seconds(cell.steady),
                cell.bytes_until_ready / 1e6,
                cell.cpu,
                cell.cpu_per_gigabyte,
                cell.rss / 1e6,
                if cell.disturbed > 0 {
                    format!("  {} disturbed", cell.disturbed)
                } else {
                    String::new()
                }
            ),
            (None, Some(error)) => writeln!(text, "FAILED: {}", error.trim()),
            (None, None) => writeln!(text),
        };
    }
    text
}

fn seconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
}
