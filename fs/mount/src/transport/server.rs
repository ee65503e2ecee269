//! One server for all mounts of a process, by whatever transport each of them takes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::live::Live;
use super::options::{FuseOptions, Privilege, ServerOptions, Transport};
use super::session::Session;
use super::{dev, fuse3, uring};
use crate::filesystem::Filesystem;
use crate::kernel_mount::KernelMountError;
use crate::record::SessionRecord;

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
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelMountError),
    /// The kernel did not start to talk.
    #[error("FUSE mount at {0} is not ready: no greeting from the kernel within {1:?}")]
    NotReady(PathBuf, Duration),
    /// Our own limit.
    #[error("cannot mount FUSE at {0}: {1} mounts are served already, the limit")]
    TooMany(PathBuf, usize),
    /// Our own transports get their descriptor from nobody else.
    #[error("cannot mount FUSE at {0}: the {1} transport needs CAP_SYS_ADMIN")]
    Unprivileged(PathBuf, Transport),
    /// The kernel has no FUSE over io_uring, or it is switched off.
    #[error(
        "cannot mount FUSE at {0}: the kernel does not offer io_uring (needs Linux 6.14, and Y in \
         /sys/module/fuse/parameters/enable_uring)"
    )]
    NoRings(PathBuf),
    /// What a predecessor served can't be served on.
    #[error("cannot go on with the FUSE mount at {mount_point}: {attempt}")]
    Resume {
        /// Where it was mounted.
        mount_point: PathBuf,
        /// What was attempted.
        attempt: &'static str,
        /// The answer.
        #[source]
        source: io::Error,
    },
}

/// Serves any number of mounts with a few threads of its own.
///
/// Its methods wait for these threads: never call them from one of them. Dropping it ends what it
/// serves: whoever still reads gets an error.
pub struct Server {
    /// Each starts with its first mount.
    dev: Mutex<Option<Arc<dev::Threads>>>,
    uring: Mutex<Option<Arc<uring::Rings>>>,
    fuse3: Mutex<Option<Arc<fuse3::Threads>>>,
    mounts: Arc<AtomicUsize>,
    options: ServerOptions,
}

impl Server {
    /// A server without threads yet.
    pub fn new(options: ServerOptions) -> Self {
        let (dev, uring, fuse3, mounts) = Default::default();
        Self { dev, uring, fuse3, mounts, options }
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
        let threads = |error| failed("start threads", error);
        let session = match (options.transport, options.privilege) {
            (transport @ (Transport::Dev | Transport::Uring), Privilege::User) => {
                return Err(ServeError::Unprivileged(path, transport));
            }
            (transport @ (Transport::Dev | Transport::Uring), Privilege::Root) => {
                let dev = started(&self.dev, || dev::Threads::start(&self.options));
                let dev = dev.map_err(threads)?;
                let rings = (transport == Transport::Uring).then(|| {
                    started(&self.uring, || uring::Rings::start(&self.options, dev.shared()))
                });
                let rings = rings.transpose().map_err(threads)?;
                dev.serve(filesystem, path, options, place, rings.as_deref())?
            }
            (Transport::Fuse3, _) => {
                let started = started(&self.fuse3, || fuse3::Threads::start(&self.options));
                started.map_err(threads)?.serve(filesystem, path, options, place)?
            }
        };
        if let Some(kib) = options.read_ahead_kib
            && let Err(error) = session.connection().set_read_ahead(kib)
        {
            let path = session.mount_point().display();
            tracing::warn!("read-ahead of {path} stays as it is: {error}");
        }
        Ok(session)
    }

    /// Go on with a session of a predecessor: answer on its connection, beginning with the requests
    /// that it took along.
    pub(crate) fn resume(
        &self,
        filesystem: Arc<dyn Filesystem>,
        record: &SessionRecord,
        live: Live,
    ) -> Result<Session, ServeError> {
        let failed = |attempt, source| ServeError::Resume {
            mount_point: record.mount_point.clone(),
            attempt,
            source,
        };
        let place = self.reserve(&record.mount_point)?;
        match record.transport {
            Transport::Dev => {
                let started = started(&self.dev, || dev::Threads::start(&self.options));
                let threads = started.map_err(|error| failed("start threads", error))?;
                threads.resume(filesystem, record, live, place)
            }
            transport @ (Transport::Uring | Transport::Fuse3) => {
                let reason = format!("the {transport} transport can't");
                Err(failed("serve it", io::Error::new(io::ErrorKind::Unsupported, reason)))
            }
        }
    }

    /// Stop answering, and let go of no connection.
    pub(crate) fn leave(&self) {
        if let Some(threads) = &*self.dev.lock() {
            threads.leave();
        }
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

fn started<T>(
    place: &Mutex<Option<Arc<T>>>,
    start: impl FnOnce() -> io::Result<T>,
) -> io::Result<Arc<T>> {
    let mut place = place.lock();
    if let Some(started) = &*place {
        return Ok(Arc::clone(started));
    }
    Ok(Arc::clone(place.insert(Arc::new(start()?))))
}

/// One of the mounts that a server takes on.
pub(super) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
