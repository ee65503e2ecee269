//! A command from its start to its end, however that comes: by itself, by the clock, or by a signal.
//!
//! Commands that are cut off are dropped where they wait. What must not stay behind is known here:
//! leases, which would hold what was written for a day, and threads that write into scratch
//! directories.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::grammar::Arguments;
use super::output::Output;
use super::session::Session;
use super::{SociError, command, error, requests};
use crate::containerd::{Client, Leases};

/// Threads that wait for containerd and registries; building has threads of its own.
const WORKERS: usize = 2;
/// Threads that build: one for each core is used, more are never started at once.
const BLOCKING_MAX: usize = 512;
/// If we are killed, what was written is collected after this time, as with the peer.
const LEASE_TIME: Duration = Duration::from_secs(24 * 3600);
/// Who was interrupted does not wait longer for containerd, or for a thread that notices.
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(5);

/// What of a running command has to be put in order at its end. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Life {
    leases: Arc<Mutex<Vec<(Leases, String)>>>,
    /// Held while a lease is being made: what is not there yet can't be ended.
    making: Arc<tokio::sync::Mutex<()>>,
    is_over: Arc<AtomicBool>,
}

impl Life {
    /// The client under a lease of its own, which ends with the command.
    pub(super) async fn leased(&self, client: &Client) -> Result<Client, SociError> {
        let random = std::fs::read("/proc/sys/kernel/random/uuid").unwrap_or_default();
        let id = format!("soci-{}", String::from_utf8_lossy(&random).trim());
        let leases = client.leases();
        let guard = self.making.clone().lock_owned().await;
        self.leases.lock().push((leases.clone(), id.clone()));
        // Whoever waits here may be cut off; the call itself must come to its end.
        let make = tokio::spawn(async move {
            let _guard = guard;
            leases.create(&id, LEASE_TIME).await
        });
        Ok(joined(make).await??.client()?)
    }

    /// An error in a command that was cut off: threads that copy ask now and then.
    pub(super) fn check(&self) -> io::Result<()> {
        match self.is_over.load(Ordering::Relaxed) {
            true => Err(io::Error::other(error::DEADLINE)),
            false => Ok(()),
        }
    }

    async fn end_leases(&self) -> Result<(), SociError> {
        let _made = self.making.lock().await;
        let leases = std::mem::take(&mut *self.leases.lock());
        for (leases, id) in leases {
            leases.delete(&id, false).await?;
        }
        Ok(())
    }
}

/// Run a command to its end, to the end of its time, or until a signal.
pub(super) fn run(arguments: Arguments) -> Result<(), SociError> {
    if ["debug", "http-trace", "http-dump"].iter().any(|flag| arguments.is_set(flag)) {
        requests::start_log();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_MAX)
        .enable_all()
        .build()
        .map_err(|error| SociError::said(format!("starting threads: {error}")))?;
    let (life, time_max) = (Life::default(), arguments.duration("timeout"));
    let mut work = Box::pin(dispatch(arguments, life.clone()));
    let done = runtime.block_on(until_cut_off(work.as_mut(), time_max));
    // It may own a runtime, which must not be dropped inside of another.
    drop(work);
    end(runtime, &life, done)
}

/// Run what blocks on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SociError> {
    joined(tokio::task::spawn_blocking(work)).await
}

/// What a task came to. Its panic is ours; nothing cancels it but the end of all.
async fn joined<T>(task: JoinHandle<T>) -> Result<T, SociError> {
    match task.await {
        Ok(done) => Ok(done),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(SociError::said(error::DEADLINE)),
        },
    }
}

async fn until_cut_off(
    work: impl Future<Output = Result<(), SociError>>,
    time_max: Option<Duration>,
) -> Result<(), SociError> {
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let time_is_up = async {
        match time_max {
            Some(time_max) => tokio::time::sleep(time_max).await,
            None => std::future::pending().await,
        }
    };
    let cut_off = |kind: SignalKind| Err(SociError::Signal(kind.as_raw_value()));
    tokio::select! {
        done = work => done,
        () = time_is_up => Err(SociError::said(error::DEADLINE)),
        _ = interrupt.recv() => cut_off(SignalKind::interrupt()),
        _ = terminate.recv() => cut_off(SignalKind::terminate()),
    }
}

fn listen(kind: SignalKind) -> Result<tokio::signal::unix::Signal, SociError> {
    signal(kind).map_err(|error| SociError::said(format!("listening to signals: {error}")))
}

/// Put in order what the command leaves. Its own error is the one that counts.
fn end(runtime: Runtime, life: &Life, done: Result<(), SociError>) -> Result<(), SociError> {
    life.is_over.store(true, Ordering::Relaxed);
    let farewell = async { tokio::time::timeout(FAREWELL_TIME_MAX, life.end_leases()).await };
    let lost = match runtime.block_on(farewell) {
        Ok(ended) => ended,
        Err(_) => Err(SociError::said(error::DEADLINE)),
    };
    match done {
        // Nothing runs any more.
        Ok(()) => runtime.shutdown_background(),
        // A layer that is still being read is nobody's; a copy ends with its scratch directory.
        Err(_) => runtime.shutdown_timeout(FAREWELL_TIME_MAX),
    }
    if let (Err(_), Err(lost)) = (&done, &lost) {
        tracing::debug!(%lost, "the lease ends by itself");
    }
    done.and(lost)
}

async fn dispatch(arguments: Arguments, life: Life) -> Result<(), SociError> {
    let output = Output::of_process();
    let path = arguments.path.clone();
    if path == ["convert"] && arguments.is_set("standalone") {
        return command::standalone::convert(&arguments, &output, &life).await;
    }
    let session = Session::new(arguments, output, life)?;
    match path.as_slice() {
        ["create"] => command::create::create(&session).await,
        ["convert"] => command::convert::convert(&session).await,
        ["push"] => command::push::push(&session).await,
        ["index", "list"] => command::index::list(&session).await,
        ["index", "info"] => command::index::info(&session).await,
        ["index", "remove"] => command::index::remove(&session).await,
        ["ztoc", "list"] => command::ztoc::list(&session).await,
        ["ztoc", "info"] => command::ztoc::info(&session).await,
        ["ztoc", "get-file"] => command::get_file::get_file(&session).await,
        ["prefetch", "list"] => command::prefetch::list(&session).await,
        ["prefetch", "info"] => command::prefetch::info(&session).await,
        ["image", "rpull"] => command::rpull::rpull(&session).await,
        ["run"] => command::run::run(&session),
        ["rebuild-db"] => command::rebuild::rebuild_db(&session).await,
        other => unreachable!("{other:?} has no function"),
    }
}
