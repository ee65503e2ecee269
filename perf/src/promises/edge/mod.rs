//! FUSE transports beside one another, spans local: what a request costs, and what is gained.

mod floor;
mod server;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use spanfs_mount::policy::Front;
use spanfs_mount::probe;
use spanfs_mount::transport::Transport;

use self::floor::{Cpus, ping_pong};
use self::server::{BIG_LEN, DIRECTORIES, FILE_LEN, FILES, Server, make_layer, small};
pub(crate) use self::server::{Served, serve};
use crate::lab::{Lab, drop_caches, run as run_command, seconds};
use crate::report::{Goal, Report, Row};

/// Pages read at random.
const PAGES: usize = 20_000;

/// What one way of serving reaches, each figure from a fresh mount with cold caches above a layer
/// file in memory.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    stat: f64,
    /// Directories listed, and what is in them looked at.
    walk: f64,
    small: f64,
    /// CPU time of the server for each of its reads, in seconds.
    cpu_per_read: f64,
    sequential: f64,
    /// The same into a buffer as malloc(3) gives it.
    allocated: f64,
    iops: f64,
    /// The same for reads of a page.
    cpu_per_page: f64,
    p50: f64,
    p99: f64,
}

impl Figures {
    /// The median of each figure by itself.
    fn median(all: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| {
            let mut values: Vec<f64> = all.iter().map(figure).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
        };
        Self {
            stat: of(|it| it.stat),
            walk: of(|it| it.walk),
            small: of(|it| it.small),
            cpu_per_read: of(|it| it.cpu_per_read),
            sequential: of(|it| it.sequential),
            allocated: of(|it| it.allocated),
            iops: of(|it| it.iops),
            cpu_per_page: of(|it| it.cpu_per_page),
            p50: of(|it| it.p50),
            p99: of(|it| it.p99),
        }
    }
}

/// The rows of the kernel-edge issue.
pub(super) fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let bench = Bench::new(lab)?;
    let transports = match probe::uring() {
        Ok(()) => &[Transport::Dev, Transport::Uring, Transport::Fuse3][..],
        Err(why) => {
            report.failed("edge", &anyhow::anyhow!("no uring: {why}"));
            &[Transport::Dev, Transport::Fuse3][..]
        }
    };
    let without_us = Served { complete: true, ..Served::new(Front::Erofs, Transport::Dev) };
    // As users have it, and with every read coming to us.
    let mut subjects = vec![without_us, Served::new(Front::Erofs, Transport::Dev)];
    for front in [Front::Erofs, Front::Inode] {
        let through = |&it| Served { through: true, ..Served::new(front, it) };
        subjects.extend(transports.iter().map(through));
    }
    let found = bench.measure(&subjects, lab.runs)?;
    tell_floor(report, found.native, found.figures[0])?;
    let fuse3 = |front| {
        let mut all = subjects.iter().zip(&found.figures);
        let fuse3 = all.find(|(it, _)| it.front == front && it.transport == Transport::Fuse3);
        fuse3.map_or(f64::NAN, |(_, figures)| figures.iops)
    };
    for (served, figures) in subjects.iter().zip(&found.figures).skip(1) {
        tell(report, *served, *figures, found.native, fuse3(served.front))?;
    }
    Ok(())
}

/// What the machine and the kernel reach without us.
fn tell_floor(report: &mut Report, native: Native, without_us: Figures) -> Result<()> {
    let mut row = |what: &str, value, unit| {
        report.row(&Row { promise: "edge", what: what.into(), value, unit, goal: Goal::None })
    };
    row("ext4, read 20,000 files, cold", native.cold, "s")?;
    row("ext4, read 20,000 files, warm", native.small, "s")?;
    row("ext4, stat 20,000 files, warm", native.stat, "s")?;
    row("ext4, 1 GiB, warm", native.sequential, "s")?;
    row("ext4, 1 GiB, buffer of malloc, warm", native.allocated, "s")?;
    for (cpus, where_) in
        [(Cpus::One, "on one CPU"), (Cpus::Two, "across CPUs"), (Cpus::Any, "where they like")]
    {
        let what = format!("a byte to a thread and back through pipes, {where_}, p50");
        row(&what, ping_pong(cpus)?.as_secs_f64() * 1e6, "us")?;
    }
    row("erofs without us: read 20,000 files / ext4 cold", without_us.small / native.cold, "x")?;
    row("erofs without us: random 4 KiB, p50", without_us.p50 * 1e6, "us")?;
    row("erofs without us: 1 GiB / ext4 warm", without_us.sequential / native.sequential, "x")?;
    let long = without_us.allocated / native.allocated;
    row("erofs without us: 1 GiB, buffer of malloc / ext4 warm", long, "x")
}

/// What one front on one transport reaches; `fuse3` are the random reads of that front on fuse3.
fn tell(
    report: &mut Report,
    served: Served,
    it: Figures,
    native: Native,
    fuse3: f64,
) -> Result<()> {
    let Served { front, transport, through, .. } = served;
    let over_fuse = through && front == Front::Erofs;
    let mut row = |what: &str, value, unit, goal| {
        let all = if over_fuse { ", all through it" } else { "" };
        let what = format!("{front}, {transport}{all}: {what}");
        report.row(&Row { promise: "edge", what, value, unit, goal })
    };
    // fuse3 is told beside the others, not judged; neither is what users don't have.
    let is_told = transport == Transport::Fuse3 || over_fuse;
    let goal = |goal| if is_told { Goal::None } else { goal };
    let of_erofs = |limit| if front == Front::Erofs { goal(limit) } else { Goal::None };
    match front {
        Front::Erofs => {
            let small = it.small / native.cold;
            row("read 20,000 files / ext4 cold", small, "x", goal(Goal::AtMost(1.1)))?;
            row("stat 20,000 files / ext4 warm", it.stat / native.stat, "x", Goal::None)?;
        }
        Front::Inode => {
            let small = it.small / native.small;
            row("read 20,000 files / ext4 warm", small, "x", goal(Goal::AtMost(7.0)))?;
            let stat = it.stat / native.stat;
            row("stat 20,000 files / ext4 warm", stat, "x", goal(Goal::AtMost(9.0)))?;
        }
    }
    row("CPU per read of small files", it.cpu_per_read * 1e6, "us", Goal::None)?;
    row("CPU per read of a page", it.cpu_per_page * 1e6, "us", of_erofs(Goal::AtMost(10.0)))?;
    row("random 4 KiB", it.iops, "/s", Goal::None)?;
    row("random 4 KiB / fuse3", it.iops / fuse3, "x", of_erofs(Goal::AtLeast(5.0)))?;
    row("random 4 KiB, p50", it.p50 * 1e6, "us", Goal::None)?;
    row("random 4 KiB, p99 / p50", it.p99 / it.p50, "x", of_erofs(Goal::AtMost(5.0)))?;
    let long = it.sequential / native.sequential;
    row("1 GiB / ext4 warm", long, "x", of_erofs(Goal::AtMost(1.3)))?;
    let long = it.allocated / native.allocated;
    row("1 GiB, buffer of malloc / ext4 warm", long, "x", of_erofs(Goal::AtMost(1.3)))
}

/// What single options are worth, each against the defaults of its transport. Told, not judged.
pub(super) fn run_options(lab: &Lab, report: &mut Report) -> Result<()> {
    let bench = Bench::new(lab)?;
    let mut subjects = Vec::new();
    for transport in [Transport::Dev, Transport::Uring] {
        let erofs = Served { through: true, ..Served::new(Front::Erofs, transport) };
        let inode = Served::new(Front::Inode, transport);
        subjects.extend([
            ("as it is", erofs),
            ("all opened for direct I/O", Served { direct: true, ..erofs }),
            ("read-ahead 1 MiB", Served { read_ahead_kib: Some(1024), ..erofs }),
            ("max_background 12", Served { background_max: Some(12), ..erofs }),
            ("max_background 256", Served { background_max: Some(256), ..erofs }),
            ("as it is", inode),
            ("read-ahead 1 MiB", Served { read_ahead_kib: Some(1024), ..inode }),
            ("max_background 12", Served { background_max: Some(12), ..inode }),
            ("max_background 256", Served { background_max: Some(256), ..inode }),
            ("without READDIRPLUS", Served { without: READDIRPLUS, ..inode }),
            ("without READDIRPLUS_AUTO", Served { without: READDIRPLUS_AUTO, ..inode }),
            ("without PARALLEL_DIROPS", Served { without: PARALLEL_DIROPS, ..inode }),
        ]);
    }
    let served: Vec<Served> = subjects.iter().map(|(_, served)| *served).collect();
    let found = bench.measure(&served, lab.runs)?;
    for ((name, served), it) in subjects.iter().zip(&found.figures) {
        for (what, value, unit) in [
            ("read 20,000 files", it.small, "s"),
            ("stat 20,000 files", it.stat, "s"),
            ("list and stat them", it.walk, "s"),
            ("CPU per read", it.cpu_per_read * 1e6, "us"),
            ("random 4 KiB", it.iops, "/s"),
            ("1 GiB", it.sequential, "s"),
        ] {
            let what = format!("{}, {}, {name}: {what}", served.front, served.transport);
            report.row(&Row { promise: "edge-options", what, value, unit, goal: Goal::None })?;
        }
    }
    Ok(())
}

// Flags of INIT (`linux/fuse.h`).
const READDIRPLUS: u64 = 1 << 13;
const READDIRPLUS_AUTO: u64 = 1 << 14;
const PARALLEL_DIROPS: u64 = 1 << 18;

/// What an ext4 directory reaches.
#[derive(Clone, Copy, Debug)]
struct Native {
    cold: f64,
    stat: f64,
    small: f64,
    sequential: f64,
    allocated: f64,
}

struct Found {
    native: Native,
    figures: Vec<Figures>,
}

/// The layer, and the same files in a directory.
struct Bench {
    dir: PathBuf,
    layer: PathBuf,
    plain: PathBuf,
}

impl Bench {
    fn new(lab: &Lab) -> Result<Self> {
        let dir = lab.scratch.join("edge");
        let layer = make_layer(&dir)?;
        let plain = dir.join("plain");
        if !plain.join("big").exists() {
            fs::create_dir_all(&plain)?;
            run_command(Command::new("tar").arg("-xf").arg(&layer).arg("-C").arg(&plain))?;
        }
        Ok(Self { dir, layer, plain })
    }

    /// All subjects in each round, in rotated order.
    fn measure(&self, subjects: &[Served], rounds: usize) -> Result<Found> {
        let mut native = Vec::new();
        let mut figures = vec![Vec::new(); subjects.len()];
        for round in 0..rounds {
            native.push(self.native()?);
            for number in 0..subjects.len() {
                let number = (number + round) % subjects.len();
                figures[number].push(self.figures(&subjects[number])?);
            }
        }
        let of = |figure: fn(&Native) -> f64| {
            let mut values: Vec<f64> = native.iter().map(figure).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let native = Native {
            cold: of(|it| it.cold),
            stat: of(|it| it.stat),
            small: of(|it| it.small),
            sequential: of(|it| it.sequential),
            allocated: of(|it| it.allocated),
        };
        Ok(Found { native, figures: figures.iter().map(|it| Figures::median(it)).collect() })
    }

    fn native(&self) -> Result<Native> {
        drop_caches()?;
        let cold = seconds(|| read_small(&self.plain))?;
        let small = seconds(|| read_small(&self.plain))?;
        let stat = seconds(|| stat_small(&self.plain))?;
        read_long(&self.plain, Buffer::OnPage)?;
        let sequential = seconds(|| read_long(&self.plain, Buffer::OnPage))?;
        let allocated = seconds(|| read_long(&self.plain, Buffer::Allocated))?;
        Ok(Native { cold, stat, small, sequential, allocated })
    }

    fn figures(&self, served: &Served) -> Result<Figures> {
        let mut it = Figures::default();
        self.with(served, |server| {
            it.stat = seconds(|| stat_small(&server.root))?;
            Ok(())
        })?;
        self.with(served, |server| {
            it.walk = seconds(|| walk_small(&server.root))?;
            Ok(())
        })?;
        self.with(served, |server| {
            let (cpu, reads) = (server.cpu()?, server.reads()?);
            it.small = seconds(|| read_small(&server.root))?;
            let (cpu, reads) = (server.cpu()? - cpu, server.reads()? - reads);
            // Where none come to us, so many would have: the kernel reads 16 files at a time.
            let reads = reads.max((DIRECTORIES * FILES * FILE_LEN / (128 << 10)) as u64);
            it.cpu_per_read = cpu.as_secs_f64() / reads as f64;
            Ok(())
        })?;
        self.with(served, |server| {
            let (cpu, reads) = (server.cpu()?, server.reads()?);
            let mut took = read_pages(&server.root)?;
            let (cpu, reads) = (server.cpu()? - cpu, server.reads()? - reads);
            it.cpu_per_page = cpu.as_secs_f64() / reads.max(PAGES as u64) as f64;
            it.iops = took.len() as f64 / took.iter().sum::<Duration>().as_secs_f64();
            took.sort_unstable();
            let at = |share: usize| took[took.len() * share / 100].as_secs_f64();
            (it.p50, it.p99) = (at(50), at(99));
            Ok(())
        })?;
        self.with(served, |server| {
            it.sequential = seconds(|| read_long(&server.root, Buffer::OnPage))?;
            Ok(())
        })?;
        self.with(served, |server| {
            it.allocated = seconds(|| read_long(&server.root, Buffer::Allocated))?;
            Ok(())
        })?;
        Ok(it)
    }

    /// A fresh mount, caches cold but for the layer file.
    fn with(&self, served: &Served, work: impl FnOnce(&mut Server) -> Result<()>) -> Result<()> {
        let mut server = Server::start(&self.dir, served)?;
        drop_caches()?;
        run_command(Command::new("cat").arg(&self.layer).stdout(Stdio::null()))?;
        work(&mut server)
    }
}

fn stat_small(root: &Path) -> Result<()> {
    for directory in 0..DIRECTORIES {
        for file in 0..FILES {
            let metadata = root.join(small(directory, file)).symlink_metadata()?;
            ensure!(metadata.len() == FILE_LEN as u64, "a file of {} bytes", metadata.len());
        }
    }
    Ok(())
}

fn walk_small(root: &Path) -> Result<()> {
    let mut count = 0;
    for directory in fs::read_dir(root.join("small"))? {
        for file in fs::read_dir(directory?.path())? {
            count += usize::from(file?.metadata()?.len() == FILE_LEN as u64);
        }
    }
    ensure!(count == DIRECTORIES * FILES, "{count} files");
    Ok(())
}

fn read_small(root: &Path) -> Result<()> {
    for directory in 0..DIRECTORIES {
        for file in 0..FILES {
            let len = fs::read(root.join(small(directory, file)))?.len();
            ensure!(len == FILE_LEN, "a file of {len} bytes");
        }
    }
    Ok(())
}

/// Each read's time.
fn read_pages(root: &Path) -> Result<Vec<Duration>> {
    let big = fs::File::open(root.join("big"))?;
    rustix::fs::fadvise(&big, 0, None, rustix::fs::Advice::Random)?;
    let mut page = [0; 4096];
    let mut took = Vec::with_capacity(PAGES);
    for number in 0..PAGES as u64 {
        let place = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (BIG_LEN as u64 / 4096);
        let start = Instant::now();
        big.read_exact_at(&mut page, place * 4096)?;
        took.push(start.elapsed());
    }
    Ok(took)
}

/// How a reader's buffer lies: the processor copies twice as fast to a page's start as to where malloc(3)
/// puts what is large, 16 bytes behind it.
#[derive(Clone, Copy)]
enum Buffer {
    OnPage,
    Allocated,
}

fn read_long(root: &Path, buffer: Buffer) -> Result<()> {
    const LEN: usize = 1 << 20;
    const PAGE: usize = 4096;
    let big = fs::File::open(root.join("big"))?;
    let mut room = vec![0; LEN + 2 * PAGE];
    let aligned = room.as_ptr().addr().next_multiple_of(PAGE) - room.as_ptr().addr();
    let start = match buffer {
        Buffer::OnPage => aligned,
        Buffer::Allocated => aligned + 16,
    };
    let to = &mut room[start..start + LEN];
    for number in 0..(BIG_LEN / LEN) as u64 {
        big.read_exact_at(to, number * LEN as u64)?;
    }
    Ok(())
}
