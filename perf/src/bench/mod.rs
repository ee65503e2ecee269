//! `perf run`: every subject starts every workload, over and over, each time on a node of its own.

mod containerd;
mod fleet;
mod image;
mod measure;
mod one;
mod output;
mod progress;
mod ready;
mod schedule;
mod site;
mod standalone;
mod start;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use spanfs_registry::{Fault, Faults, Link};

use crate::results::{Absent, Head, LinkFacts, Results, Run, SCHEMA, WorkloadFacts, Writer};
use crate::subject::{Engine, Subject};
use crate::workload::{Ready, Workload};

pub(crate) use fleet::{fleet, table as fleet_table};
pub(crate) use image::{Images, Prepared};
pub(crate) use measure::busy_share_of_others;
pub(crate) use site::{Scratch, Site};
pub(crate) use start::{Bench, NAME};

/// Set by a signal; every wait looks at it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From now on, signals that ask to end are answered in order: everything is taken down first.
    pub(crate) fn on_signals() -> Result<Self> {
        let stop = Self::default();
        for signal in
            [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
        {
            signal_hook::flag::register(signal, Arc::clone(&stop.0)).context("signals")?;
        }
        Ok(stop)
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error once a signal has come.
    pub(crate) fn check(&self) -> Result<()> {
        match self.is_set() {
            true => bail!(Interrupted),
            false => Ok(()),
        }
    }
}

/// Ctrl-C; everything has been taken down.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted; nothing is left behind")
    }
}

impl std::error::Error for Interrupted {}

/// Which state the kernel's caches are in when a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Caches {
    /// Empty but for the registry's blobs and the programs.
    Cold,
    /// As the run before has left them.
    Warm,
}

/// A link with its name and how often it breaks.
#[derive(Clone, Debug)]
pub(crate) struct NamedLink {
    pub(crate) name: String,
    pub(crate) link: Link,
    pub(crate) loss_per_mille: u64,
}

/// Bytes after which a connection that is to be lost breaks off.
const LOSS_AFTER: u64 = 300_000;

impl NamedLink {
    /// What goes wrong on it: the same requests in each run.
    fn faults(&self) -> Faults {
        match self.loss_per_mille {
            0 => Faults::none(),
            loss => Faults::seeded(1, loss, "/blobs/", &[Fault::Reset { after: LOSS_AFTER }]),
        }
    }

    fn facts(&self) -> LinkFacts {
        let mbit = |rate: Option<u64>| rate.map(|rate| rate as f64 * 8e-6);
        LinkFacts {
            name: self.name.clone(),
            rtt_ms: self.link.rtt.as_secs_f64() * 1e3,
            mbit_per_second: mbit(self.link.bytes_per_second),
            connection_mbit_per_second: mbit(self.link.connection_bytes_per_second),
            jitter_ms: self.link.jitter.as_secs_f64() * 1e3,
            first_byte_ms: self.link.first_byte.as_secs_f64() * 1e3,
            loss_per_mille: self.loss_per_mille,
        }
    }
}

/// What is measured, and how.
pub(crate) struct Plan {
    pub(crate) workloads: Vec<Workload>,
    pub(crate) subjects: Vec<Subject>,
    pub(crate) absent: Vec<Absent>,
    pub(crate) link: NamedLink,
    pub(crate) caches: Caches,
    pub(crate) runs: usize,
    pub(crate) warm_up: usize,
    pub(crate) repeats_max: usize,
    pub(crate) images: Images,
    pub(crate) scratch: Scratch,
    pub(crate) out: PathBuf,
    pub(crate) command: Vec<String>,
    pub(crate) quiet: bool,
    pub(crate) stop: Stop,
}

impl Plan {
    /// Has every workload's image ready to be served.
    fn prepare(&self) -> Result<Vec<Prepared>> {
        let prepare = |workload: &Workload| {
            self.stop.check()?;
            let image = self.images.prepare(&workload.image, &self.stop);
            image.with_context(|| format!("image of the workload {}", workload.name))
        };
        self.workloads.iter().map(prepare).collect()
    }

    /// Every workload with the first subject, for commands that start each once.
    pub(crate) fn benches(&self) -> Result<Benches<'_>> {
        Ok(Benches { plan: self, prepared: self.prepare()? })
    }

    fn bench<'a>(
        &'a self,
        workload: &'a Workload,
        image: &'a Prepared,
        subject: &'a Subject,
    ) -> Bench<'a> {
        let Self { scratch, link, stop, .. } = self;
        Bench { scratch, link, stop, workload, image, subject }
    }

    /// Our command.
    pub(crate) fn spanfs(&self) -> PathBuf {
        self.images.spanfs.clone()
    }
}

/// Workloads with their images.
pub(crate) struct Benches<'a> {
    plan: &'a Plan,
    prepared: Vec<Prepared>,
}

impl Benches<'_> {
    /// Each with its name.
    pub(crate) fn each(&self) -> Result<Vec<(Bench<'_>, &str)>> {
        let subject = self.plan.subjects.first().with_context(|| {
            let absent = self.plan.absent.first();
            absent.map_or(String::new(), |absent| format!("{}: {}", absent.name, absent.reason))
        })?;
        let all = self.plan.workloads.iter().zip(&self.prepared);
        let bench = |(workload, image)| self.plan.bench(workload, image, subject);
        Ok(all.map(|it| (bench(it), it.0.name.as_str())).collect())
    }
}

/// Measures everything; failures of subjects are rows, not the end.
pub(crate) fn run(plan: &Plan) -> Result<Results> {
    let prepared = plan.prepare()?;
    let head = head(plan, &prepared);
    let mut writer = Writer::create(&plan.out, &head)?;
    let mut results = Results { head, runs: Vec::new() };
    let slots = schedule::slots(
        plan.workloads.len(),
        plan.subjects.len(),
        plan.warm_up,
        plan.warm_up + plan.runs,
    );
    let mut progress = progress::Progress::new(slots.len(), plan.quiet);
    let traces = one::Traces::default();
    for slot in slots {
        let (workload, image) = (&plan.workloads[slot.workload], &prepared[slot.workload]);
        let subject = &plan.subjects[slot.subject];
        let mut run = Run {
            workload: workload.name.clone(),
            subject: subject.name.to_owned(),
            number: slot.round,
            is_warm_up: slot.is_warm_up,
            ..Run::default()
        };
        // What failed twice will fail again.
        let failed = results.runs.iter().filter(|earlier| {
            earlier.workload == run.workload
                && earlier.subject == run.subject
                && earlier.error.is_some()
        });
        if failed.count() >= 2 {
            progress.skipped(&run);
            continue;
        }
        for repeat in 0..=plan.repeats_max {
            let bench = plan.bench(workload, image, subject);
            let measured = one::run(&bench, plan.caches, &traces);
            plan.stop.check()?;
            match measured {
                Ok((figures, disturbed)) => {
                    run.figures = Some(figures);
                    run.disturbed = disturbed;
                }
                Err(error) => run.error = Some(format!("{error:#}")),
            }
            progress.done(&run, repeat);
            writer.run(&run)?;
            results.runs.push(run.clone());
            if run.disturbed.is_none() || run.is_warm_up {
                break;
            }
        }
    }
    Ok(results)
}

fn head(plan: &Plan, prepared: &[Prepared]) -> Head {
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let workloads = plan.workloads.iter().zip(prepared).map(|(workload, image)| WorkloadFacts {
        name: workload.name.clone(),
        image: image.name.clone(),
        layers: image.layers,
        compressed_bytes: image.compressed_bytes,
        is_indexed: image.indexed.is_some(),
        command: workload.command.clone(),
        ready: describe(&workload.ready),
        steady: workload.steady.clone(),
    });
    Head {
        schema: SCHEMA,
        command: plan.command.clone(),
        started: started.unwrap_or(Duration::ZERO).as_secs(),
        machine: crate::report::machine(),
        link: plan.link.facts(),
        caches: match plan.caches {
            Caches::Cold => "cold".to_owned(),
            Caches::Warm => "warm".to_owned(),
        },
        runs: plan.runs,
        warm_up: plan.warm_up,
        subjects: plan.subjects.iter().map(Subject::facts).collect(),
        absent: plan.absent.clone(),
        workloads: workloads.collect(),
    }
}

fn describe(ready: &Ready) -> String {
    match ready {
        Ready::Log(pattern) => format!("a line matches {pattern}"),
        Ready::Port(port) => format!("port {port} answers"),
        Ready::Http(port, path) => format!("http://localhost:{port}{path} answers 200"),
        Ready::Exit(status) => format!("ends with {status}"),
    }
}

/// A started workload, however it was started.
pub(crate) trait Session {
    /// Has the image ready to be started from.
    fn pull(&mut self, reference: &str) -> Result<()>;
    /// Makes a container that does not run yet.
    fn create(&mut self, reference: &str, name: &str, command: &[String]) -> Result<()>;
    /// Starts it; its output comes through the child's.
    fn start(
        &mut self,
        reference: &str,
        name: &str,
        command: &[String],
    ) -> Result<std::process::Child>;
    /// Runs a program inside it, to its end.
    fn exec(&mut self, name: &str, command: &[String], patience: Duration) -> Result<()>;
    /// Ends and removes it.
    fn stop(&mut self, name: &str, child: std::process::Child) -> Result<()>;
    /// Its parts with their process ids.
    fn processes(&self) -> Vec<(&'static str, u32)>;
    /// Roots of everything it keeps, below the node's directory.
    fn roots(&self) -> Vec<PathBuf>;
}

/// A subject set up on a site, its daemons up.
pub(crate) fn session<'a>(site: &'a Site, subject: &Subject) -> Result<Box<dyn Session + 'a>> {
    Ok(match &subject.engine {
        Engine::Containerd(engine) => Box::new(containerd::Containerd::start(site, engine)?),
        Engine::Standalone(engine) => Box::new(standalone::Standalone::new(site, engine)),
    })
}
