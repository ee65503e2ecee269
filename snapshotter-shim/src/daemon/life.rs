//! From the flags to a served socket and back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Resource;
use spanfs_mount::hold::{self, FdStore, Hold, Holder, Holding};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;

use super::debug;
use super::flags::Flags;
use super::http::{self, PROMETHEUS, Page, Pages};
use super::notify::notify;
use super::reload::Current;
use super::socket::Address;
use crate::config::{Config, CredentialProviders, Listen, Settings};
use crate::credentials::{self, Kubernetes, Providers};
use crate::cri::{ImageService, Keychain};
use crate::grpc::{self, SnapshotsService};
use crate::layers::access::Environment;
use crate::layers::{AtEnd, Layers};
use crate::overlay_support;
use crate::snapshotter::Snapshotter;

/// Calls at once on one connection; containerd's garbage collector and pulls share one.
const CALLS_MAX: u32 = 1024;
/// Threads for calls that wait for the disk.
const BLOCKING_THREADS_MAX: usize = 128;
/// How long running calls may go on after we were told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Serve until a signal says to stop.
pub fn run(flags: &Flags, config: &Config) -> anyhow::Result<()> {
    let settings = &config.settings;
    let keychain = settings.cri_image_service.as_ref().map(|_| {
        let path = flags.root.join("spanfs/logins.json");
        Arc::new(Keychain::open(path))
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("starting threads")?;
    let mut environment = Environment::of(|name| std::env::var(name).ok());
    environment.lookups = {
        let _entered = runtime.enter();
        let kubernetes = settings.kubeconfig.clone().map(Kubernetes::start);
        credentials::sources(kubernetes, keychain.as_ref(), providers(settings)?)
    };
    let snapshotter = Arc::new(open(flags, settings, environment)?);
    let outcome = runtime.block_on(serve(flags, config, Arc::clone(&snapshotter), keychain));
    runtime.shutdown_timeout(STOP_TIMEOUT);
    // As the peer: asked by hand it takes its mounts along, told by a supervisor it leaves them.
    let mounts = match outcome {
        Ok(Told::Interrupt) => AtEnd::Go,
        _ => AtEnd::Stay,
    };
    snapshotter.end(mounts);
    outcome.map(drop)
}

/// What only a look at the machine tells of settings.
pub fn check(settings: &Settings) -> anyhow::Result<()> {
    providers(settings).map(drop)
}

fn providers(settings: &Settings) -> anyhow::Result<Option<Providers>> {
    let Some(CredentialProviders { config, programs }) = &settings.credential_providers else {
        return Ok(None);
    };
    Providers::read(config, programs).map(Some).context("spanfs.credential_providers")
}

/// What ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Interrupt,
    Terminate,
}

fn open(
    flags: &Flags,
    settings: &Settings,
    mut environment: Environment,
) -> anyhow::Result<Snapshotter> {
    let work = flags.root.join("snapshotter");
    std::fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    let options = overlay_support::options(&work, &settings.overlay_options);
    environment.userxattr = options.iter().any(|option| option == "userxattr");
    raise_file_limit();
    let holding = holding(flags);
    let start = |snapshots: &Path| {
        Layers::start(&flags.root, snapshots, settings, &environment, holding.clone())
    };
    std::thread::scope(|scope| {
        // The trial's unmount takes a third of the start, and readers of old mounts wait for that.
        let trial = settings.check_overlay.then(|| scope.spawn(|| overlay_support::check(&work)));
        let snapshotter = Snapshotter::open_with(&flags.root, options, start)
            .with_context(|| format!("opening the snapshots of {}", flags.root.display()))?;
        let trial = trial.map(|it| it.join().unwrap_or_else(|it| std::panic::resume_unwind(it)));
        match trial {
            Some(Err(error)) => {
                snapshotter.end(AtEnd::Stay); // What runs already goes on.
                return Err(error.into());
            }
            Some(Ok(())) => tracing::debug!("snapshotter is supported"),
            None => {}
        }
        Ok(snapshotter)
    })
}

/// Who keeps mounts alive while we are not: systemd, where its unit allows it, else a process of ours.
/// Without it all works, but for readers of incomplete layers while no daemon runs.
fn holding(flags: &Flags) -> Option<Holding> {
    let variable = |name: &str| std::env::var(name).ok();
    let hold: std::io::Result<Arc<dyn Hold>> =
        match (std::env::var_os("NOTIFY_SOCKET"), variable("FDSTORE")) {
            // systemd from 254 tells how many descriptors its unit may store.
            (Some(socket), Some(count)) if count != "0" => {
                let inherited = hold::inherited(variable);
                FdStore::new(&socket, inherited).map(|store| Arc::new(store) as _)
            }
            _ => reach_holder(flags).map(|holder| Arc::new(holder) as _),
        };
    match hold {
        Ok(hold) => {
            tracing::info!(by = hold.describe(), "mounts survive this process");
            let prefix = hold::Name::new(HOLD_PREFIX)?;
            Some(Holding { hold, prefix })
        }
        Err(error) => {
            tracing::warn!(%error, "mounts of incomplete layers end with this process");
            None
        }
    }
}

/// What our names begin with in a hold.
const HOLD_PREFIX: &str = "spanfs.snapshotter";

fn reach_holder(flags: &Flags) -> std::io::Result<Holder> {
    let program = Holder::find_program(std::env::var_os("PATH").as_deref());
    let missing =
        || std::io::Error::other("spanfs-hold is neither beside this program nor in PATH");
    let program = program.ok_or_else(missing)?;
    let own = match &flags.address {
        Address::Path(path) => path,
        Address::Activation => &flags.default_address,
    };
    Holder::reach(own.with_file_name("hold.sock"), program)
}

/// A layer has half a dozen files open.
fn raise_file_limit() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

async fn serve(
    flags: &Flags,
    config: &Config,
    snapshotter: Arc<Snapshotter>,
    keychain: Option<Arc<Keychain>>,
) -> anyhow::Result<Told> {
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("waiting for SIGHUP")?;
    let settings = &config.settings;
    let current = Current::new(flags.config.clone(), config.raw.clone());

    if let Some(listen) = &settings.metrics {
        let serving = http::serve(listen, metrics(Arc::clone(&snapshotter)));
        let serving = serving.await.with_context(|| format!("listening for metrics at {listen:?}"));
        tokio::spawn(serving?);
    }
    let images = match (&settings.cri_image_service, keychain) {
        (Some(socket), Some(keychain)) => Some(ImageService::new(socket, keychain)?),
        _ => None,
    };

    let listener = flags.address.listen(&flags.default_address)?;
    let address = listener.local_addr().ok().and_then(|a| a.as_pathname().map(PathBuf::from));
    let pages = debug::pages(Arc::clone(&snapshotter), current.clone());
    let debug_socket = serve_debug(settings, address.as_deref(), pages).await?;
    listener.set_nonblocking(true).context("setting up the socket")?;
    let incoming = UnixListenerStream::new(UnixListener::from_std(listener)?);

    let (stop, stopped) = oneshot::channel::<()>();
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(CALLS_MAX)
        .add_service(grpc::server(SnapshotsService::new(Arc::clone(&snapshotter))))
        .add_optional_service(images)
        .serve_with_incoming_shutdown(incoming, async {
            drop(stopped.await);
        });
    let mut server = tokio::spawn(server);
    tell("READY=1");
    let shown = address.as_deref().map(|path| path.display().to_string());
    tracing::info!(address = shown, "{} successfully started", flags.name);

    let told = loop {
        tokio::select! {
            _ = interrupt.recv() => break Told::Interrupt,
            _ = terminate.recv() => break Told::Terminate,
            _ = hangup.recv() => {
                let (current, snapshotter) = (current.clone(), Arc::clone(&snapshotter));
                // It reads a file and writes some.
                let reload = tokio::task::spawn_blocking(move || current.reload(&snapshotter));
                reload.await.context("reloading settings")?;
            }
            ended = &mut server => {
                ended.context("the server")?.context("the server")?;
                anyhow::bail!("the server ended by itself");
            }
        }
    };
    tracing::info!("Got {}", if told == Told::Interrupt { "interrupt" } else { "terminated" });
    tell("STOPPING=1");
    drop(stop);
    if tokio::time::timeout(STOP_TIMEOUT, server).await.is_err() {
        tracing::warn!("calls are still running after {STOP_TIMEOUT:?}");
    }
    if let (Address::Path(path), Some(_)) = (&flags.address, &address) {
        drop(std::fs::remove_file(path));
    }
    if let Some(path) = debug_socket {
        drop(std::fs::remove_file(path));
    }
    tracing::info!("Exiting");
    Ok(told)
}

fn metrics(snapshotter: Arc<Snapshotter>) -> Pages {
    Arc::new(move |path| {
        (path == "/metrics").then(|| Page { kind: PROMETHEUS, text: snapshotter.metrics() })
    })
}

/// Beside the daemon's own socket unless the settings name another place; where they are then.
async fn serve_debug(
    settings: &Settings,
    address: Option<&Path>,
    pages: Pages,
) -> anyhow::Result<Option<PathBuf>> {
    let beside = address.map(|address| address.with_extension("debug.sock"));
    let Some(path) = settings.debug_socket.clone().or(beside) else { return Ok(None) };
    match http::serve(&Listen::Unix(path.clone()), pages).await {
        Ok(serving) => {
            tokio::spawn(serving);
            Ok(Some(path))
        }
        // Nobody asked for this one.
        Err(error) if settings.debug_socket.is_none() => {
            tracing::warn!(path = %path.display(), %error, "no debug pages");
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("debug pages at {}", path.display())),
    }
}

fn tell(state: &str) {
    let socket = std::env::var_os("NOTIFY_SOCKET");
    if let Err(error) = notify(socket.as_deref(), state) {
        tracing::warn!(error = %error, state, "cannot tell the supervisor");
    }
}
