//! Results for people: a table, a page, a picture.

mod page;
mod picture;
mod table;

use anyhow::Result;
use serde_json::json;

use crate::compare::Metric;
use crate::results::Results;
use crate::statistics::{Estimate, estimate, median};

pub(crate) use page::page;
pub(crate) use picture::picture;
pub(crate) use table::table;

/// One workload with one subject, summed up.
#[derive(Clone, Debug)]
pub(crate) struct Cell<'a> {
    pub(crate) workload: &'a str,
    pub(crate) subject: &'a str,
    pub(crate) is_ours: bool,
    pub(crate) runs: usize,
    pub(crate) disturbed: usize,
    pub(crate) ready: Option<Estimate>,
    pub(crate) pull: f64,
    pub(crate) penalty: Option<f64>,
    pub(crate) steady: Option<f64>,
    pub(crate) bytes_until_ready: f64,
    pub(crate) bytes: f64,
    pub(crate) requests: f64,
    pub(crate) connections: f64,
    pub(crate) cpu: f64,
    /// The same for each compressed gigabyte of the image.
    pub(crate) cpu_per_gigabyte: f64,
    pub(crate) cpu_workload: f64,
    pub(crate) rss: f64,
    pub(crate) disk: f64,
    pub(crate) written: f64,
    pub(crate) faults_major: f64,
    pub(crate) fuse_requests: Option<f64>,
    /// File systems that the image was shown by, with how many mounts of each.
    pub(crate) shown_by: String,
    pub(crate) error: Option<&'a str>,
}

/// Every workload with every subject that was run.
pub(crate) fn cells(results: &Results) -> Vec<Cell<'_>> {
    let mut cells = Vec::new();
    for workload in &results.head.workloads {
        for subject in &results.head.subjects {
            let runs = results.counted(&workload.name, &subject.name);
            let error = results.error(&workload.name, &subject.name);
            if runs.is_empty() && error.is_none() {
                continue;
            }
            let of = |value: &dyn Fn(&crate::results::Figures) -> f64| {
                let values: Vec<_> = runs.iter().map(|figures| value(figures)).collect();
                median(&values).unwrap_or(0.0)
            };
            let metric = |metric: Metric| metric.values(results, &workload.name, &subject.name);
            let fuse: Vec<_> =
                runs.iter().filter_map(|it| it.fuse_requests).map(|count| count as f64).collect();
            let steady: Vec<_> = runs.iter().filter_map(|it| it.steady).collect();
            let disturbed = results.runs.iter().filter(|run| {
                run.workload == workload.name
                    && run.subject == subject.name
                    && run.disturbed.is_some()
                    && !run.is_warm_up
            });
            cells.push(Cell {
                workload: &workload.name,
                subject: &subject.name,
                is_ours: subject.is_ours,
                runs: runs.len(),
                disturbed: disturbed.count(),
                ready: estimate(&metric(Metric::Ready)),
                pull: of(&|it| it.pull),
                penalty: median(&metric(Metric::Penalty)),
                steady: median(&steady),
                bytes_until_ready: of(&|it| it.link.bytes_until_ready as f64),
                bytes: of(&|it| it.link.bytes as f64),
                requests: of(&|it| it.link.requests as f64),
                connections: of(&|it| it.link.connections as f64),
                cpu: of(&|it| Metric::Cpu.of(it, 0.0)),
                cpu_per_gigabyte: of(&|it| Metric::Cpu.of(it, 0.0)) * 1e9
                    / workload.compressed_bytes.max(1) as f64,
                cpu_workload: of(&|it| {
                    it.usage.get("workload").map_or(0.0, crate::cgroup::Usage::cpu)
                }),
                rss: of(&|it| it.rss_peak.values().sum::<u64>() as f64),
                disk: of(&|it| it.disk_bytes as f64),
                written: of(&|it| it.written_bytes as f64),
                faults_major: of(&|it| {
                    it.usage.get("workload").map_or(0.0, |usage| usage.faults_major as f64)
                }),
                fuse_requests: median(&fuse),
                shown_by: runs.last().map_or(String::new(), |it| {
                    let mounts = it.mounts.iter().map(|(kind, count)| format!("{count} {kind}"));
                    mounts.collect::<Vec<_>>().join(", ")
                }),
                error,
            });
        }
    }
    cells
}

/// The table as JSON.
pub(crate) fn summary(results: &Results) -> Result<String> {
    let rows: Vec<_> = cells(results)
        .into_iter()
        .map(|cell| {
            json!({
                "workload": cell.workload, "subject": cell.subject, "runs": cell.runs,
                "disturbed": cell.disturbed,
                "ready": cell.ready.map(|it| [it.low, it.value, it.high]), "pull": cell.pull,
                "penalty": cell.penalty, "steady": cell.steady, "bytes_until_ready": cell.bytes_until_ready,
                "bytes": cell.bytes, "requests": cell.requests, "connections": cell.connections,
                "cpu": cell.cpu, "cpu_per_gigabyte": cell.cpu_per_gigabyte, "cpu_workload": cell.cpu_workload, "rss": cell.rss, "disk": cell.disk,
                "written": cell.written, "fuse_requests": cell.fuse_requests, "shown_by": cell.shown_by, "error": cell.error,
            })
        })
        .collect();
    let summary = json!({
        "schema": results.head.schema, "machine": results.head.machine, "link": results.head.link,
        "absent": results.head.absent, "rows": rows,
    });
    Ok(serde_json::to_string(&summary)?)
}
