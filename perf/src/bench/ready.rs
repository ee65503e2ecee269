//! Waits until a workload is ready.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Child;
use std::sync::mpsc::{TryRecvError, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use super::Stop;
use super::output::Output;
use crate::workload::Ready;

const POLL: Duration = Duration::from_millis(1);
/// Of one attempt to reach a port of loopback.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// Output may come a little after the exit of who wrote it.
const OUTPUT_GRACE: Duration = Duration::from_millis(200);

/// The moment at which `ready` holds; an error if the workload ends before, or `deadline` comes.
pub(super) fn wait(
    ready: &Ready,
    child: &mut Child,
    output: &Output,
    network: &File,
    deadline: Instant,
    stop: &Stop,
) -> Result<Instant> {
    let probe = match ready {
        Ready::Port(port) => Some((*port, None)),
        Ready::Http(port, path) => Some((*port, Some(path.clone()))),
        Ready::Log(_) | Ready::Exit(_) => None,
    };
    let answered = probe.map(|(port, path)| {
        let (sender, answered) = channel();
        let network = network.try_clone();
        // It ends when nobody listens any more.
        std::thread::spawn(move || {
            let Ok(network) = network else { return };
            let _gone = spanfs_node::in_network(&network, || {
                while Instant::now() < deadline {
                    let is_up = probe_once(port, path.as_deref());
                    if sender.send(is_up.then(Instant::now)).is_err() || is_up {
                        break;
                    }
                    std::thread::sleep(POLL);
                }
                Ok(())
            });
        });
        answered
    });
    let mut ended = None;
    loop {
        stop.check()?;
        if let Some(at) = output.matched() {
            return Ok(at);
        }
        if let Some(answered) = &answered {
            loop {
                match answered.try_recv() {
                    Ok(Some(at)) => return Ok(at),
                    Ok(None) => {}
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => break,
                }
            }
        }
        if ended.is_none()
            && let Some(status) = child.try_wait()?
        {
            if let Ready::Exit(wanted) = ready {
                return match status.code() {
                    Some(code) if code == *wanted => Ok(Instant::now()),
                    _ => Err(failed(&format!("{status}, expected {wanted}"), output)),
                };
            }
            ended = Some((Instant::now(), status));
        }
        if let Some((at, status)) = ended
            && at.elapsed() > OUTPUT_GRACE
        {
            return Err(failed(&format!("{status} before it was ready"), output));
        }
        if Instant::now() > deadline {
            bail!("not ready in time; {}", output.tail());
        }
        std::thread::sleep(POLL);
    }
}

fn failed(how: &str, output: &Output) -> anyhow::Error {
    // The last lines of a program that has just ended may still be on their way.
    std::thread::sleep(Duration::from_millis(50));
    anyhow!("the workload ended with {how}; {}", output.tail())
}

fn probe_once(port: u16, path: Option<&str>) -> bool {
    let attempt = || -> io::Result<bool> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIME_MAX)?;
        let Some(path) = path else { return Ok(true) };
        stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(head.starts_with(b"HTTP/1.") && head.ends_with(b" 200"))
    };
    attempt().unwrap_or(false)
}
