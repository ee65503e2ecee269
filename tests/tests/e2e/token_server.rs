//! A token server for docker-registry's `auth: token`: signs ES256 tokens for one user.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, SigningKey};
use serde_json::json;

/// Answers token requests until dropped.
pub(crate) struct TokenServer {
    /// Realm to put into the registry's configuration.
    pub(crate) realm: String,
    /// Certificate that the registry trusts.
    pub(crate) certificate: PathBuf,
    shared: Arc<Shared>,
    address: std::net::SocketAddr,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    key: KeyPair,
    certificate: Vec<u8>,
    user: String,
    lifetime: Duration,
    stop: AtomicBool,
    issued: AtomicU64,
}

impl TokenServer {
    /// `user` is `name:password`; tokens live for `lifetime`.
    pub(crate) fn start(dir: &Path, user: &str, lifetime: Duration) -> Self {
        let key = KeyPair::generate().expect("key");
        let certificate = CertificateParams::new(vec!["token.test".to_owned()])
            .expect("names")
            .self_signed(&key)
            .expect("certificate");
        let path = dir.join("token-server.pem");
        std::fs::write(&path, certificate.pem()).expect("write certificate");
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("address");
        let shared = Arc::new(Shared {
            key,
            certificate: certificate.der().to_vec(),
            user: user.to_owned(),
            lifetime,
            stop: AtomicBool::new(false),
            issued: AtomicU64::new(0),
        });
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for stream in listener.incoming() {
                    if shared.stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let shared = Arc::clone(&shared);
                    if let Ok(stream) = stream {
                        std::thread::spawn(move || shared.serve(stream));
                    }
                }
            }
        });
        Self {
            realm: format!("http://{address}/token"),
            certificate: path,
            shared,
            address,
            thread: Some(thread),
        }
    }

    /// Tokens given out so far.
    pub(crate) fn issued(&self) -> u64 {
        self.shared.issued.load(Ordering::SeqCst)
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let mut reader = BufReader::new(&stream);
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() {
            return;
        }
        let (mut authorization, mut length) = (String::new(), 0usize);
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header).is_err() || header.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':') {
                match name.to_ascii_lowercase().as_str() {
                    "authorization" => authorization = value.trim().to_owned(),
                    "content-length" => length = value.trim().parse().unwrap_or(0),
                    _ => {}
                }
            }
        }
        let mut body = vec![0; length.min(65536)];
        let _ = reader.read_exact(&mut body);
        let basic = format!("Basic {}", STANDARD.encode(&self.user));
        let answer = if line.starts_with("GET ") && authorization == basic {
            let query = line.split_whitespace().nth(1).unwrap_or_default();
            let token = self.token(query);
            let seconds = self.lifetime.as_secs();
            http("200 OK", &json!({"token": token, "expires_in": seconds}).to_string())
        } else if line.starts_with("POST ") {
            http("404 Not Found", "{}")
        } else {
            http("401 Unauthorized", r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#)
        };
        let _ = (&stream).write_all(answer.as_bytes());
    }

    fn token(&self, query: &str) -> String {
        self.issued.fetch_add(1, Ordering::SeqCst);
        let access: Vec<_> = query
            .split(['?', '&'])
            .filter_map(|pair| pair.strip_prefix("scope="))
            .map(|scope| scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ","))
            .flat_map(|scopes| scopes.split(['+', ' ']).map(str::to_owned).collect::<Vec<_>>())
            .filter_map(|scope| {
                let (kind, rest) = scope.split_once(':')?;
                let (name, actions) = rest.rsplit_once(':')?;
                let actions: Vec<_> = actions.split(',').collect();
                Some(json!({"type": kind, "name": name, "actions": actions}))
            })
            .collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let head =
            json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(&self.certificate)]});
        let claims = json!({
            "iss": "test-issuer", "sub": "test", "aud": "test-registry", "jti": now.to_string(),
            "exp": now + self.lifetime.as_secs(), "nbf": now - 5, "iat": now, "access": access,
        });
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(head.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let signature = self.key.sign(signed.as_bytes()).expect("signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(fixed_form(&signature)))
    }
}

fn http(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: \
         close\r\n\r\n{body}",
        body.len()
    )
}

/// ECDSA signature from its DER form (SEQUENCE of two INTEGERs) to JWS's two 32-byte numbers.
fn fixed_form(der: &[u8]) -> Vec<u8> {
    let mut fixed = Vec::new();
    let mut rest = &der[2..];
    for _ in 0..2 {
        let (number, after) = rest[2..].split_at(usize::from(rest[1]));
        let start = number.iter().position(|&byte| byte != 0).unwrap_or(number.len());
        fixed.resize(fixed.len() + 32 - (number.len() - start), 0);
        fixed.extend(&number[start..]);
        rest = after;
    }
    fixed
}
