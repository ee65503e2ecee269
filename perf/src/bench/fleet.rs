//! Several nodes of this machine start the same image at once from one registry, and the simulation of
//! it beside what they really took.

use std::fmt::Write as _;
use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Bench, NAME, Plan, one, session};
use crate::results::Figures;
use crate::simulate::{ERROR_MAX, Fleet, simulate};
use crate::statistics::median;

/// One workload with one subject.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    workload: String,
    subject: String,
    nodes: u16,
    /// Until ready on one node alone.
    alone: f64,
    /// Medians of all nodes at once.
    real: f64,
    simulated: f64,
}

impl Row {
    /// By how much the simulation is off, as a share of what is real.
    pub(crate) fn error(&self) -> f64 {
        self.simulated / self.real - 1.0
    }
}

/// Measures one node alone, then all at once. The link is that of the registry.
pub(crate) fn fleet(plan: &Plan, nodes: u16) -> Result<Vec<Row>> {
    let prepared = plan.prepare()?;
    let traces = one::Traces::default();
    let mut rows = Vec::new();
    for (workload, image) in plan.workloads.iter().zip(&prepared) {
        for subject in &plan.subjects {
            let bench = plan.bench(workload, image, subject);
            let mut runs = Vec::new();
            let mut times = Vec::new();
            for _ in 0..plan.runs {
                runs.push(one::run(&bench, plan.caches, &traces)?.0);
                times.extend(at_once(&bench, nodes)?);
            }
            runs.sort_by(|a, b| a.ready.total_cmp(&b.ready));
            let figures = runs.get((runs.len() - 1) / 2).context("no run")?;
            rows.push(Row {
                workload: workload.name.clone(),
                subject: subject.name.to_owned(),
                nodes,
                alone: figures.ready,
                real: median(&times).context("no node")?,
                simulated: simulated(&bench, figures, nodes),
            });
        }
    }
    Ok(rows)
}

fn simulated(bench: &Bench<'_>, figures: &Figures, nodes: u16) -> f64 {
    let rate = bench.link.link.bytes_per_second.map_or(1e12, |rate| rate as f64);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let fleet = Fleet {
        nodes: usize::from(nodes),
        egress: rate,
        node_link: rate,
        spread: 0.0,
        // All nodes are on this machine.
        shared_cores: Some(cores as f64),
        peers: false,
        seed: 1,
    };
    simulate(figures, &fleet).p50
}

/// Seconds until ready of each node, all told to pull at the same moment.
fn at_once(bench: &Bench<'_>, nodes: u16) -> Result<Vec<f64>> {
    crate::lab::forget_all_but(&bench.image.layout, bench.scratch.path())?;
    let registry = bench.registry()?;
    let sites = (0..nodes).map(|_| bench.site(&registry)).collect::<Result<Vec<_>>>()?;
    let all_up = Barrier::new(sites.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = sites
            .iter()
            .map(|site| {
                let all_up = &all_up;
                scope.spawn(move || -> Result<f64> {
                    let session = session(site, bench.subject);
                    // Who failed does not keep the others waiting.
                    all_up.wait();
                    let mut session = session?;
                    let mut started = bench.start(&mut *session, site, Instant::now())?;
                    let ready = started.figures.ready;
                    session.stop(NAME, started.take_child()?)?;
                    Ok(ready)
                })
            })
            .collect();
        let times = threads.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a node's thread panicked")))
        });
        times.collect()
    })
}

pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<12} {:<24} {:>5} {:>8} {:>8} {:>10} {:>7}\n",
        "workload", "subject", "nodes", "alone s", "real s", "simulated", "error"
    );
    for row in rows {
        let verdict = if row.error().abs() <= ERROR_MAX { "" } else { "  OFF" };
        let _ = writeln!(
            text,
            "{:<12} {:<24} {:>5} {:>8.2} {:>8.2} {:>10.2} {:>6.0} %{verdict}",
            row.workload,
            row.subject,
            row.nodes,
            row.alone,
            row.real,
            row.simulated,
            row.error() * 100.0
        );
    }
    text += "all nodes share this machine's cores and the registry's link, in the simulation too\n";
    text
}
