//! The command line, as it is typed. What it means on this machine is for [`crate::settings`].

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use spanfs_layer::Digest;

use crate::command::doctor::Release;
use crate::quantity::{Bytes, Rate};

const AFTER_HELP: &str = "\
Examples:
  spanfs demo                                       see what it does, in a minute
  spanfs mount registry.example/team/app:1 /mnt     a root file system, at once
  spanfs run registry.example/team/app:1 -- sh      a program in it, also without root
  spanfs index IMAGE --output NEW                   make an image that can be read span by span

Exit codes:
  0  done
  1  failed: network, kernel, disk
  2  the command line is wrong
  3  not found: image, layer, path, mount
  4  refused: credentials or permission
  5  corrupt: content is not what its digest promises
`spanfs run` exits with the program's own code (128 + signal where one ended it), 126 where it can't be
started, 127 where it is not there; a command that a signal stops exits with 128 + signal, demo with 130.

Environment:
  SPANFS_USERNAME, SPANFS_PASSWORD  credentials, before those of ~/.docker/config.json
  DOCKER_CONFIG                     directory of Docker's config.json instead of ~/.docker
  SPANFS_CACHE_DIR                  see --cache-dir
  XDG_RUNTIME_DIR                   where users' mounts keep sockets and logs; root's are in /run/spanfs
  TMPDIR                            where demo, bench and index keep things for a moment
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY proxies, as everywhere";

/// Start containers before their image is downloaded.
///
/// spanfs shows an image as a filesystem at once and fetches what is read, when it is read.
#[derive(Debug, Parser)]
#[command(name = "spanfs", version, after_help = AFTER_HELP, propagate_version = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// What to log to stderr: error, warn, info, debug, trace, or a filter such as
    /// `spanfs_fetch=debug`.
    #[arg(long, global = true, value_name = "FILTER", default_value = "warn")]
    pub(crate) log: String,
    /// Print results as JSON, and no progress.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print no progress.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show an image (or one layer of it) in a directory.
    Mount(Mount),
    /// Take a mount away.
    #[command(visible_alias = "unmount")]
    Umount(Umount),
    /// Run a program of an image, in a mount namespace of its own.
    Run(Run),
    /// Build the zTOCs of an image and its SOCI index.
    Index(Index),
    /// Say what an image, a SOCI index or a zTOC consists of.
    Inspect(Inspect),
    /// Write one file of an image to stdout.
    Cat(Cat),
    /// Say how the mounts of this machine are doing.
    Status(Status),
    /// Look for what keeps containers from starting lazily on this machine, and say what to do.
    Doctor(Doctor),
    /// Say for each layer of an image how it comes to this node's containers, and why.
    Why(Why),
    /// Take the record of what an image's start reads to another machine.
    #[command(subcommand)]
    Trace(Trace),
    /// Show what spanfs is good for, on this machine, in a minute.
    Demo(Demo),
    /// Measure how soon images start here, downloaded and unpacked first or mounted at once.
    Bench(Bench),
    /// Print shell completions.
    Completions(Completions),
    /// Print the manual page, or write all of them into a directory.
    Man(Man),
    /// Run the program of `run` inside its namespace.
    #[command(name = "__enter", hide = true)]
    Enter(Enter),
}

/// Which image, and how to get at it.
#[derive(Args, Clone, Debug)]
pub(crate) struct Image {
    /// `[HOST/]NAME[:TAG][@DIGEST]`, `oci:DIR[:TAG]` or `oci-archive:FILE[:TAG]`.
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Platform to choose from an index: `OS/ARCHITECTURE[/VARIANT]`; this machine's unless given.
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    #[command(flatten)]
    pub(crate) access: Access,
}

/// How to talk to registries.
#[derive(Args, Clone, Debug)]
pub(crate) struct Access {
    /// Speak HTTP without TLS, also to other hosts than localhost.
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// Directory of containerd's `HOST/hosts.toml` files: mirrors, certificates, headers.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) hosts_dir: Option<PathBuf>,
}

/// Where things are kept.
#[derive(Args, Clone, Debug)]
pub(crate) struct CacheDir {
    /// Where layers are kept [default: /var/cache/spanfs as root, else ~/.cache/spanfs].
    #[arg(long, value_name = "DIR", env = "SPANFS_CACHE_DIR", value_hint = ValueHint::DirPath)]
    pub(crate) cache_dir: Option<PathBuf>,
}

/// What is kept, and how much is fetched.
#[derive(Args, Clone, Debug)]
pub(crate) struct Keep {
    #[command(flatten)]
    pub(crate) cache: CacheDir,
    /// Bytes that layers may take there before unused ones go, such as 20G [default: 20G].
    #[arg(long, value_name = "BYTES")]
    pub(crate) cache_size: Option<Bytes>,
    /// Bytes of memory for what is being fetched and inflated [default: 256M].
    #[arg(long, value_name = "BYTES")]
    pub(crate) memory_limit: Option<Bytes>,
    /// Fetch only what is read; do not complete the image in the background.
    #[arg(long)]
    pub(crate) no_background: bool,
    /// Bytes per second that the background may fetch, such as 10M.
    #[arg(long, value_name = "RATE", conflicts_with = "no_background")]
    pub(crate) background_bandwidth: Option<Rate>,
}

/// How layers are shown.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Show {
    /// erofs needs root and Linux 6.12; inode is FUSE alone.
    #[arg(long, value_enum, default_value_t = FrontChoice::Auto)]
    pub(crate) front: FrontChoice,
    /// What carries FUSE requests: dev and uring need root, and only dev outlives its process.
    #[arg(long, value_enum, default_value_t = TransportChoice::Auto)]
    pub(crate) transport: TransportChoice,
    /// Switch FUSE over io_uring on, for the whole machine, where it is off (root; Linux 6.14).
    #[arg(long)]
    pub(crate) enable_uring: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FrontChoice {
    /// The best that works here.
    Auto,
    /// EROFS, over a one-file FUSE mount while the layer is incomplete.
    Erofs,
    /// FUSE inodes.
    Inode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TransportChoice {
    /// The best that works here.
    Auto,
    /// Our own loop on /dev/fuse.
    Dev,
    /// The same, with requests by io_uring.
    Uring,
    /// The fuse3 crate, as users have it.
    Fuse3,
}

#[derive(Args, Debug)]
pub(crate) struct Mount {
    #[command(flatten)]
    pub(crate) image: Image,
    /// Where to show it: an existing, empty directory.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) directory: PathBuf,
    /// Show this layer alone, whiteouts as overlayfs has them.
    #[arg(long, value_name = "DIGEST")]
    pub(crate) layer: Option<Digest>,
    /// Stay in the foreground until Ctrl-C or `spanfs umount`.
    #[arg(long)]
    pub(crate) foreground: bool,
    /// Take changes, which are gone with the mount (overlayfs; root alone).
    #[arg(long, conflicts_with = "layer")]
    pub(crate) rw: bool,
    #[command(flatten)]
    pub(crate) show: Show,
    #[command(flatten)]
    pub(crate) keep: Keep,
    /// The process behind a background mount: it reports to stdout when the mount is there.
    #[arg(long, hide = true)]
    pub(crate) background_process: bool,
    /// Its child, which serves.
    #[arg(long, hide = true)]
    pub(crate) serving_process: bool,
    /// Its next child, which goes on with the mount of one that was killed.
    #[arg(long, hide = true)]
    pub(crate) succeeding_process: bool,
}

impl Mount {
    /// Whether this process serves in the background.
    pub(crate) fn is_behind(&self) -> bool {
        self.serving_process || self.succeeding_process
    }
}

#[derive(Args, Debug)]
pub(crate) struct Umount {
    /// Where the image is shown.
    #[arg(value_name = "DIR", required_unless_present = "all", value_hint = ValueHint::DirPath)]
    pub(crate) directories: Vec<PathBuf>,
    /// All mounts of `spanfs mount` that are yours.
    #[arg(long, conflicts_with = "directories")]
    pub(crate) all: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) image: Image,
    /// Program and arguments; the image's own unless given.
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
    /// Environment variable, on top of the image's.
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Working directory instead of the image's.
    #[arg(long, short, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User instead of the image's: `NAME|UID[:NAME|GID]`.
    #[arg(long, short, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Show the image read-only.
    #[arg(long)]
    pub(crate) read_only: bool,
    #[command(flatten)]
    pub(crate) show: Show,
    #[command(flatten)]
    pub(crate) keep: Keep,
}

#[derive(Args, Debug)]
pub(crate) struct Index {
    /// `[HOST/]NAME[:TAG][@DIGEST]`, `oci:DIR[:TAG]` or `oci-archive:FILE[:TAG]`.
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Platforms to index, `OS/ARCHITECTURE[/VARIANT]`, several with commas or by repeating; this
    /// machine's unless given.
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    pub(crate) platform: Vec<String>,
    /// Index the images of all platforms.
    #[arg(long, conflicts_with = "platform")]
    pub(crate) all_platforms: bool,
    #[command(flatten)]
    pub(crate) access: Access,
    /// Where the result goes: `oci:DIR[:TAG]`, or a registry reference to push to. Without it: back
    /// to the image's own place (for v1), or nowhere but the report.
    #[arg(long, short, value_name = "TARGET")]
    pub(crate) output: Option<String>,
    /// v2: a converted image that names its index; v1: an index that refers to the image.
    #[arg(long, value_enum, default_value_t = IndexFormat::V2)]
    pub(crate) format: IndexFormat,
    /// Uncompressed bytes between restart points.
    #[arg(long, value_name = "BYTES", default_value = "4M")]
    pub(crate) span_size: Bytes,
    /// Layers below this size get no zTOC.
    #[arg(long, value_name = "BYTES", default_value = "10M")]
    pub(crate) min_layer_size: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IndexFormat {
    /// SOCI indexes v1, one a platform, found by the referrers API or its fall-back tag.
    V1,
    /// SOCI indexes v2, one a platform, inside a converted image.
    V2,
}

#[derive(Args, Debug)]
pub(crate) struct Inspect {
    #[command(flatten)]
    pub(crate) image: Image,
    /// Show the zTOC of this layer: its entries and spans.
    #[arg(long, value_name = "DIGEST")]
    pub(crate) layer: Option<Digest>,
    /// With --layer: list every span.
    #[arg(long, requires = "layer")]
    pub(crate) spans: bool,
    /// With --layer: list every entry of the tar.
    #[arg(long, requires = "layer")]
    pub(crate) files: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Cat {
    #[command(flatten)]
    pub(crate) image: Image,
    /// File in the image; symbolic links are followed inside it.
    #[arg(value_name = "PATH")]
    pub(crate) path: String,
    #[command(flatten)]
    pub(crate) keep: Keep,
}

#[derive(Args, Debug)]
pub(crate) struct Status {
    /// Only the mount in this directory.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) directory: Option<PathBuf>,
}

/// The first minute of a mount records what is read, in order, and later mounts of the image fetch that
/// first. The record is text: a JSON line that names the layers, then a line `[layer,start,length]` for
/// each run of a layer's tar, in the order of reading.
#[derive(Debug, Subcommand)]
pub(crate) enum Trace {
    /// Write the record of an image's start, once its first minute is over or its mount has ended.
    Export(TraceExport),
    /// Have a record replayed by all later mounts of an image on this machine.
    Import(TraceImport),
}

#[derive(Args, Debug)]
pub(crate) struct TraceExport {
    #[command(flatten)]
    pub(crate) image: Image,
    /// File to write; stdout unless given.
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) cache: CacheDir,
}

#[derive(Args, Debug)]
pub(crate) struct TraceImport {
    #[command(flatten)]
    pub(crate) image: Image,
    /// File that `spanfs trace export` has written; `-` for stdin.
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) cache: CacheDir,
}

#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// Registries to ask: `HOST[:PORT]`, as in front of an image's name.
    #[arg(value_name = "REGISTRY")]
    pub(crate) registries: Vec<String>,
    /// containerd's configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) containerd_config: PathBuf,
    /// Release that the configuration is for, such as 2.1; that of the containerd on PATH unless given.
    #[arg(long, value_name = "RELEASE")]
    pub(crate) containerd_release: Option<Release>,
    /// Name of the snapshotter in containerd's configuration.
    #[arg(long, value_name = "NAME", default_value = "soci")]
    pub(crate) snapshotter: String,
    /// Where the snapshotter listens.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    #[arg(default_value = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock")]
    pub(crate) socket: PathBuf,
    /// The snapshotter's state directory.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/soci-snapshotter-grpc")]
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) root: PathBuf,
    /// Look at containerd's configuration alone.
    #[arg(long, conflicts_with = "registries")]
    pub(crate) config_only: bool,
    /// First mend what containerd's configuration lacks; `FILE.spanfs` remembers how it was.
    #[arg(long)]
    pub(crate) fix: bool,
    /// Take the changes of --fix back, and do no more.
    #[arg(long, conflicts_with = "fix")]
    pub(crate) undo: bool,
    #[command(flatten)]
    pub(crate) access: Access,
}

#[derive(Args, Debug)]
pub(crate) struct Why {
    #[command(flatten)]
    pub(crate) image: Image,
    /// The snapshotter's state directory.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/soci-snapshotter-grpc")]
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) root: PathBuf,
    /// Where the snapshotter's debug pages are.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    #[arg(default_value = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.debug.sock")]
    pub(crate) debug_socket: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// Use this image, from where it is, instead of one made from this machine's programs.
    #[arg(long, value_name = "REF")]
    pub(crate) image: Option<String>,
    /// Program to start in it, and its arguments.
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
    /// Uncompressed size of the image that is made.
    #[arg(long, value_name = "BYTES", default_value = "300M", conflicts_with = "image")]
    pub(crate) size: Bytes,
    /// Link to pretend: unlimited, lan, cloud, wan or edge.
    #[arg(long, value_name = "PRESET", default_value = "cloud", conflicts_with = "image")]
    pub(crate) link: String,
    /// Divide the link's bandwidth by this: the image is small beside those of the cloud.
    #[arg(long, value_name = "N", default_value_t = 4, conflicts_with = "image",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) slower: u64,
    #[command(flatten)]
    pub(crate) access: Access,
}

#[derive(Args, Debug)]
pub(crate) struct Bench {
    /// `[HOST/]NAME[:TAG][@DIGEST]`, `oci:DIR[:TAG]` or `oci-archive:FILE[:TAG]`, each by itself.
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
    /// Program to start, and its arguments; the images' own unless given.
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
    /// Starts of each kind, of which the median is shown.
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) runs: u32,
    /// End the program at its first output, as servers never end by themselves.
    #[arg(long)]
    pub(crate) until_output: bool,
    /// Platform to choose from an index: `OS/ARCHITECTURE[/VARIANT]`; this machine's unless given.
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    #[command(flatten)]
    pub(crate) access: Access,
}

#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// Shell.
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub(crate) struct Man {
    /// Write one page per command into this directory.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) directory: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Enter {
    /// What to run, as JSON.
    pub(crate) program: String,
}
