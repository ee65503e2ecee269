//! The handle, and the thread behind it.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use spanfs_layer::Digest;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::auth::{Auth, Gate};
use crate::connection::{Control, Shaped};
use crate::faults::Faults;
use crate::layout;
use crate::link::{Link, SharedLink};
use crate::redirect::{Redirect, Signer};
use crate::route::{is_name, is_tag};
use crate::serve::{Listener, Shared, lock, serve};
use crate::stats::{Counters, Stats};
use crate::store::{Content, Store};
use crate::uploads::Uploads;

/// Why the registry can't start or take content.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No socket, thread or runtime.
    #[error("starting the registry on loopback")]
    Start(#[source] io::Error),
    /// A file of a layout or a blob.
    #[error("reading {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file that is no manifest.
    #[error("reading {} as a manifest", path.display())]
    Parse {
        /// Which; empty for one given as bytes.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// Indexes nested deeper than any real image.
    #[error("index {} is nested too deep", path.display())]
    TooDeep {
        /// The innermost that was looked at.
        path: PathBuf,
    },
    /// A repository, tag or media type that the API can't express.
    #[error("{0:?} is not a name of the distribution API")]
    Name(String),
}

/// What a registry is made of.
#[derive(Default)]
pub struct Builder {
    link: Option<Link>,
    faults: Faults,
    auth: Auth,
    tls: Option<Arc<rustls::ServerConfig>>,
    redirect: Option<Redirect>,
    directory: Option<PathBuf>,
    without_referrers: bool,
    threads: usize,
    port: u16,
}

impl Builder {
    /// How far away it pretends to be; loopback as it is, unless set.
    pub fn link(mut self, link: Link) -> Self {
        self.link = Some(link);
        self
    }

    /// What goes wrong.
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// Whom it lets in.
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// Speak TLS with this certificate, at the blob store too.
    pub fn tls(mut self, config: Arc<rustls::ServerConfig>) -> Self {
        self.tls = Some(config);
        self
    }

    /// Redirect GETs of blobs to a second listener, the blob store, by signed URLs that expire.
    pub fn redirect(mut self, redirect: Redirect) -> Self {
        self.redirect = Some(redirect);
        self
    }

    /// Keep pushed blobs under this directory as an OCI layout does, not in memory.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Be a registry without the referrers API, so that clients need the tag fall-back.
    pub fn without_referrers(mut self) -> Self {
        self.without_referrers = true;
        self
    }

    /// Threads that serve; 1 unless set.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Port of 127.0.0.1 to listen on; a free one unless set.
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Listen on loopback and serve until the handle is dropped.
    pub fn start(self) -> Result<Registry, RegistryError> {
        Registry::start(self).map_err(RegistryError::Start)
    }
}

/// A running registry. Dropping it ends every connection.
pub struct Registry {
    shared: Arc<Shared>,
    addr: SocketAddr,
    blob_store_addr: SocketAddr,
    stop: watch::Sender<bool>,
    runtime: Handle,
    tls: Option<TlsAcceptor>,
    thread: Option<JoinHandle<()>>,
}

impl Registry {
    /// Parts to choose before the start.
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn start(builder: Builder) -> io::Result<Self> {
        let (listener, addr) = listen(builder.port)?;
        let (blob_store, blob_store_addr) = listen(0)?;
        let secret = || format!("{:x}", RandomState::new().hash_one(addr));
        let shared = Arc::new(Shared {
            store: Mutex::new(Store::new(builder.directory)),
            gate: Mutex::new(Gate::new(builder.auth, secret())),
            faults: Mutex::new(builder.faults),
            uploads: Mutex::new(Uploads::default()),
            link: Arc::new(SharedLink::new(builder.link.unwrap_or(Link::UNLIMITED))),
            counters: Arc::new(Counters::new()),
            signer: Signer::new(secret()),
            redirect: Mutex::new(builder.redirect),
            referrers: AtomicBool::new(!builder.without_referrers),
            scheme: if builder.tls.is_some() { "https" } else { "http" },
            blob_store_port: blob_store_addr.port(),
        });
        let runtime = match builder.threads {
            0 | 1 => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            threads => tokio::runtime::Builder::new_multi_thread()
                .worker_threads(threads)
                .thread_name("registry")
                .enable_all()
                .build()?,
        };
        let (stop, stopped) = watch::channel(false);
        let tls = builder.tls.map(TlsAcceptor::from);
        let (handle, also_tls) = (runtime.handle().clone(), tls.clone());
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("registry".to_owned()).spawn(move || {
            runtime.block_on(async {
                let mut stopped = stopped;
                let registry = accept(&serving, Listener::Registry, listener, tls.clone());
                let blob_store = accept(&serving, Listener::BlobStore, blob_store, tls);
                tokio::select! {
                    result = registry => tracing::error!(?result, "registry stopped listening"),
                    result = blob_store => tracing::error!(?result, "blob store stopped listening"),
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            });
            runtime.shutdown_timeout(SHUTDOWN_MAX);
        })?;
        Ok(Self {
            shared,
            addr,
            blob_store_addr,
            stop,
            runtime: handle,
            tls: also_tls,
            thread: Some(thread),
        })
    }

    /// Serve a listener of the caller's too, such as one in another network namespace, over the same
    /// link.
    pub fn also_listen(&self, listener: StdListener) -> Result<(), RegistryError> {
        listener.set_nonblocking(true).map_err(RegistryError::Start)?;
        let (shared, tls) = (Arc::clone(&self.shared), self.tls.clone());
        self.runtime.spawn(async move {
            let result = accept(&shared, Listener::Registry, listener, tls).await;
            tracing::error!(?result, "registry stopped listening");
        });
        Ok(())
    }

    /// Where the registry listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where the blob store listens.
    pub fn blob_store_addr(&self) -> SocketAddr {
        self.blob_store_addr
    }

    /// `http://127.0.0.1:PORT`, or https.
    pub fn url(&self) -> String {
        format!("{}://{}", self.shared.scheme, self.addr)
    }

    /// `127.0.0.1:PORT/REPOSITORY:TAG`
    pub fn reference(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.addr)
    }

    /// Keep a blob in memory.
    pub fn put_blob(
        &self,
        repository: &str,
        bytes: impl Into<Bytes>,
    ) -> Result<Digest, RegistryError> {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        self.put_content(repository, digest, Content::Memory(bytes))?;
        Ok(digest)
    }

    /// Serve a blob from where it stands. The file must hold what the digest says, and must not
    /// change; nobody checks.
    pub fn put_blob_file(
        &self,
        repository: &str,
        digest: Digest,
        path: &Path,
    ) -> Result<(), RegistryError> {
        let content = Content::open(path)
            .map_err(|source| RegistryError::Read { path: path.to_owned(), source })?;
        self.put_content(repository, digest, content)
    }

    fn put_content(
        &self,
        repository: &str,
        digest: Digest,
        content: Content,
    ) -> Result<(), RegistryError> {
        check_name(repository)?;
        lock(&self.shared.store).put_blob(repository, digest, content);
        Ok(())
    }

    /// Keep a manifest or index, under a tag too if given. What it names need not be there.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Result<Digest, RegistryError> {
        check_name(repository)?;
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(RegistryError::Name(tag.to_owned()));
        }
        if http::HeaderValue::from_str(media_type).is_err() {
            return Err(RegistryError::Name(media_type.to_owned()));
        }
        lock(&self.shared.store)
            .put_manifest(repository, tag, media_type.to_owned(), bytes.into())
            .map_err(|source| RegistryError::Parse { path: PathBuf::new(), source })
    }

    /// Take all images of an OCI layout directory; its blobs are served from where they stand.
    /// Returns what its `index.json` names, with the tags it gives.
    pub fn put_image(
        &self,
        repository: &str,
        layout: &Path,
    ) -> Result<Vec<(Option<String>, Digest)>, RegistryError> {
        check_name(repository)?;
        layout::put_layout(&mut lock(&self.shared.store), repository, layout)
    }

    /// Point a tag at a manifest that is there.
    pub fn tag(&self, repository: &str, tag: &str, digest: Digest) -> Result<(), RegistryError> {
        check_name(repository)?;
        if !is_tag(tag) {
            return Err(RegistryError::Name(tag.to_owned()));
        }
        let mut store = lock(&self.shared.store);
        store.repository(repository).tags.insert(tag.to_owned(), digest);
        Ok(())
    }

    /// Lose a blob. Answers under way go on.
    pub fn remove_blob(&self, digest: &Digest) -> bool {
        lock(&self.shared.store).remove_blob(digest)
    }

    /// Tags of a repository with what they name.
    pub fn tags(&self, repository: &str) -> Vec<(String, Digest)> {
        let mut store = lock(&self.shared.store);
        let tags = &store.repository(repository).tags;
        tags.iter().map(|(tag, digest)| (tag.clone(), *digest)).collect()
    }

    /// Bytes of a manifest, as pushed.
    pub fn manifest(&self, repository: &str, digest: &Digest) -> Option<Bytes> {
        let store = lock(&self.shared.store);
        Some(store.repositories.get(repository)?.manifests.get(digest)?.bytes.clone())
    }

    /// Change the link for everything from now on.
    pub fn set_link(&self, link: Link) {
        self.shared.link.set(link);
    }

    /// The link in force.
    pub fn link(&self) -> Link {
        self.shared.link.link()
    }

    /// Change what goes wrong with requests from now on; counting starts anew.
    pub fn set_faults(&self, faults: Faults) {
        *lock(&self.shared.faults) = faults;
    }

    /// Change whether blob GETs are redirected.
    pub fn set_redirect(&self, redirect: Option<Redirect>) {
        *lock(&self.shared.redirect) = redirect;
    }

    /// Have the referrers API or not.
    pub fn set_referrers(&self, on: bool) {
        self.shared.referrers.store(on, Ordering::Relaxed);
    }

    /// Make every token given out so far worthless.
    pub fn revoke_tokens(&self) {
        lock(&self.shared.gate).revoke();
    }

    /// What was served so far.
    pub fn stats(&self) -> Stats {
        self.shared.counters.snapshot(&self.shared.link.busy())
    }

    /// Bytes written to sockets so far: cheap enough to be asked often.
    pub fn bytes_sent(&self) -> u64 {
        self.shared.counters.bytes_sent()
    }

    /// Time since the counters began.
    pub fn elapsed(&self) -> Duration {
        self.shared.counters.elapsed()
    }

    /// Count from 0 again.
    pub fn reset_stats(&self) {
        self.shared.link.forget_busy();
        self.shared.counters.reset();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // The thread is gone already if nobody listens.
        let _gone = self.stop.send(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the registry's thread panicked");
        }
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("addr", &self.addr).finish_non_exhaustive()
    }
}

fn check_name(repository: &str) -> Result<(), RegistryError> {
    match is_name(repository) {
        true => Ok(()),
        false => Err(RegistryError::Name(repository.to_owned())),
    }
}

/// Wait at most this long for a file read that is under way.
const SHUTDOWN_MAX: Duration = Duration::from_secs(2);
/// Connections served at once; more wait in the backlog.
const CONNECTIONS_MAX: usize = 4096;
/// A request's head must come within this time; idle connections are closed after it.
const HEAD_TIME_MAX: Duration = Duration::from_secs(120);
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(30);
/// Pause after a failed accept (out of descriptors), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

fn listen(port: u16) -> io::Result<(StdListener, SocketAddr)> {
    let listener = StdListener::bind((Ipv4Addr::LOCALHOST, port))?;
    listener.set_nonblocking(true)?;
    let addr = listener.local_addr()?;
    Ok((listener, addr))
}

async fn accept(
    shared: &Arc<Shared>,
    which: Listener,
    listener: StdListener,
    tls: Option<TlsAcceptor>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, shared) = match listener.accept().await {
            Ok((stream, _)) => (stream, Arc::clone(shared)),
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let tls = tls.clone();
        tokio::spawn(async move {
            connection(shared, which, stream, tls).await;
            drop(slot);
        });
    }
}

async fn connection(
    shared: Arc<Shared>,
    which: Listener,
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "setting TCP_NODELAY");
    }
    let trips = if tls.is_some() { 2 } else { 1 };
    let greeting = (0..trips).map(|_| shared.link.round_trip()).sum();
    let control = Arc::new(Control::default());
    let (link, counters) = (Arc::clone(&shared.link), Arc::clone(&shared.counters));
    let shaped = Shaped::new(stream, link, counters, Arc::clone(&control));
    tokio::time::sleep(greeting).await;
    let serve =
        service_fn(move |request| serve(Arc::clone(&shared), which, Arc::clone(&control), request));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME_MAX);
    let result = match tls {
        None => http.serve_connection(TokioIo::new(shaped), serve).await,
        Some(tls) => match tokio::time::timeout(HANDSHAKE_TIME_MAX, tls.accept(shaped)).await {
            Ok(Ok(stream)) => http.serve_connection(TokioIo::new(stream), serve).await,
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake"),
            Err(_) => return tracing::debug!("TLS handshake took too long"),
        },
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}
