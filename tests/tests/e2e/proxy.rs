//! A forward proxy: CONNECT for hosts with TLS, absolute URLs for others. Every name leads to one place.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Answers until dropped.
pub(crate) struct Proxy {
    /// `127.0.0.1:port`.
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    target: SocketAddr,
    /// Value of Proxy-Authorization that it wants.
    authorization: String,
    heads: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Proxy {
    /// A proxy in front of `target`.
    pub(crate) fn start(target: &str, authorization: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("address");
        let shared = Arc::new(Shared {
            target: target.parse().expect("an address"),
            authorization: authorization.to_owned(),
            heads: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.stop.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), shared) = (stream, Arc::clone(&serving)) else { continue };
                // A connection that breaks is the client's to notice.
                std::thread::spawn(move || drop(shared.answer(stream)));
            }
        });
        Self { address, shared, thread: Some(thread) }
    }

    /// First lines of all requests so far that carried the right authorization.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.shared.heads.lock().expect("not poisoned").clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the proxy's thread");
        }
    }
}

impl Shared {
    fn answer(&self, mut client: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let wanted = format!("proxy-authorization: {}", self.authorization);
        if !head.lines().any(|line| line.eq_ignore_ascii_case(&wanted)) {
            return client.write_all(
                b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
            );
        }
        let first = head.lines().next().unwrap_or_default().to_owned();
        let tunnel = first.starts_with("CONNECT ");
        self.heads.lock().expect("not poisoned").push(first);
        let mut server = TcpStream::connect(self.target)?;
        match tunnel {
            true => client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?,
            // Go's server takes an absolute URL for what it is.
            false => server.write_all(head.as_bytes())?,
        }
        let mut back = server.try_clone()?;
        let mut to_client = client.try_clone()?;
        let returning = std::thread::spawn(move || {
            let copied = io::copy(&mut back, &mut to_client);
            drop(to_client.shutdown(Shutdown::Both));
            copied
        });
        let copied = io::copy(&mut reader, &mut server);
        drop(server.shutdown(Shutdown::Both));
        drop(returning.join());
        copied.map(drop)
    }
}
