//! A plain HTTP/1.1 client, so that the registry is not judged by code of its own kind.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// How the body ended, if not well.
    pub(crate) broken: Option<std::io::ErrorKind>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }
}

pub(crate) fn get(addr: SocketAddr, path: &str) -> Reply {
    send(addr, "GET", path, &[], b"").expect("an answer")
}

/// One request on a connection of its own. No answer at all is an error.
pub(crate) fn send(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Reply> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_millis(1500)))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n");
    head += &format!("Content-Length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(body)?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_owned(), value.to_owned()));
    }
    let mut reply = Reply { status, headers, body: Vec::new(), broken: None };
    let promised = reply.header("content-length").parse().unwrap_or(0);
    let mut buffer = [0; 4096];
    while method != "HEAD" && reply.body.len() < promised {
        match reader.read(&mut buffer) {
            Ok(0) => {
                reply.broken = Some(std::io::ErrorKind::UnexpectedEof);
                break;
            }
            Ok(count) => reply.body.extend_from_slice(&buffer[..count]),
            Err(error) => {
                reply.broken = Some(error.kind());
                break;
            }
        }
    }
    Ok(reply)
}
