//! The serving side: a process of its own, so that its CPU time can be told from the readers'.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use spanfs_cache::{Content, Follower, ReadError, ReadReply};
use spanfs_layer::erofs::{self, Device};
use spanfs_layer::tar::{Limits, Reader};
use spanfs_layer::tree::{TreeBuilder, TreeOptions};
use spanfs_layer::{Tree, UncompressedOffset};
use spanfs_mount::filesystem::Open;
use spanfs_mount::policy::Front;
use spanfs_mount::transport::{Privilege, Transport};
use spanfs_mount::{Busy, Layer, Mounter, MounterOptions, Parts};

use crate::content::program_like;

pub(super) const DIRECTORIES: usize = 50;
pub(super) const FILES: usize = 400;
pub(super) const FILE_LEN: usize = 8192;
pub(super) const BIG_LEN: usize = 1 << 30;
/// As the indexes of `spanfs` have it: larger files are read past the page cache of the one file.
const LARGE_LEN_MIN: u64 = 8 << 20;

/// How the layer is served.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Served {
    /// The front.
    #[arg(long, value_parser = front)]
    pub(super) front: Front,
    /// The transport.
    #[arg(long, value_parser = transport)]
    pub(super) transport: Transport,
    /// Open the one file for direct I/O.
    #[arg(long)]
    pub(super) direct: bool,
    /// Read-ahead of the FUSE mount.
    #[arg(long)]
    pub(super) read_ahead_kib: Option<u32>,
    /// Show the layer as complete: the kernel's EROFS reads it without us.
    #[arg(long)]
    pub(super) complete: bool,
    /// Have reads of what stands in the layer file come to us, too.
    #[arg(long)]
    pub(super) through: bool,
    /// Flags of INIT that are not taken.
    #[arg(long, default_value_t = 0)]
    pub(super) without: u64,
    /// Requests of read-ahead that the kernel may have under way.
    #[arg(long)]
    pub(super) background_max: Option<u16>,
}

fn front(name: &str) -> Result<Front, String> {
    [Front::Erofs, Front::Inode]
        .into_iter()
        .find(|front| front.to_string() == name)
        .ok_or_else(|| format!("no front {name}"))
}

fn transport(name: &str) -> Result<Transport, String> {
    Transport::named(name).ok_or_else(|| format!("no transport {name}"))
}

impl Served {
    pub(super) fn new(front: Front, transport: Transport) -> Self {
        Self {
            front,
            transport,
            direct: false,
            read_ahead_kib: None,
            complete: false,
            through: false,
            without: 0,
            background_max: None,
        }
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--front={}", self.front),
            format!("--transport={}", self.transport),
            format!("--without={}", self.without),
        ];
        arguments.extend(self.direct.then(|| "--direct".to_owned()));
        arguments.extend(self.complete.then(|| "--complete".to_owned()));
        arguments.extend(self.through.then(|| "--through".to_owned()));
        arguments.extend(self.read_ahead_kib.map(|kib| format!("--read-ahead-kib={kib}")));
        arguments.extend(self.background_max.map(|count| format!("--background-max={count}")));
        arguments
    }
}

/// Make the layer file below `dir` unless it is there: small files, and a big one.
pub(super) fn make_layer(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("layer");
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(dir)?;
    let half_done = dir.join("layer.part");
    let mut tar = tar::Builder::new(io::BufWriter::new(File::create(&half_done)?));
    let mut append = |path: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, path, bytes)
    };
    for directory in 0..DIRECTORIES {
        for file in 0..FILES {
            let bytes = program_like((directory * FILES + file) as u64, FILE_LEN);
            append(&small(directory, file), &bytes)?;
        }
    }
    append("big", &program_like(1 << 40, BIG_LEN))?;
    tar.into_inner()?.flush()?;
    fs::rename(&half_done, &path)?;
    Ok(path)
}

/// Path of a small file.
pub(super) fn small(directory: usize, file: usize) -> String {
    format!("small/{directory:02}/{file:03}")
}

/// All of a layer is there, but unless it is `complete` it is shown as if some of it were not.
struct Local {
    file: File,
    len: u64,
    complete: bool,
    reads: AtomicU64,
}

impl Content for Local {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_present(
        &self,
        offset: UncompressedOffset,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, ReadError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let count = self.len.saturating_sub(offset.0).min(buffer.len() as u64) as usize;
        match self.file.read_exact_at(&mut buffer[..count], offset.0) {
            Ok(()) => Ok(Some(count)),
            Err(_) => Ok(None),
        }
    }

    fn fill(&self, _range: Range<UncompressedOffset>, reply: ReadReply) {
        reply(Ok(()));
    }

    fn present_file(&self, _range: Range<UncompressedOffset>) -> Option<BorrowedFd<'_>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        Some(self.file.as_fd())
    }

    fn complete_file(&self) -> Option<BorrowedFd<'_>> {
        self.complete.then(|| self.file.as_fd())
    }

    fn layer_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    /// All that the files need; that more is to come is what keeps the layer from being shown directly.
    fn stands(&self, _range: Range<UncompressedOffset>) -> bool {
        true
    }

    fn follow(&self, follower: Weak<dyn Follower>) {
        if let Some(follower) = follower.upgrade() {
            follower.handle_stands(UncompressedOffset(0)..UncompressedOffset(self.len));
        }
    }
}

fn tree(path: &Path) -> Result<Tree> {
    let mut reader = Reader::new(Limits::default());
    let mut records = Vec::new();
    let mut file = File::open(path)?;
    let mut piece = vec![0; 1 << 20];
    while let count @ 1.. = io::Read::read(&mut file, &mut piece)? {
        reader.feed(&piece[..count], &mut records)?;
    }
    let mut tree = TreeBuilder::new(TreeOptions::default());
    for record in &records {
        tree.push(record)?;
    }
    Ok(tree.finish()?)
}

/// Serve the layer of `dir` at `dir/mnt` until standard input ends; an empty line asks for the count
/// of reads.
pub(crate) fn serve(dir: &Path, served: &Served) -> Result<()> {
    let path = dir.join("layer");
    let tree = tree(&path)?;
    let file = File::open(&path)?;
    let len = file.metadata()?.len();
    let (complete, reads) = (served.complete, AtomicU64::new(0));
    let content = Arc::new(Local { file, len, complete, reads });
    let mut options = MounterOptions::new(dir.join("state"));
    options.transport = Some(served.transport);
    options.read_ahead_kib = served.read_ahead_kib;
    options.capabilities &= !served.without;
    options.shortcuts = !served.through;
    if served.direct {
        options.open = Open::Direct;
    }
    options.parts = Parts::Visible; // Their connections are looked for.
    let mounter = Mounter::new(options)?;
    let mount_point = dir.join("mnt");
    fs::create_dir_all(&mount_point)?;
    let name = "edge".to_owned();
    let as_content: Arc<dyn Content> = Arc::clone(&content) as _;
    let mount = match served.front {
        Front::Erofs => {
            let made = erofs::write_ways(&tree, &[Device { len, tag: b"edge" }], LARGE_LEN_MIN)?;
            let index = dir.join("index");
            fs::write(&index, &made.bytes)?;
            let data_len = *made.data_lens.first().context("an index without data")?;
            let copies = made.copies;
            let layer = Layer { name, content: as_content, index, data_len, copies };
            mounter.layer(&layer, &mount_point)?
        }
        Front::Inode => {
            let layers = vec![(name, as_content)];
            mounter.inodes(Arc::new(tree), layers, &mount_point, Privilege::Root)?
        }
    };
    if let Some(count) = served.background_max {
        set_background(dir, count)?;
    }
    println!("ready");
    for line in io::stdin().lock().lines() {
        line?;
        println!("{}", content.reads.load(Ordering::Relaxed));
    }
    mount.unmount(Duration::from_secs(10), Busy::Abort)?;
    Ok(())
}

/// Tell the kernel of all connections whose mounts are below `dir`.
fn set_background(dir: &Path, count: u16) -> Result<()> {
    let dir = dir.canonicalize()?;
    let mut found = 0;
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let mut words = line.split(' ').skip(2);
        let minor = words.next().and_then(|device| device.strip_prefix("0:"));
        let is_ours = words.nth(1).is_some_and(|place| Path::new(place).starts_with(&dir));
        if let Some(minor) = minor.filter(|_| is_ours && line.contains(" - fuse.")) {
            let connection = Path::new("/sys/fs/fuse/connections").join(minor);
            fs::write(connection.join("max_background"), count.to_string())?;
            fs::write(connection.join("congestion_threshold"), (count / 4 * 3).to_string())?;
            found += 1;
        }
    }
    ensure!(found == 1, "{found} connections below {}", dir.display());
    Ok(())
}

/// That process, gone with its mount when this is dropped.
pub(super) struct Server {
    process: Child,
    answers: BufReader<ChildStdout>,
    pub(super) root: PathBuf,
}

impl Server {
    pub(super) fn start(dir: &Path, served: &Served) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg("serve-layer")
            .arg(dir)
            .args(served.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let answers = BufReader::new(process.stdout.take().context("no output")?);
        let mut server = Self { process, answers, root: dir.join("mnt") };
        let first = server.line()?;
        ensure!(first == "ready", "the server of {served:?} says {first:?}");
        Ok(server)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// Reads that it has answered.
    pub(super) fn reads(&mut self) -> Result<u64> {
        let input = self.process.stdin.as_mut().context("no input")?;
        writeln!(input)?;
        Ok(self.line()?.parse()?)
    }

    /// CPU time that its threads have taken.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let mut nanoseconds = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            // A thread may have ended meanwhile.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            let first = text.split_whitespace().next().context("an empty schedstat")?;
            nanoseconds += first.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ended = self.process.wait();
    }
}
