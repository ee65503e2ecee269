//! FUSE by a loop of our own on `/dev/fuse`, where we are privileged.
//!
//! A hit is answered on the thread that took the request, by one write(2); a miss on the thread that
//! brought the bytes. All mounts of a process share a few threads ([`serve`]).

mod buffer;
mod lookout;
mod misses;
mod mounted;
mod serve;
mod splice;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::mount::MountAttrFlags;

pub(super) use self::misses::{Miss, Via};
pub(super) use self::mounted::Mounted;
use self::mounted::Pace;
pub(super) use self::serve::{Shared, Ticket};
use super::connection::Connection;
use super::live::Live;
use super::options::{FuseOptions, Privilege, READ_LEN_MAX, ServerOptions};
use super::protocol::abi::{self, init_flag};
use super::protocol::init::TooOld;
use super::protocol::reply;
use super::server::{Place, ServeError};
use super::session::{End, Session};
use super::uring::Rings;
use crate::filesystem::Filesystem;
use crate::kernel_mount::{Context, KernelMountError};
use crate::record::SessionRecord;

/// The threads that serve; dropping them ends what they serve.
pub(super) struct Threads {
    shared: Arc<Shared>,
    running: Mutex<Vec<JoinHandle<()>>>,
    options: ServerOptions,
}

/// A thread that was told to stop answers what it has taken, and no more.
const STOP_TIME_MAX: Duration = Duration::from_secs(2);
const STOP_POLL: Duration = Duration::from_millis(1);

impl Threads {
    pub(super) fn start(options: &ServerOptions) -> io::Result<Self> {
        let (shared, running) = (Shared::new(options)?, Mutex::default());
        let threads = Self { shared, running, options: options.clone() };
        for number in 0..options.threads.max(1) {
            let shared = Arc::clone(&threads.shared);
            let name = format!("spanfs-fuse-{number}");
            let thread = std::thread::Builder::new().name(name).spawn(move || shared.run())?;
            threads.running.lock().push(thread);
        }
        Ok(threads)
    }

    /// What the threads share.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Mount at `mount_point`, a canonical path, with requests by `rings` if they are given. Nobody
    /// sees the mount before it is served.
    pub(super) fn serve(
        &self,
        filesystem: Arc<dyn Filesystem>,
        mount_point: PathBuf,
        options: &FuseOptions,
        place: Place,
        rings: Option<&Rings>,
    ) -> Result<Session, ServeError> {
        let failed = |attempt, source| ServeError::Mount {
            mount_point: mount_point.clone(),
            attempt,
            source,
        };
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let device = rustix::fs::open("/dev/fuse", flags, Mode::empty())
            .map_err(|error| failed("open /dev/fuse", error.into()))?;
        let context = configure(&device, &mount_point, options)?;
        context.create()?;
        let (sender, greeting) = mpsc::sync_channel(1);
        let end = Arc::new(End::default());
        let by_rings = rings.map_or(0, |_| init_flag::OVER_IO_URING | init_flag::INIT_EXT);
        let mounted = Arc::new(Mounted {
            device: Arc::new(device),
            filesystem,
            wanted: options.capabilities | by_rings,
            mount_point: mount_point.clone(),
            end: Arc::clone(&end),
            pace: Pace::default(),
            greeting: Mutex::new(Some(sender)),
            _place: Some(place),
        });
        let number = self.shared.add(Arc::clone(&mounted));
        let number = number.map_err(|error| failed("wait for requests", error.into()))?;
        match self.show(&context, &greeting, &mounted, rings) {
            Ok((connection, flags)) => {
                let (privilege, transport) = (options.privilege, options.transport);
                // What waits in a ring is not sent again.
                let can_go_on = flags & init_flag::HAS_RESEND != 0 && rings.is_none();
                let live = can_go_on.then(|| Live::of_device(&mounted.device));
                Ok(Session { mount_point, privilege, transport, connection, live, end })
            }
            Err(error) => {
                self.shared.remove(number);
                Err(error)
            }
        }
    }

    /// Once the kernel has been greeted, put the mount where it belongs.
    fn show(
        &self,
        context: &Context,
        greeting: &mpsc::Receiver<Result<u64, TooOld>>,
        mounted: &Arc<Mounted>,
        rings: Option<&Rings>,
    ) -> Result<(Connection, u64), ServeError> {
        let path = || mounted.mount_point.clone();
        let failed = |attempt, source| ServeError::Mount { mount_point: path(), attempt, source };
        let patience = self.options.mount_deadline;
        let flags = match greeting.recv_timeout(patience) {
            Ok(Ok(flags)) => flags,
            Ok(Err(too_old)) => {
                return Err(failed("agree on a protocol", io::Error::other(too_old)));
            }
            Err(_) => return Err(ServeError::NotReady(path(), patience)),
        };
        if let Some(rings) = rings {
            if flags & init_flag::OVER_IO_URING == 0 {
                return Err(ServeError::NoRings(path()));
            }
            rings.attach(mounted, patience).map_err(|error| failed("attach its rings", error))?;
        }
        let mount = context.detached(MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        let connection =
            connection_of(&mount).map_err(|error| failed("find its connection", error.into()))?;
        context.place(&mount)?;
        Ok((connection, flags))
    }

    /// Answer on the connection of a predecessor, who has greeted the kernel. What it had taken and not
    /// answered comes again.
    pub(super) fn resume(
        &self,
        filesystem: Arc<dyn Filesystem>,
        record: &SessionRecord,
        live: Live,
        place: Place,
    ) -> Result<Session, ServeError> {
        let SessionRecord { transport, connection, mount_point } = record.clone();
        let failed = |attempt, error: rustix::io::Errno| ServeError::Resume {
            mount_point: record.mount_point.clone(),
            attempt,
            source: error.into(),
        };
        match rustix::io::write(&live.device, &reply::notification(abi::NOTIFY_RESEND)) {
            // The second: its last user has gone meanwhile, which the first read of it tells.
            Ok(_) | Err(rustix::io::Errno::NODEV | rustix::io::Errno::NOTCONN) => {}
            Err(error) => return Err(failed("ask for requests under way", error)),
        }
        let end = Arc::new(End::default());
        let mounted = Mounted {
            device: live.device,
            filesystem,
            wanted: 0, // Nobody greets it again.
            mount_point: mount_point.clone(),
            end: Arc::clone(&end),
            pace: Pace::default(),
            greeting: Mutex::default(),
            _place: Some(place),
        };
        let added = self.shared.add(Arc::new(mounted));
        added.map_err(|error| failed("wait for requests", error))?;
        let (privilege, live) = (Privilege::Root, None); // Kept already.
        Ok(Session { mount_point, privilege, transport, connection, live, end })
    }

    /// Stop answering: what was taken is answered, as far as its bytes are there; the rest comes again
    /// to a successor.
    pub(super) fn leave(&self) {
        self.shared.stop_threads();
        let until = Instant::now() + STOP_TIME_MAX;
        for thread in self.running.lock().drain(..) {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(STOP_POLL);
            }
            if !thread.is_finished() {
                tracing::warn!("a FUSE thread is still busy; its requests come again");
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

fn configure(
    device: &OwnedFd,
    mount_point: &Path,
    options: &FuseOptions,
) -> Result<Context, KernelMountError> {
    let context = Context::open("fuse", mount_point)?;
    context.set("source", options.source.as_ref())?;
    context.set("subtype", options.subtype.as_ref())?;
    context.set_flag("ro")?;
    context.set_flag("default_permissions")?;
    if options.allow_other {
        context.set_flag("allow_other")?;
    }
    let user = rustix::process::getuid().as_raw();
    let group = rustix::process::getgid().as_raw();
    for (key, value) in [
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", "40000".to_owned()), // `S_IFDIR`, in octal.
        ("user_id", user.to_string()),
        ("group_id", group.to_string()),
        ("max_read", READ_LEN_MAX.to_string()),
    ] {
        context.set(key, value.as_ref())?;
    }
    Ok(context)
}

/// The number of a mount's anonymous device, from what the kernel knows by itself.
fn connection_of(mount: &OwnedFd) -> rustix::io::Result<Connection> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let statx = rustix::fs::statx(mount, "", flags, StatxFlags::TYPE)?;
    Ok(Connection(statx.stx_dev_minor))
}
