//! FUSE through the `fuse3` crate: as root by mount(2), as a user by `fusermount3`.
//!
//! What its shape costs (measured): as root one thread per mount sits in read(2), and each request
//! takes a hop from it to a worker. It splices nothing and has no cloned descriptors. Our own
//! transports are to replace it where we are root; the seam is [`Filesystem`].

mod adaptor;
mod buffers;

use std::io;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::runtime::Runtime;

use self::adaptor::Adaptor;
use self::buffers::Buffers;
use super::connection::Connection;
use crate::filesystem::Filesystem;
use crate::mountinfo;

/// How all mounts of a process are served.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Threads that answer.
    pub threads: usize,
    /// Answers in flight, each of at most 1 MiB.
    pub buffers: usize,
    /// Mounts at the same time; as root each costs a thread.
    pub mounts_max: usize,
    /// Longest that a read waits for its bytes.
    pub read_deadline: Duration,
    /// Longest that the kernel may take to greet a new mount.
    pub mount_deadline: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            // Misses park, so two threads serve a whole image (measured on 2 cores).
            threads: 2,
            buffers: 16,
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
    /// Other users may enter; needs root or `user_allow_other` in `/etc/fuse.conf`.
    pub allow_other: bool,
    /// The source that `mount` lists.
    pub source: String,
    /// The part of the type behind `fuse.`; no comma.
    pub subtype: String,
    /// How far the kernel reads ahead in KiB; `None` keeps its 128, which measured best.
    pub read_ahead_kib: Option<u32>,
}

/// Why a FUSE mount failed.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The operating system refused.
    #[error("cannot mount FUSE at {mount_point}: {attempt}")]
    Mount {
        /// Where.
        mount_point: PathBuf,
        /// What was attempted.
        attempt: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// The kernel did not start to talk.
    #[error("FUSE mount at {0} is not ready: no greeting from the kernel within {1:?}")]
    NotReady(PathBuf, Duration),
    /// Our own limit.
    #[error("cannot mount FUSE at {0}: {1} mounts are served already, the limit")]
    TooMany(PathBuf, usize),
}

/// Serves any number of mounts with a few threads of its own.
///
/// Its methods wait for these threads: never call them from one of them.
pub struct Server {
    /// Taken on drop.
    runtime: Option<Runtime>,
    buffers: Arc<Buffers>,
    mounts: Arc<AtomicUsize>,
    ends: Mutex<Vec<Weak<End>>>,
    options: ServerOptions,
}

impl Server {
    /// Start the threads.
    pub fn new(options: ServerOptions) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(options.threads.max(1))
            .max_blocking_threads(options.mounts_max + 8)
            .thread_name("spanfs-fuse")
            .enable_all()
            .build()?;
        let buffers = Buffers::new(options.buffers);
        let (mounts, ends) = Default::default();
        Ok(Self { runtime: Some(runtime), buffers, mounts, ends, options })
    }

    /// Mount `filesystem` at `mount_point`, an empty directory, and answer until it is unmounted.
    pub fn serve(
        &self,
        filesystem: Arc<dyn Filesystem>,
        mount_point: &Path,
        options: &FuseOptions,
    ) -> Result<Session, ServeError> {
        let failed = |attempt, source| ServeError::Mount {
            mount_point: mount_point.to_owned(),
            attempt,
            source,
        };
        let path = mount_point.canonicalize().map_err(|error| failed("resolve the path", error))?;
        let place = self.reserve(&path)?;
        let (ready, is_ready) = mpsc::sync_channel(1);
        let (mounted, is_mounted) = mpsc::sync_channel(1);
        let adaptor = Adaptor {
            filesystem,
            buffers: Arc::clone(&self.buffers),
            read_deadline: self.options.read_deadline,
            ready: Mutex::new(Some(ready)),
        };
        let end = Arc::new(End::default());
        let task = run(adaptor, path.clone(), options.clone(), mounted, Arc::clone(&end));
        self.runtime().spawn(async move {
            let _place = place;
            task.await;
        });
        let until = Instant::now() + self.options.mount_deadline;
        let late = || ServeError::NotReady(path.clone(), self.options.mount_deadline);
        match is_mounted.recv_timeout(self.options.mount_deadline) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed("mount", error)),
            Err(_) => return Err(late()),
        }
        let entry = mountinfo::mounted_at(&path)
            .and_then(|entry| entry.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map_err(|error| failed("find it in /proc/self/mountinfo", error))?;
        let connection = Connection(entry.device.1);
        *end.connection.lock() = Some(connection);
        self.remember(&end);
        let session =
            Session { mount_point: path.clone(), privilege: options.privilege, connection, end };
        // The sender is dropped at the greeting, or with its session: `is_over` tells which.
        let left = until.saturating_duration_since(Instant::now());
        if is_ready.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) || session.is_over()
        {
            session.detach_or_log();
            return Err(late());
        }
        if let Some(kib) = options.read_ahead_kib
            && let Err(error) = connection.set_read_ahead(kib)
        {
            tracing::warn!("read-ahead of {} stays as it is: {error}", path.display());
        }
        Ok(session)
    }

    fn remember(&self, end: &Arc<End>) {
        let mut ends = self.ends.lock();
        ends.retain(|end| end.strong_count() > 0);
        ends.push(Arc::downgrade(end));
    }

    #[expect(clippy::unwrap_used, reason = "drop alone takes the runtime")]
    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap()
    }

    fn reserve(&self, mount_point: &Path) -> Result<Place, ServeError> {
        let limit = self.options.mounts_max;
        let place = Place(Arc::clone(&self.mounts));
        if self.mounts.fetch_add(1, Ordering::Relaxed) >= limit {
            return Err(ServeError::TooMany(mount_point.to_owned(), limit));
        }
        Ok(place)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A thread may sit in read(2) on the device: without an abort it would take one more
        // request from the kernel, and nobody would answer.
        for end in self.ends.get_mut().iter().filter_map(Weak::upgrade) {
            end.abort();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One of the mounts that a server takes on.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a session ended, once it has.
#[derive(Default)]
struct End {
    over: Mutex<bool>,
    signal: Condvar,
    connection: Mutex<Option<Connection>>,
}

impl End {
    fn abort(&self) {
        if *self.over.lock() {
            return;
        }
        if let Some(connection) = *self.connection.lock()
            && let Err(error) = connection.abort()
        {
            tracing::error!("FUSE connection {} can't be aborted: {error}", connection.0);
        }
    }
}

async fn run(
    adaptor: Adaptor,
    mount_point: PathBuf,
    options: FuseOptions,
    mounted: mpsc::SyncSender<io::Result<()>>,
    end: Arc<End>,
) {
    let mut raw_options = ::fuse3::MountOptions::default();
    raw_options
        .fs_name(options.source)
        .read_only(true)
        .nonempty(true)
        .allow_other(options.allow_other)
        .default_permissions(true)
        .no_open_support(true)
        .no_open_dir_support(true)
        .custom_options(format!("subtype={},max_read={}", options.subtype, buffers::READ_LEN_MAX));
    let session = ::fuse3::raw::Session::new(raw_options);
    let handle = match options.privilege {
        Privilege::Root => session.mount(adaptor, &mount_point).await,
        Privilege::User => session.mount_with_unprivileged(adaptor, &mount_point).await,
    };
    match handle {
        Err(error) => {
            let _gone = mounted.send(Err(error)); // The mounter's deadline may have passed.
        }
        Ok(handle) => {
            if mounted.send(Ok(())).is_err() {
                tracing::warn!("{} was mounted too late", mount_point.display());
                if let Err(error) = crate::unmount::detach(&mount_point, options.privilege) {
                    tracing::error!("{} stays mounted: {error}", mount_point.display());
                }
            }
            // Its drop would unmount by path, whatever is mounted there by then.
            let mut handle = ManuallyDrop::new(handle);
            if let Err(error) = (&mut *handle).await {
                tracing::error!("FUSE session of {} broke: {error}", mount_point.display());
                end.abort(); // Its reader may still sit on the device, see `Server::drop`.
            }
        }
    }
    *end.over.lock() = true;
    end.signal.notify_all();
}

/// A mount being served. It goes on when this value is dropped; it ends with its last user.
pub struct Session {
    mount_point: PathBuf,
    privilege: Privilege,
    connection: Connection,
    end: Arc<End>,
}

impl Session {
    /// Where it is mounted, canonical.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Its FUSE connection.
    pub fn connection(&self) -> Connection {
        self.connection
    }

    /// Take it out of the directory tree. Files open in it, and mounts made of them, live on.
    pub fn detach(&self) -> io::Result<()> {
        crate::unmount::detach(&self.mount_point, self.privilege)
    }

    fn detach_or_log(&self) {
        if let Err(error) = self.detach() {
            tracing::error!("{} stays mounted: {error}", self.mount_point.display());
        }
    }

    /// True once the kernel has let it go.
    pub fn is_over(&self) -> bool {
        *self.end.over.lock()
    }

    /// Wait until the last user is gone; false if that takes longer.
    pub fn wait(&self, at_most: Duration) -> bool {
        let mut over = self.end.over.lock();
        let until = Instant::now() + at_most;
        while !*over {
            if self.end.signal.wait_until(&mut over, until).timed_out() {
                return *over;
            }
        }
        true
    }
}
