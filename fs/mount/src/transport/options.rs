//! What all transports are told.

use std::fmt;
use std::time::Duration;

/// Largest read that the kernel sends: 256 pages of 4 KiB, its default `max_pages_limit`.
pub(crate) const READ_LEN_MAX: usize = 1 << 20;

/// `FUSE_*` flags of INIT that we take; a kernel without any of them is slower, nothing else.
pub const CAPABILITIES: u64 = super::protocol::init::WANTED;

/// How requests of the kernel come to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A loop of our own on `/dev/fuse`; needs `CAP_SYS_ADMIN`.
    Dev,
    /// The same with FUSE over io_uring: answered on the CPU that asked.
    Uring,
    /// The `fuse3` crate.
    Fuse3,
}

impl Transport {
    /// By the name that it is shown with.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Dev, Self::Uring, Self::Fuse3]
            .into_iter()
            .find(|transport| transport.to_string() == name)
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dev => "dev",
            Self::Uring => "uring",
            Self::Fuse3 => "fuse3",
        })
    }
}

/// How all mounts of a process are served.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Threads that answer, for each transport in use.
    pub threads: usize,
    /// Answers in flight, each of at most 1 MiB (`fuse3`); buffers kept for late ones (`dev`).
    pub buffers: usize,
    /// Reads that wait for their bytes at the same time; more fail (`dev`).
    pub misses_max: usize,
    /// Mounts at the same time; as root each costs a thread with `fuse3`.
    pub mounts_max: usize,
    /// Longest that a read waits for its bytes.
    pub read_deadline: Duration,
    /// Longest that the kernel may take to greet a new mount.
    pub mount_deadline: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            // Misses hold none, so a thread a core is enough; two at least, as one may wait for a
            // disk. Those that are not needed sleep.
            threads: std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 16),
            buffers: 16,
            // A waiting read costs some 200 bytes, and the kernel sends 64 of read-ahead a mount.
            misses_max: 1 << 16,
            mounts_max: 1024,
            // The fetcher gives up long before; this one guards against our own mistakes.
            read_deadline: Duration::from_secs(600),
            mount_deadline: Duration::from_secs(10),
        }
    }
}

/// Who mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Root, by mount(2).
    Root,
    /// Anybody, by the setuid program `fusermount3`.
    User,
}

/// How one filesystem is mounted.
#[derive(Clone, Debug)]
pub struct FuseOptions {
    /// Who mounts.
    pub privilege: Privilege,
    /// How it is served.
    pub transport: Transport,
    /// Other users may enter; needs root or `user_allow_other` in `/etc/fuse.conf`.
    pub allow_other: bool,
    /// The source that `mount` lists.
    pub source: String,
    /// The part of the type behind `fuse.`; no comma.
    pub subtype: String,
    /// Flags of INIT that are taken when the kernel offers them: [`CAPABILITIES`], or fewer (`dev`
    /// and `uring`).
    pub capabilities: u64,
    /// How far the kernel reads ahead in KiB; `None` keeps its 128, which measured best.
    pub read_ahead_kib: Option<u32>,
}
