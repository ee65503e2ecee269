//! FUSE through the `fuse3` crate: as root by mount(2), as a user by `fusermount3`.
//!
//! What its shape costs (measured): as root one thread per mount sits in read(2), and each request
//! takes a hop from it to a worker. It splices nothing and has no cloned descriptors. The `dev`
//! transport replaces it where we are root.

mod adaptor;
mod buffers;

use std::io;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::sync::{Arc, Weak, mpsc};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::runtime::Runtime;

use self::adaptor::Adaptor;
use self::buffers::Buffers;
use super::connection::Connection;
pub use super::options::Privilege; // Its first place, where callers still look for it.
use super::options::{FuseOptions, READ_LEN_MAX, ServerOptions, Transport};
use super::server::{Place, ServeError};
use super::session::{End, Session};
use crate::filesystem::Filesystem;
use crate::mountinfo;

/// The threads that serve; dropping them ends what they serve.
pub(super) struct Threads {
    /// Taken on drop.
    runtime: Option<Runtime>,
    buffers: Arc<Buffers>,
    served: Mutex<Vec<Weak<Served>>>,
    options: ServerOptions,
}

impl Threads {
    pub(super) fn start(options: &ServerOptions) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(options.threads.max(1))
            .max_blocking_threads(options.mounts_max + 8)
            .thread_name("spanfs-fuse3")
            .enable_all()
            .build()?;
        let (buffers, options) = (Buffers::new(options.buffers), options.clone());
        Ok(Self { runtime: Some(runtime), buffers, served: Mutex::default(), options })
    }

    /// Mount at `path`, which is canonical.
    pub(super) fn serve(
        &self,
        filesystem: Arc<dyn Filesystem>,
        path: PathBuf,
        options: &FuseOptions,
        place: Place,
    ) -> Result<Session, ServeError> {
        let failed =
            |attempt, source| ServeError::Mount { mount_point: path.clone(), attempt, source };
        let (ready, is_ready) = mpsc::sync_channel(1);
        let (mounted, is_mounted) = mpsc::sync_channel(1);
        let adaptor = Adaptor {
            filesystem,
            buffers: Arc::clone(&self.buffers),
            read_deadline: self.options.read_deadline,
            ready: Mutex::new(Some(ready)),
        };
        let served = Arc::new(Served::default());
        let task = run(adaptor, path.clone(), options.clone(), mounted, Arc::clone(&served));
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
        *served.connection.lock() = Some(connection);
        self.remember(&served);
        let session = Session {
            mount_point: path.clone(),
            privilege: options.privilege,
            transport: Transport::Fuse3,
            connection,
            live: None, // The crate can't go on with a connection that it has not made.
            end: Arc::clone(&served.end),
        };
        // The sender is dropped at the greeting, or with its session: `is_over` tells which.
        let left = until.saturating_duration_since(Instant::now());
        if is_ready.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) || session.is_over()
        {
            session.detach_or_log();
            return Err(late());
        }
        Ok(session)
    }

    fn remember(&self, new: &Arc<Served>) {
        let mut served = self.served.lock();
        served.retain(|served| served.strong_count() > 0);
        served.push(Arc::downgrade(new));
    }

    #[expect(clippy::unwrap_used, reason = "drop alone takes the runtime")]
    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // A thread may sit in read(2) on the device: without an abort it would take one more
        // request from the kernel, and nobody would answer.
        for served in self.served.get_mut().iter().filter_map(Weak::upgrade) {
            served.abort();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One mount, as its task and its threads see it.
#[derive(Default)]
struct Served {
    end: Arc<End>,
    connection: Mutex<Option<Connection>>,
}

impl Served {
    fn abort(&self) {
        if self.end.is_come() {
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
    served: Arc<Served>,
) {
    let mut raw_options = ::fuse3::MountOptions::default();
    raw_options
        .fs_name(options.source)
        .read_only(true)
        .nonempty(true)
        .allow_other(options.allow_other)
        // A user's mount is open to nobody else, and all of the image is his: its root's files too.
        .default_permissions(options.privilege == Privilege::Root)
        .no_open_support(true)
        .no_open_dir_support(true)
        .custom_options(format!("subtype={},max_read={}", options.subtype, READ_LEN_MAX));
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
                served.abort(); // Its reader may still sit on the device, see `Threads::drop`.
            }
        }
    }
    served.end.come();
}
