//! A small HTTP/1.1 server on loopback that answers as a script says. One thread per connection; all
//! end when the server is dropped.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A request as the script sees it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Count of requests before this one.
    pub(crate) index: usize,
    pub(crate) range: Option<Range<u64>>,
    pub(crate) head: String,
}

/// What to answer.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// What was asked for, as HTTP has it.
    Right,
    /// The whole blob with 200, with its length.
    Whole,
    /// The right body in chunks of such size.
    Chunked(usize),
    /// The right body without length, ended by closing.
    UntilClose,
    /// At most so many bytes with a right 206.
    Shorter(u64),
    /// The right header and so many bytes, then close.
    CutAfter(usize),
    /// The right header and so many bytes, then silence.
    StallAfter(usize),
    /// So many bytes each time.
    Drip(usize, Duration),
    /// These bytes as they are, then close.
    Raw(String),
    /// Close without a word.
    Close,
    /// Never answer.
    Silence,
}

pub(crate) type Script = Box<dyn Fn(&Request) -> Answer + Send + Sync>;

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    inner: Arc<Inner>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Inner {
    blob: Vec<u8>,
    script: Script,
    tls: Option<Arc<rustls::ServerConfig>>,
    stop: AtomicBool,
    requests: Mutex<Vec<Request>>,
    connections: AtomicUsize,
    sockets: Mutex<Vec<TcpStream>>,
}

impl Server {
    pub(crate) fn start(
        blob: Vec<u8>,
        tls: Option<Arc<rustls::ServerConfig>>,
        script: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            blob,
            script: Box::new(script),
            tls,
            stop: AtomicBool::new(false),
            requests: Mutex::default(),
            connections: AtomicUsize::new(0),
            sockets: Mutex::default(),
        });
        let shared = Arc::clone(&inner);
        let thread = std::thread::spawn(move || {
            let mut threads = Vec::new();
            for socket in listener.incoming() {
                if shared.stop.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(socket) = socket else { continue };
                shared.connections.fetch_add(1, Ordering::SeqCst);
                shared.sockets.lock().unwrap().push(socket.try_clone().unwrap());
                let inner = Arc::clone(&shared);
                threads.push(std::thread::spawn(move || inner.serve(socket)));
            }
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        Self { address, inner, thread: Some(thread) }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.inner.requests.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.inner.connections.load(Ordering::SeqCst)
    }

    /// Close every connection from this side.
    pub(crate) fn hang_up(&self) {
        for socket in self.inner.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::SeqCst);
        self.hang_up();
        let _ = TcpStream::connect(self.address);
        self.hang_up();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

impl Inner {
    fn serve(&self, socket: TcpStream) {
        let raw = socket.try_clone().unwrap();
        match &self.tls {
            None => self.talk(socket),
            Some(config) => {
                let connection = rustls::ServerConnection::new(Arc::clone(config)).unwrap();
                self.talk(rustls::StreamOwned::new(connection, socket));
            }
        }
        let _ = raw.shutdown(Shutdown::Both);
    }

    fn talk(&self, mut stream: impl Stream) {
        while let Some(head) = read_head(&mut stream) {
            if head.starts_with("CONNECT ") {
                // A proxy that is its own target.
                if stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").is_err() {
                    return;
                }
                let config = self.tls_behind_proxy();
                let connection = rustls::ServerConnection::new(config).unwrap();
                let mut tls = rustls::StreamOwned::new(connection, Adapter(&mut stream));
                while let Some(head) = read_head(&mut tls) {
                    if self.answer(head, &mut tls).is_err() {
                        return;
                    }
                }
                return;
            }
            if self.answer(head, &mut stream).is_err() {
                return;
            }
        }
    }

    fn tls_behind_proxy(&self) -> Arc<rustls::ServerConfig> {
        PROXIED.lock().unwrap().clone().expect("the test sets a configuration")
    }

    /// An error ends the connection.
    fn answer(&self, head: String, stream: &mut dyn Write) -> Result<(), ()> {
        let request = {
            let mut requests = self.requests.lock().unwrap();
            let request = parse(head, requests.len());
            requests.push(request.clone());
            request
        };
        let size = self.blob.len() as u64;
        let range = request.range.clone().unwrap_or(0..size);
        let body = &self.blob[range.start as usize..range.end as usize];
        let status = match &request.range {
            Some(range) => format!(
                "206 Partial Content\r\nContent-Range: bytes {}-{}/{size}",
                range.start,
                range.end - 1
            ),
            None => "200 OK".to_owned(),
        };
        let full = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        let mut send = |bytes: &[u8]| stream.write_all(bytes).and_then(|()| stream.flush());
        let result = match (self.script)(&request) {
            Answer::Right => return send(full.as_bytes()).and_then(|()| send(body)).map_err(drop),
            Answer::Whole => {
                send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").as_bytes())
                    .and_then(|()| send(&self.blob))
            }
            Answer::Chunked(len) => {
                let head = format!("HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n");
                let mut text = head.into_bytes();
                for chunk in body.chunks(len) {
                    text.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    text.extend_from_slice(chunk);
                    text.extend_from_slice(b"\r\n");
                }
                text.extend_from_slice(b"0\r\n\r\n");
                return send(&text).map_err(drop);
            }
            Answer::UntilClose => {
                send(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).and_then(|()| send(body))
            }
            Answer::Shorter(len) => {
                let len = len.min(range.end - range.start);
                let head = format!(
                    "HTTP/1.1 206 x\r\nContent-Range: bytes {}-{}/{size}\r\nContent-Length: {len}\r\n\r\n",
                    range.start,
                    range.start + len - 1
                );
                return send(head.as_bytes())
                    .and_then(|()| send(&body[..len as usize]))
                    .map_err(drop);
            }
            Answer::CutAfter(len) => {
                send(full.as_bytes()).and_then(|()| send(&body[..len.min(body.len())]))
            }
            Answer::StallAfter(len) => {
                let _ = send(full.as_bytes()).and_then(|()| send(&body[..len.min(body.len())]));
                self.sleep(Duration::from_secs(60));
                Ok(())
            }
            Answer::Drip(len, pause) => {
                let _ = send(full.as_bytes());
                for drop in body.chunks(len) {
                    if send(drop).is_err() || self.stop.load(Ordering::SeqCst) {
                        break;
                    }
                    std::thread::sleep(pause);
                }
                Ok(())
            }
            Answer::Raw(text) => send(text.as_bytes()),
            Answer::Close => Ok(()),
            Answer::Silence => {
                self.sleep(Duration::from_secs(60));
                Ok(())
            }
        };
        let _ = result;
        Err(())
    }

    fn sleep(&self, duration: Duration) {
        let end = std::time::Instant::now() + duration;
        while std::time::Instant::now() < end && !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The certificate behind a CONNECT.
pub(crate) static PROXIED: Mutex<Option<Arc<rustls::ServerConfig>>> = Mutex::new(None);

struct Adapter<'a, S>(&'a mut S);

impl<S: Read> Read for Adapter<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<S: Write> Write for Adapter<'_, S> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        self.0.write(buffer)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

fn read_head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    String::from_utf8(head).ok()
}

fn parse(head: String, index: usize) -> Request {
    let range = head.lines().find_map(|line| line.strip_prefix("Range: bytes=")).map(|range| {
        let (first, last) = range.split_once('-').unwrap();
        first.parse().unwrap()..last.parse::<u64>().unwrap() + 1
    });
    Request { index, range, head }
}

/// A server's TLS and the client's that trusts it; TLS 1.2 alone if asked.
pub(crate) fn tls_pair(old: bool) -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let names = vec!["registry.test".to_owned()];
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(names).unwrap();
    let versions: &[&rustls::SupportedProtocolVersion] =
        if old { &[&rustls::version::TLS12] } else { &[&rustls::version::TLS13] };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}
