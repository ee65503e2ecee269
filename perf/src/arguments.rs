//! The command line, and what it means on this machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use spanfs_registry::Link;

use crate::bench::{Caches, Images, NamedLink, Plan, Scratch, Stop};
use crate::compare::{Metric, Pair};
use crate::promises::edge::Served;
use crate::subject::{self, Places};
use crate::workload::{self, RawReady, RawWorkload};

const EXIT_CODES: &str = "\
Exit codes:
  0    done; nothing is worse than it may be
  1    measured, and something failed, is slower (compare) or misses its budget (check)
  2    could not be measured: what is missing, and what to do, is printed
  130  interrupted; everything that was made has been taken down

Examples:
  perf run redis python-web --preset cloud --runs 5
  perf run --image registry.example/team/app:1 --ready-log 'listening on' --preset wan
  perf report perf-results.jsonl --svg bars.svg
  perf compare main.jsonl branch.jsonl";

/// Measure how long images take from pull to ready, under real snapshotters, side by side.
#[derive(Debug, Parser)]
#[command(name = "perf", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start workloads with each subject and write down what they took. Needs root.
    Run(Run),
    /// Make a page (and a picture) of a result file.
    Report(Report),
    /// Say what became slower from one result file to another; status 1 if anything did.
    Compare(Compare),
    /// Check the ratios that are promised; status 1 if one is missed beyond noise.
    Check(Check),
    /// Record what workloads read until they are ready: every range of every file, with the time.
    Record(Record),
    /// Read what a trace says from a mounted image, without its container.
    Replay(Replay),
    /// Many nodes that start the same image at once, from what one was measured to do.
    Simulate(Simulate),
    /// Start on several nodes of this machine at once, and hold the simulation against it; status 1 if
    /// it is off by more than 20 %.
    Fleet(Fleet),
    /// Check the promises of the lazy mount's parts. Needs root, /dev/fuse and a built `spanfs`.
    Promises(Promises),
    /// Serve a layer for the `edge` promise, which starts this by itself.
    #[command(hide = true)]
    ServeLayer {
        dir: PathBuf,
        #[command(flatten)]
        served: Served,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Run {
    /// Which workloads of the file; all that are not opt-in unless given.
    #[arg(conflicts_with = "image")]
    names: Vec<String>,
    /// Workloads: see perf/workloads.toml.
    #[arg(long, value_name = "FILE", conflicts_with = "image")]
    workloads: Option<PathBuf>,
    /// Measure this image instead: `[HOST/]NAME[:TAG]`, `oci:DIR[:TAG]`, or a name of perf/images. It
    /// is fetched once, verified, and served from here over the link.
    #[arg(long, value_name = "REF")]
    image: Option<String>,
    /// It is ready when a line of its output matches.
    #[arg(long, value_name = "REGEX", requires = "image", group = "ready")]
    ready_log: Option<String>,
    /// It is ready when this port takes connections.
    #[arg(long, value_name = "PORT", requires = "image", group = "ready")]
    ready_port: Option<u16>,
    /// It is ready when `:PORT/PATH` answers 200.
    #[arg(long, value_name = ":PORT/PATH", requires = "image", group = "ready")]
    ready_http: Option<String>,
    /// It is ready when it ends with this status (0 unless another condition is given).
    #[arg(long, value_name = "STATUS", requires = "image", group = "ready")]
    ready_exit: Option<i32>,
    /// Seconds from the start of the pull until it has to be ready.
    #[arg(long, value_name = "SECONDS", requires = "image")]
    timeout: Option<u64>,
    /// Run inside it, by a shell of the image, when it is ready; timed too.
    #[arg(long, value_name = "COMMAND", requires = "image")]
    steady: Option<String>,
    /// Program to start, and its arguments; the image's own unless given.
    #[arg(last = true, requires = "image")]
    command: Vec<String>,
    /// Subjects, separated by commas; all that are here unless given.
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// Link: unlimited, lan, cloud, wan or edge.
    #[arg(long, default_value = "cloud")]
    preset: String,
    /// Round trip in milliseconds instead of the preset's.
    #[arg(long, value_name = "MS")]
    rtt: Option<f64>,
    /// Bandwidth of all connections together instead of the preset's.
    #[arg(long, value_name = "MBIT/S")]
    bandwidth: Option<f64>,
    /// Bandwidth of one connection instead of the preset's.
    #[arg(long, value_name = "MBIT/S")]
    connection_bandwidth: Option<f64>,
    /// How much longer a round trip may take.
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    jitter: f64,
    /// Time that the registry takes before each answer.
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    first_byte: f64,
    /// Of a thousand requests for blobs, how many lose their connection.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=500))]
    loss: u64,
    /// Runs that count.
    #[arg(long, default_value_t = 5, value_parser = at_least_one)]
    runs: usize,
    /// Runs before them that do not.
    #[arg(long, default_value_t = 1)]
    warm_up: usize,
    /// How often a run is made again while others disturb the machine.
    #[arg(long, value_name = "N", default_value_t = 2)]
    repeats: usize,
    /// The kernel's caches when a run begins.
    #[arg(long, value_enum, default_value_t = Caches::Cold)]
    caches: Caches,
    /// Layers below this size get no zTOC, as `soci` has it.
    #[arg(long, value_name = "BYTES", default_value = "10M")]
    min_layer_size: String,
    /// Speak HTTP without TLS to the image's registry.
    #[arg(long)]
    plain_http: bool,
    /// Images of perf/images.
    #[arg(long, value_name = "DIR", default_value = "target/perf-images")]
    images: PathBuf,
    /// Where everything of a run is kept while it lasts: a directory on the disk to measure.
    #[arg(long, value_name = "DIR", default_value = "target/perf-scratch")]
    scratch: PathBuf,
    #[command(flatten)]
    places: Where,
    /// Result file.
    #[arg(long, value_name = "FILE", default_value = "perf-results.jsonl")]
    pub(crate) out: PathBuf,
    /// Print the summary as JSON, and no progress.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print no progress.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// Where programs are.
#[derive(Args, Clone, Debug)]
pub(crate) struct Where {
    /// containerd 2 and its tools [default: SPANFS_TEST_PEERS, what tests/run has built, or PATH].
    #[arg(long, value_name = "DIR")]
    containerd: Option<PathBuf>,
    /// `spanfs` and `spanfs-snapshotter` [default: beside this program].
    #[arg(long, value_name = "DIR")]
    spanfs: Option<PathBuf>,
    /// `soci-snapshotter-grpc` [default: PATH].
    #[arg(long, value_name = "DIR")]
    soci: Option<PathBuf>,
    /// `containerd-stargz-grpc` [default: PATH].
    #[arg(long, value_name = "DIR")]
    stargz: Option<PathBuf>,
    /// `mkfs.erofs`, 1.7 or newer [default: what tests/run has unpacked, or PATH].
    #[arg(long, value_name = "DIR")]
    erofs_utils: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Report {
    /// Result file of `perf run`; several may be joined by `cat` if machine and link are the same.
    pub(crate) results: PathBuf,
    /// Page to write [default: beside the results].
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Picture to write too.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Compare {
    /// Result file to compare with.
    pub(crate) before: PathBuf,
    /// Result file to judge.
    pub(crate) after: PathBuf,
    /// What is compared.
    #[arg(long, value_enum, default_value_t = Metric::Ready)]
    pub(crate) metric: Metric,
    /// Compare only this subject of the first file with that one of the second.
    #[arg(long, value_name = "BEFORE=AFTER")]
    pub(crate) subject: Option<Pair>,
    /// Per cent by which it may be slower, beyond noise.
    #[arg(long, default_value_t = 5.0)]
    pub(crate) tolerance: f64,
    /// Print as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Check {
    /// Result file.
    pub(crate) results: PathBuf,
    /// Budgets [default: those that are promised, perf/budgets.toml].
    #[arg(long, value_name = "FILE")]
    pub(crate) budgets: Option<PathBuf>,
    /// Print as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Record {
    /// Where traces go, as WORKLOAD.jsonl.
    #[arg(long, value_name = "DIR", default_value = "perf/traces")]
    pub(crate) directory: PathBuf,
    /// Workloads, images and places; the subject is containerd's overlayfs.
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Args, Debug)]
pub(crate) struct Replay {
    /// Trace of `perf record`.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: PathBuf,
    /// Passed to `spanfs mount`, such as --mount-option=--front=inode.
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub(crate) mount_option: Vec<String>,
    /// Workload or image, and the link.
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Args, Debug)]
pub(crate) struct Fleet {
    /// How many nodes.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(2..=32))]
    pub(crate) nodes: u16,
    /// Workloads, subjects and the link, which is the registry's for all nodes together.
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Args, Debug)]
pub(crate) struct Simulate {
    /// Result file of `perf run`.
    pub(crate) results: PathBuf,
    /// Numbers of nodes, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100, 1000, 10_000])]
    pub(crate) nodes: Vec<usize>,
    /// What the registry sends in all.
    #[arg(long, value_name = "MBIT/S", default_value_t = 20_000.0)]
    egress: f64,
    /// What one node takes; that of the measured link unless given.
    #[arg(long, value_name = "MBIT/S")]
    node_link: Option<f64>,
    /// Seconds within which the nodes are told to start.
    #[arg(long, default_value_t = 1.0)]
    spread: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Simulate {
    /// The fleet, but for its size and its peers.
    pub(crate) fn fleet(&self) -> Result<crate::simulate::Fleet> {
        let link = crate::results::Results::read(&self.results)?.head.link.mbit_per_second;
        let node_link = self.node_link.or(link).unwrap_or(10_000.0);
        for (value, what) in [(self.egress, "--egress"), (node_link, "--node-link")] {
            ensure!(value > 0.0 && value < 1e9, "{what}: {value} Mbit/s is no bandwidth");
        }
        ensure!((0.0..=3600.0).contains(&self.spread), "--spread: from 0 to 3600 s");
        ensure!(
            self.nodes.iter().all(|nodes| (1..=10_000).contains(nodes)),
            "--nodes: from 1 to 10,000"
        );
        Ok(crate::simulate::Fleet {
            nodes: 1,
            egress: self.egress * 1e6 / 8.0,
            node_link: node_link * 1e6 / 8.0,
            spread: self.spread,
            shared_cores: None,
            peers: false,
            seed: self.seed,
        })
    }
}

#[derive(Args, Debug)]
pub(crate) struct Promises {
    /// Which ones; all unless given.
    pub(crate) names: Vec<String>,
    /// The `spanfs` to measure; the one built beside this command unless given.
    #[arg(long)]
    pub(crate) spanfs: Option<PathBuf>,
    /// Directory with the images that `perf/images/build` made.
    #[arg(long, default_value = "target/perf-images")]
    pub(crate) images: PathBuf,
    /// Where scratch files go: a directory on the disk to measure.
    #[arg(long, default_value = "target/perf-scratch")]
    pub(crate) scratch: PathBuf,
    /// Runs of each measurement; the median counts.
    #[arg(long, default_value_t = 3)]
    pub(crate) runs: usize,
    /// Minutes of reads while the memory is watched; the promise speaks of 60.
    #[arg(long, default_value_t = 1)]
    pub(crate) soak: u64,
    /// Print the requests that the registry got, each with its time.
    #[arg(long)]
    pub(crate) requests: bool,
    /// Append one JSON line per row to this file.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("expected a number of at least 1".to_owned()),
    }
}

impl Run {
    /// With this subject, whatever was asked for.
    pub(crate) fn with_subject(mut self, name: &str) -> Self {
        self.subjects = vec![name.to_owned()];
        self
    }

    /// What is to be measured.
    pub(crate) fn plan(self, stop: Stop) -> Result<Plan> {
        let link = self.link()?;
        let workloads = match &self.image {
            Some(image) => vec![self.workload(image)?],
            None => workload::load(self.workloads.as_deref(), &self.names)?,
        };
        let places = self.places.places()?;
        let (subjects, absent) = subject::find(&self.subjects, &places)?;
        let spanfs = places.spanfs.join("spanfs");
        ensure!(
            spanfs.is_file(),
            "{} makes the images' indexes and is not there: cargo build --release -p spanfs",
            spanfs.display()
        );
        let scratch = Scratch::open(&self.scratch)?;
        let kept = self.scratch.join("indexed-images");
        std::fs::create_dir_all(&kept)?;
        Ok(Plan {
            workloads,
            subjects,
            absent,
            link,
            caches: self.caches,
            runs: self.runs,
            warm_up: self.warm_up,
            repeats_max: self.repeats,
            images: Images {
                built: self.images,
                kept: kept.canonicalize()?,
                spanfs,
                plain_http: self.plain_http,
                layer_size_min: self.min_layer_size,
            },
            scratch,
            out: self.out,
            command: command_line(),
            quiet: self.quiet || self.json,
            stop,
        })
    }

    fn workload(&self, image: &str) -> Result<workload::Workload> {
        let last = image.rsplit('/').next().unwrap_or(image);
        let raw = RawWorkload {
            name: last.split([':', '@']).next().unwrap_or(last).to_owned(),
            image: image.to_owned(),
            command: self.command.clone(),
            ready: RawReady {
                log: self.ready_log.clone(),
                port: self.ready_port,
                http: self.ready_http.clone(),
                exit: self.ready_exit,
            },
            steady: match &self.steady {
                Some(steady) => ["/bin/sh", "-c", steady].map(str::to_owned).to_vec(),
                None => Vec::new(),
            },
            timeout_seconds: self.timeout,
            opt_in: false,
        };
        raw.resolve()
    }

    fn link(&self) -> Result<NamedLink> {
        let Some(preset) = Link::preset(&self.preset) else {
            let known: Vec<_> = Link::PRESETS.iter().map(|(name, _)| *name).collect();
            bail!("unknown preset {}; there are {}", self.preset, known.join(", "));
        };
        let time = |ms: f64| {
            ensure!((0.0..=60_000.0).contains(&ms), "{ms} ms is no time of a link");
            Ok(Duration::from_secs_f64(ms / 1e3))
        };
        let rate = |mbit: f64| {
            ensure!(mbit > 0.0 && mbit <= 1e6, "{mbit} Mbit/s is no bandwidth of a link");
            Ok((mbit * 1e6 / 8.0) as u64)
        };
        let or = |given: Option<f64>, preset| given.map(rate).transpose().map(|it| it.or(preset));
        let link = Link {
            rtt: self.rtt.map_or(Ok(preset.rtt), time)?,
            bytes_per_second: or(self.bandwidth, preset.bytes_per_second)?,
            connection_bytes_per_second: or(
                self.connection_bandwidth,
                preset.connection_bytes_per_second,
            )?,
            jitter: time(self.jitter)?,
            first_byte: time(self.first_byte)?,
        };
        let name = match link == preset && self.loss == 0 {
            true => self.preset.clone(),
            false => format!("{}, changed", self.preset),
        };
        Ok(NamedLink { name, link, loss_per_mille: self.loss })
    }
}

/// As it was typed, but for where the program is.
fn command_line() -> Vec<String> {
    let mut words: Vec<_> = std::env::args().collect();
    if let Some(program) = words.first_mut()
        && let Some(name) = Path::new(&*program).file_name()
    {
        *program = name.to_string_lossy().into_owned();
    }
    words
}

impl Where {
    fn places(&self) -> Result<Places> {
        let own = std::env::current_exe().context("the path of this program")?;
        let beside = own.parent().map(Path::to_owned).unwrap_or_default();
        let with = |directory: PathBuf, program: &str| {
            directory.join(program).is_file().then_some(directory)
        };
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
        // Where tests/run puts what it builds and unpacks.
        let peers = std::env::var_os("SPANFS_TEST_PEERS")
            .map(PathBuf::from)
            .or_else(|| cache.map(|cache| cache.join("spanfs/peers")))
            .and_then(|directory| with(directory, "containerd"));
        let erofs_utils = std::env::var_os("SPANFS_EROFS_UTILS")
            .map(PathBuf::from)
            .or_else(|| Some(std::env::temp_dir().join("spanfs-erofs-utils")))
            .and_then(|directory| with(directory.join("bin"), "mkfs.erofs"));
        Ok(Places {
            containerd: self.containerd.clone().or(peers),
            spanfs: self.spanfs.clone().unwrap_or(beside),
            soci: self.soci.clone(),
            stargz: self.stargz.clone(),
            erofs_utils: self.erofs_utils.clone().or(erofs_utils),
        })
    }
}
