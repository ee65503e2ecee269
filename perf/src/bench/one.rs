//! One run: a start of one workload with one subject on empty roots, its steady phase, and everything
//! that is measured meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::measure::{self, Clock, Sampler};
use super::{Bench, Caches, NAME, Site, session};
use crate::cgroup::Usage;
use crate::kernel_trace::KernelTrace;
use crate::results::{Figures, LinkUse};
use crate::subject::{Daemon, Engine};

/// Others may use this share of the machine's CPU time before a run counts as disturbed.
const DISTURBANCE_MAX: f64 = 0.1;
/// From the end of a start until what it has read is written down, at most.
const TRACE_TIME_MAX: Duration = Duration::from_secs(75);
/// Requests are counted, not kept.
const FUSE_BUFFER_KIB: usize = 16;

/// Traces that untimed starts have left, by subject and workload.
pub(crate) type Traces = Mutex<BTreeMap<(&'static str, String), PathBuf>>;

/// The figures, and what others used of the machine if it was too much.
pub(super) fn run(
    bench: &Bench<'_>,
    caches: Caches,
    traces: &Traces,
) -> Result<(Figures, Option<f64>)> {
    let trace = trace(bench, traces)?;
    if caches == Caches::Cold {
        crate::lab::forget_all_but(&bench.image.layout, bench.scratch.path())?;
    }
    let registry = Arc::new(bench.registry()?);
    let site = bench.site(&registry)?;
    if let (Some(trace), Some(daemon)) = (&trace, daemon(bench)) {
        copy(trace, &traces_of(&site, daemon))?;
    }
    let mut session = session(&site, bench.subject)?;
    // Only this figure is missing where tracefs is refused.
    let fuse =
        KernelTrace::start(bench.scratch.path(), &["fuse/fuse_request_send"], FUSE_BUFFER_KIB).ok();
    let before = measure::usage(&site.groups);
    let cpu = |usage: &BTreeMap<String, Usage>| usage.values().map(Usage::cpu).sum::<f64>();
    let clock = Clock::read(cpu(&before));
    registry.reset_stats();
    let began = Instant::now();
    let sampler = Sampler::start(Arc::clone(&registry), Arc::clone(&site.groups), began);
    let mut started = bench.start(&mut *session, &site, began)?;
    let bytes_until_ready = registry.bytes_sent();
    let mut figures = std::mem::take(&mut started.figures);
    figures.cpu_until_ready = Some(Clock::read(0.0).busy_since(&clock));
    if !bench.workload.steady.is_empty() {
        session
            .exec(NAME, &bench.workload.steady, bench.workload.timeout)
            .with_context(|| started.output.tail())?;
        figures.steady = Some(began.elapsed().as_secs_f64());
    }
    let after = measure::usage(&site.groups);
    let others = Clock::read(cpu(&after)).others_since(&clock);
    let samples = sampler.end();
    (figures.moved, figures.stalls) = (samples.moved, samples.stalls);
    figures.fuse_requests = fuse.as_ref().map(KernelTrace::count);
    let stats = registry.stats();
    figures.link = LinkUse {
        bytes: stats.bytes_sent,
        bytes_until_ready,
        requests: stats.requests,
        connections: stats.connections,
    };
    figures.requests = measure::requests(&stats, &bench.image.sizes);
    let since = |(name, usage): (String, Usage)| {
        let usage = usage.since(before.get(&name).unwrap_or(&Usage::default()));
        (name, usage)
    };
    figures.usage = after.into_iter().map(since).collect();
    for (name, pid) in session.processes() {
        figures.rss_peak.insert(name.to_owned(), measure::rss_peak(pid));
        figures.written_bytes += measure::written(pid);
    }
    figures.disk_bytes = measure::disk_used(&session.roots());
    figures.mounts = measure::mounts(&site);
    session.stop(NAME, started.take_child()?)?;
    figures.warm = Some(bench.warm(&mut *session, &site).context("starting it once more")?);
    Ok((figures, (others > DISTURBANCE_MAX).then_some(others)))
}

fn daemon<'a>(bench: &Bench<'a>) -> Option<&'a Daemon> {
    match &bench.subject.engine {
        Engine::Containerd(engine) => engine.daemon.as_ref(),
        Engine::Standalone(_) => None,
    }
}

/// What an earlier start has read, if this subject is to know it: of an untimed start, once.
fn trace(bench: &Bench<'_>, traces: &Traces) -> Result<Option<PathBuf>> {
    let Some(daemon) = daemon(bench).filter(|daemon| daemon.knows_trace) else {
        return Ok(None);
    };
    let key = (bench.subject.name, bench.workload.name.clone());
    let mut traces = traces.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = traces.get(&key) {
        return Ok(Some(known.clone()));
    }
    let registry = bench.registry()?;
    let site = bench.site(&registry)?;
    let mut session = session(&site, bench.subject)?;
    let mut started = bench.start(&mut *session, &site, Instant::now())?;
    session.stop(NAME, started.take_child()?)?;
    let left = traces_of(&site, daemon);
    let is_there = || fs::read_dir(left.join("sha256")).is_ok_and(|mut all| all.next().is_some());
    spanfs_node::wait_for(TRACE_TIME_MAX, || Ok(is_there() || bench.stop.is_set()))?;
    bench.stop.check()?;
    ensure!(is_there(), "an earlier start has left no trace in {}", left.display());
    let kept = bench.scratch.path().join(format!("trace-{}", key.1));
    copy(&left, &kept)?;
    traces.insert(key, kept.clone());
    Ok(Some(kept))
}

/// Where a snapshotter of ours keeps traces.
fn traces_of(site: &Site, daemon: &Daemon) -> PathBuf {
    site.node.path("lib").join(daemon.root).join("spanfs/cache/traces")
}

/// A directory with what is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => fs::copy(entry.path(), target).map(drop)?,
        }
    }
    Ok(())
}
