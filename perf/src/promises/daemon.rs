//! The snapshotter daemon alone: calls of containerd among 10,000 snapshots, layers prepared with
//! their zTOCs at hand, memory with many layers mounted.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use spanfs_layer::Digest;
use spanfs_layer::oci::{ImageConfig, Index, Manifest, Platform};
use spanfs_registry::Link;
use spanfs_snapshotter::grpc::proto::snapshots::snapshots_client::SnapshotsClient;
use spanfs_snapshotter::grpc::proto::snapshots::{
    CommitSnapshotRequest, Info, ListSnapshotsRequest, PrepareSnapshotRequest, StatSnapshotRequest,
    UpdateSnapshotRequest, UsageRequest,
};
use tokio::runtime::Runtime;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::memory::hundred_layers;
use super::{indexed_image, serve};
use crate::content::Layer;
use crate::lab::Lab;
use crate::report::{Goal, Report, Row};

const SNAPSHOTS: usize = 10_000;
/// Calls of each kind.
const CALLS: usize = 100;
/// Prepares at once while the snapshots are made.
const TOGETHER: usize = 64;
const PATIENCE: Duration = Duration::from_secs(120);
const CRI: &str = "containerd.io/snapshot/cri.";
const TARGET: &str = "containerd.io/snapshot.ref";

/// `daemon-calls`.
pub(super) fn calls(lab: &Lab, report: &mut Report) -> Result<()> {
    let daemon = Daemon::start(lab, "daemon-calls")?;
    let runtime = runtime()?;
    let row = |what: &str, value: f64, goal| Row {
        promise: "daemon-calls",
        what: what.to_owned(),
        value,
        unit: "ms",
        goal,
    };
    let figures = runtime.block_on(async {
        let client = daemon.connect().await?;
        fill(&client).await?;
        measure_calls(client).await
    })?;
    // What the disk alone takes to keep something for good: a commit can't be faster.
    let sync = lab.median(|| sync_ms(&daemon.root))?;
    report.row(&row("fsync of 4 KiB on the same disk", sync, Goal::None))?;
    for (what, mut times) in figures {
        times.sort_by(f64::total_cmp);
        let (median, late) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        let what = format!("{what} among {SNAPSHOTS} snapshots");
        report.row(&row(&what, median, Goal::AtMost(5.0)))?;
        report.row(&row(&format!("{what}, 99 %"), late, Goal::None))?;
    }
    Ok(())
}

fn key(number: usize) -> String {
    format!("default/{number}/container-{number}")
}

async fn fill(client: &SnapshotsClient<Channel>) -> Result<()> {
    let mut tasks = Vec::new();
    for first in 0..TOGETHER {
        let mut client = client.clone();
        tasks.push(tokio::spawn(async move {
            for number in (first..SNAPSHOTS).step_by(TOGETHER) {
                let labels = [(TARGET, Digest::of(number.to_string().as_bytes()).to_string())];
                let labels = labels.map(|(label, value)| (label.to_owned(), value));
                let labels = BTreeMap::from(labels);
                let request =
                    PrepareSnapshotRequest { key: key(number), labels, ..Default::default() };
                client.prepare(request).await?;
            }
            Ok::<_, tonic::Status>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

async fn measure_calls(
    mut client: SnapshotsClient<Channel>,
) -> Result<Vec<(&'static str, Vec<f64>)>> {
    let ms = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
    let mut figures = [
        "Commit",
        "Update",
        "Stat",
        "Usage",
        "Walk (containerd's look-up)",
        "Walk (all)",
        "what a client of Rust takes to decode all, once they have come,",
    ]
    .map(|what| (what, Vec::with_capacity(CALLS)));
    for number in 0..CALLS {
        let (key, name) = (key(number), format!("default/{number}/committed"));
        let since = Instant::now();
        let request = CommitSnapshotRequest { name: name.clone(), key, ..Default::default() };
        client.commit(request).await?;
        figures[0].1.push(ms(since));
        let labels = BTreeMap::from([("a".to_owned(), number.to_string())]);
        let info = Some(Info { name: name.clone(), labels, ..Default::default() });
        let since = Instant::now();
        client.update(UpdateSnapshotRequest { info, ..Default::default() }).await?;
        figures[1].1.push(ms(since));
        let since = Instant::now();
        client.stat(StatSnapshotRequest { key: name.clone(), ..Default::default() }).await?;
        figures[2].1.push(ms(since));
        let since = Instant::now();
        client.usage(UsageRequest { key: name, ..Default::default() }).await?;
        figures[3].1.push(ms(since));
        let chain = Digest::of((SNAPSHOTS - 1).to_string().as_bytes());
        let lookup = format!("labels.\"{TARGET}\"=={chain},parent==\"\"");
        for (place, filters) in [(4, vec![lookup]), (5, Vec::new())] {
            let since = Instant::now();
            let request = ListSnapshotsRequest { filters, ..Default::default() };
            let mut stream = client.list(request).await?.into_inner();
            let mut messages = Vec::new();
            while let Some(message) = stream.message().await? {
                messages.push(message);
            }
            figures[place].1.push(ms(since));
            let (mut count, since) = (0, Instant::now());
            for message in messages {
                count += message.infos()?.len();
            }
            if place == 5 {
                figures[6].1.push(ms(since));
            }
            ensure!(
                count == if place == 4 { 1 } else { SNAPSHOTS },
                "{count} snapshots are listed"
            );
        }
    }
    Ok(figures.into())
}

fn sync_ms(root: &Path) -> Result<f64> {
    let path = root.join("sync");
    let mut file = fs::File::create(&path)?;
    let since = Instant::now();
    std::io::Write::write_all(&mut file, &[1; 4096])?;
    file.sync_all()?;
    let took = since.elapsed().as_secs_f64() * 1e3;
    fs::remove_file(path)?;
    Ok(took)
}

/// `daemon-prepare`.
pub(super) fn prepare(lab: &Lab, report: &mut Report) -> Result<()> {
    for (name, entries, limit) in
        [("prepare-2000", 2_000, 20.0), ("prepare-200000", 200_000, 150.0)]
    {
        // The lowest layer has the image looked up, and all zTOCs fetched with it.
        let layout = indexed_image(lab, name, || {
            let mut lowest = Layer::new(70);
            lowest.file("lowest", 5_000_000)?;
            let mut layer = Layer::new(71);
            for number in 0..entries {
                layer.file(&format!("usr/lib/{:04}/{number:06}", number / 100), 10)?;
            }
            Ok([lowest, layer])
        })?;
        let median = lab.median(|| {
            let (registry, reference) = serve(&layout, Link::UNLIMITED)?;
            let daemon = Daemon::start(lab, "daemon-prepare")?;
            let took = runtime()?.block_on(async {
                let mut image = Pull::of(&layout, &reference, daemon.connect().await?)?;
                image.layer().await?;
                image.layer().await
            })?;
            drop(registry);
            Ok(took.as_secs_f64() * 1e3)
        })?;
        report.row(&Row {
            promise: "daemon-prepare",
            what: format!("Prepare of a layer of {entries} files, zTOC at hand, index not made"),
            value: median,
            unit: "ms",
            goal: Goal::AtMost(limit),
        })?;
    }
    Ok(())
}

/// `daemon-memory`.
pub(super) fn memory(lab: &Lab, report: &mut Report) -> Result<()> {
    let (layout, layers, files) = hundred_layers(lab)?;
    let (_registry, reference) = serve(&layout, Link::UNLIMITED)?;
    let mut daemon = Daemon::start(lab, "daemon-memory")?;
    runtime()?.block_on(async {
        let mut image = Pull::of(&layout, &reference, daemon.connect().await?)?;
        for _ in 0..layers {
            image.layer().await?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let row = |what: String, value, goal| Row {
        promise: "daemon-memory",
        what,
        value,
        unit: "MiB",
        goal,
    };
    let mib = |daemon: &Daemon| Ok::<_, anyhow::Error>(daemon.resident_bytes()? as f64 / 1048576.0);
    // Freed memory goes back a second after the last mount.
    std::thread::sleep(Duration::from_secs(5));
    let what = format!("RSS idle, {layers} layers of {files} files, just pulled");
    report.row(&row(what, mib(&daemon)?, Goal::AtMost(120.0)))?;
    daemon.restart()?;
    runtime()?.block_on(daemon.connect())?;
    std::thread::sleep(Duration::from_secs(5));
    let what = format!("RSS idle, {layers} layers of {files} files, after a restart");
    report.row(&row(what, mib(&daemon)?, Goal::AtMost(120.0)))
}

pub(super) fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// The built daemon, with a root of its own, gone with this value together with its mounts.
pub(super) struct Daemon {
    program: PathBuf,
    pub(super) root: PathBuf,
    child: Child,
}

impl Daemon {
    pub(super) fn start(lab: &Lab, name: &str) -> Result<Self> {
        let program = lab.spanfs.with_file_name("spanfs-snapshotter");
        ensure!(
            program.exists(),
            "{} is not there: cargo build --release -p spanfs-snapshotter",
            program.display()
        );
        let root = lab.dir(name)?;
        // What nobody asked for would only disturb.
        fs::write(root.join("config.toml"), "[background_fetch]\ndisable = true\n")?;
        let child = spawn(&program, &root)?;
        Ok(Self { program, root, child })
    }

    /// End it as a supervisor does, and start it again.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.end(rustix::process::Signal::TERM)?;
        self.child = spawn(&self.program, &self.root)?;
        Ok(())
    }

    fn end(&mut self, signal: rustix::process::Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.context("a process id")?, signal)?;
        self.child.wait()?;
        Ok(())
    }

    pub(super) async fn connect(&self) -> Result<SnapshotsClient<Channel>> {
        let socket = self.root.join("sock");
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let end = Instant::now() + PATIENCE;
        loop {
            match endpoint.connect().await {
                Ok(channel) => return Ok(SnapshotsClient::new(channel)),
                Err(error) if Instant::now() > end => {
                    let log = fs::read_to_string(self.root.join("log")).unwrap_or_default();
                    bail!("the daemon does not listen: {error}\n{log}");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    fn resident_bytes(&self) -> Result<u64> {
        crate::lab::resident_bytes(self.child.id().into())
    }
}

fn spawn(program: &Path, root: &Path) -> Result<Child> {
    let log = fs::File::options().create(true).append(true).open(root.join("log"))?;
    let path = |name: &str| root.join(name);
    Command::new(program)
        .arg("--address")
        .arg(path("sock"))
        .arg("--root")
        .arg(path("state"))
        .arg("--config")
        .arg(path("config.toml"))
        .env("DOCKER_CONFIG", root)
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Asked by hand, it takes its mounts along.
        if let Err(error) = self.end(rustix::process::Signal::INT) {
            eprintln!("perf: the daemon of {}: {error:#}", self.root.display());
        }
    }
}

/// containerd pulling an image, as far as the daemon sees it.
pub(super) struct Pull {
    client: SnapshotsClient<Channel>,
    reference: String,
    manifest: Digest,
    /// Blobs and chain ids, those to come.
    layers: std::vec::IntoIter<(Digest, String)>,
    parent: String,
}

impl Pull {
    pub(super) fn of(
        layout: &Path,
        reference: &str,
        client: SnapshotsClient<Channel>,
    ) -> Result<Self> {
        let read =
            |digest: &Digest| fs::read(layout.join("blobs/sha256").join(digest.hex().to_string()));
        let index = Index::parse(&fs::read(layout.join("index.json"))?)?;
        // What was made on the way stands before what has the tag.
        let mut digest = index.manifests.last().context("an empty layout")?.digest;
        while let Ok(index) = Index::parse(&read(&digest)?)
            && let Some(next) = index.select(&Platform::host())
        {
            digest = next.digest;
        }
        let manifest = Manifest::parse(&read(&digest)?)?;
        let config = ImageConfig::parse(&read(&manifest.config.digest)?)?;
        let mut chain = String::new();
        let layers = manifest.layers.iter().zip(config.diff_ids()).map(|(layer, diff_id)| {
            chain = match chain.as_str() {
                "" => diff_id.to_string(),
                below => Digest::of(format!("{below} {diff_id}").as_bytes()).to_string(),
            };
            (layer.digest, chain.clone())
        });
        let layers = layers.collect::<Vec<_>>().into_iter();
        let (reference, parent) = (reference.to_owned(), String::new());
        Ok(Self { client, reference, manifest: digest, layers, parent })
    }

    /// Have the next layer shown; how long that took.
    pub(super) async fn layer(&mut self) -> Result<Duration> {
        let (blob, chain) = self.layers.next().context("no layer is left")?;
        let labels = BTreeMap::from([
            (TARGET.to_owned(), chain.clone()),
            (format!("{CRI}image-ref"), self.reference.clone()),
            (format!("{CRI}manifest-digest"), self.manifest.to_string()),
            (format!("{CRI}layer-digest"), blob.to_string()),
        ]);
        let parent = std::mem::replace(&mut self.parent, chain.clone());
        let key = format!("default/1/extract-1-abcd {chain}");
        let request = PrepareSnapshotRequest { key, parent, labels, ..Default::default() };
        let since = Instant::now();
        match self.client.prepare(request).await {
            Err(status) if status.code() == Code::AlreadyExists => Ok(since.elapsed()),
            Err(status) => bail!("layer {blob}: {status}"),
            Ok(_) => bail!("layer {blob} is left to containerd"),
        }
    }
}
