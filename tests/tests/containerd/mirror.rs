//! A mirror as Spegel is one: it serves what stands in a node's containerd, and nothing else.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spanfs_layer::Digest;
use spanfs_snapshotter::containerd::{Client, ClientOptions};
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(30);
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What somebody asked for and got.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "shown when a test fails")]
pub(crate) struct Asked {
    method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) status: u16,
}

/// It listens until it is dropped.
pub(crate) struct Mirror {
    stop: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Mirror {
    /// Serve the content of the containerd at `socket`, in CRI's namespace; of no socket, nothing.
    pub(crate) fn start(listener: TcpListener, socket: Option<&Path>) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().expect("a runtime");
        let client = socket.map(|socket| {
            let _entered = runtime.enter();
            let (address, namespace) = (socket.display().to_string(), "k8s.io".to_owned());
            let options = ClientOptions { address, namespace, ..ClientOptions::default() };
            Client::lazy(&options).expect("a client")
        });
        let content = Arc::new(Content { runtime, client });
        let (stop, asked): (Arc<AtomicBool>, Arc<Mutex<Vec<Asked>>>) = Default::default();
        let (told, log) = (Arc::clone(&stop), Arc::clone(&asked));
        listener.set_nonblocking(true).expect("a listener");
        std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                stream.set_nonblocking(false).expect("a connection");
                stream.set_read_timeout(Some(PATIENCE)).expect("a connection");
                let (content, log) = (Arc::clone(&content), Arc::clone(&log));
                std::thread::spawn(move || content.serve(stream, &log));
            }
        });
        Self { stop, asked }
    }

    /// Everything that was asked for so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("requests").clone()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Request {
    method: String,
    path: String,
    query: String,
    range: Option<(u64, u64)>,
}

impl Request {
    fn read(reader: &mut BufReader<TcpStream>) -> Option<Self> {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|len| *len > 0)?;
        let mut words = line.split_whitespace();
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let mut range = None;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            if header.trim().is_empty() {
                break;
            }
            let (name, value) = header.trim().split_once(':')?;
            if name.eq_ignore_ascii_case("range") {
                let (first, last) = value.trim().strip_prefix("bytes=")?.split_once('-')?;
                range = Some((first.parse().ok()?, last.parse().ok()?));
            }
        }
        Some(Self { method, path: path.to_owned(), query: query.to_owned(), range })
    }
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn not_found() -> Self {
        Self { status: 404, headers: Vec::new(), body: Vec::new() }
    }

    fn write(&self, to: &mut impl Write, head: bool) -> std::io::Result<()> {
        let mut text = format!("HTTP/1.1 {} X\r\n", self.status);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += &format!("Content-Length: {}\r\n\r\n", self.body.len());
        to.write_all(text.as_bytes())?;
        if head { Ok(()) } else { to.write_all(&self.body) }
    }
}

struct Content {
    runtime: Runtime,
    client: Option<Client>,
}

impl Content {
    fn serve(&self, stream: TcpStream, log: &Mutex<Vec<Asked>>) {
        let mut reader = BufReader::new(stream);
        while let Some(request) = Request::read(&mut reader) {
            let reply = self.reply(&request);
            let is_head = request.method == "HEAD";
            let Request { method, path, query, .. } = request;
            let asked = Asked { method, path, query, status: reply.status };
            log.lock().expect("requests").push(asked);
            if reply.write(reader.get_mut(), is_head).is_err() {
                return;
            }
        }
    }

    fn reply(&self, request: &Request) -> Reply {
        if request.path == "/v2/" {
            return Reply { status: 200, headers: Vec::new(), body: Vec::new() };
        }
        self.find(request).unwrap_or_else(Reply::not_found)
    }

    fn find(&self, request: &Request) -> Option<Reply> {
        let client = self.client.as_ref()?;
        let path = request.path.strip_prefix("/v2/")?;
        let registry = request.query.strip_prefix("ns=")?.replace("%3A", ":");
        let digest = if let Some((repository, object)) = path.split_once("/manifests/") {
            let digest: Option<Digest> = object.parse().ok();
            let of_tag = || {
                let name = format!("{registry}/{repository}:{object}");
                Some(self.runtime.block_on(client.images().get(&name)).ok()?.target.digest)
            };
            digest.or_else(of_tag)?
        } else {
            path.split_once("/blobs/")?.1.parse().ok()?
        };
        let content = client.content();
        let info = self.runtime.block_on(content.info(&digest)).ok()??;
        // Spegel advertises what containerd says is of a registry.
        let source = |label: &String| label.starts_with("containerd.io/distribution.source.");
        if !info.labels.keys().any(source) {
            return None;
        }
        let mut headers = vec![
            ("Content-Type", MANIFEST.to_owned()),
            ("Docker-Content-Digest", digest.to_string()),
        ];
        let (status, range) = match request.range {
            None => (200, 0..info.size),
            Some((first, last)) => {
                let last = last.min(info.size - 1);
                headers.push(("Content-Range", format!("bytes {first}-{last}/{}", info.size)));
                (206, first..last + 1)
            }
        };
        let body = self.runtime.block_on(content.range(&digest, range)).ok()?;
        Some(Reply { status, headers, body })
    }
}
