//! The socket that we listen at: made by us, or handed over by systemd.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket of ours.
    Path(PathBuf),
    /// The one socket that systemd hands over.
    Activation,
}

/// Why we can't listen.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A call failed.
    #[error("{attempt} {}", path.display())]
    Path {
        /// What was attempted.
        attempt: &'static str,
        /// The socket or its directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another process answers there.
    #[error("another process listens at {}", .0.display())]
    Taken(PathBuf),
    /// Something else has the name; it may be precious.
    #[error("{} is there and is no socket", .0.display())]
    NoSocket(PathBuf),
    /// More sockets than one.
    #[error("soci only supports a single systemd socket on activation, got {0}")]
    TooMany(usize),
    /// What systemd handed over is no unix socket.
    #[error("the socket of systemd")]
    Activation(#[source] io::Error),
}

/// Only root talks to us.
const SOCKET_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
/// containerd opens one connection; the kernel caps the number.
const BACKLOG: i32 = 128;

impl Address {
    /// From a path, `unix://PATH` or `fd://`; none for other protocols.
    pub fn parse(address: &str) -> Option<Self> {
        match address.split_once("://") {
            None => Some(Self::Path(address.into())),
            Some(("unix", path)) if !path.is_empty() => Some(Self::Path(path.into())),
            Some(("fd", _)) => Some(Self::Activation),
            Some(_) => None,
        }
    }

    /// Listen. When systemd hands over nothing, `default` is made.
    pub fn listen(&self, default: &Path) -> Result<UnixListener, SocketError> {
        match self {
            Self::Path(path) => bind(path),
            Self::Activation => match inherited()? {
                Some(listener) => Ok(listener),
                None => {
                    tracing::info!(
                        address = %default.display(),
                        "no socket of systemd's; listening at the default path"
                    );
                    bind(default)
                }
            },
        }
    }
}

fn inherited() -> Result<Option<UnixListener>, SocketError> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<&str> = names.split(':').collect();
    let mut passed = ListenFd::from_env();
    // What an earlier process of ours stored comes the same way.
    let is_socket = |number: &usize| {
        !names.get(*number).is_some_and(|name| name.starts_with(spanfs_mount::hold::PREFIX))
    };
    let sockets: Vec<usize> = (0..passed.len()).filter(is_socket).collect();
    match sockets[..] {
        [] => Ok(None),
        [number] => passed.take_unix_listener(number).map_err(SocketError::Activation),
        _ => Err(SocketError::TooMany(sockets.len())),
    }
}

pub(super) fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)
            .map_err(fail("making", directory))?;
    }
    remove_stale(path)?;
    let error = fail("listening at", path);
    listen_privately(path).map_err(error)
}

/// Remove the socket of a process that is no more.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail("looking at", path)(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NoSocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::Taken(path.to_owned())),
        Err(_) => fs::remove_file(path).map_err(fail("removing the stale socket", path)),
    }
}

/// Nobody can connect before the mode is set, as nobody listens yet.
fn listen_privately(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn fail<'a>(attempt: &'static str, path: &'a Path) -> impl Fn(io::Error) -> SocketError + 'a {
    move |source| SocketError::Path { attempt, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let path = |path: &str| Some(Address::Path(path.into()));
        let check = |address: &str, expected| {
            assert_eq!(Address::parse(address), expected, "{address}");
        };
        check("/run/a.sock", path("/run/a.sock"));
        check("unix:///run/a.sock", path("/run/a.sock"));
        check("fd://", Some(Address::Activation));
        check("tcp://127.0.0.1:5", None);
        check("vsock://1", None);
        check("unix://", None);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/c.sock");
        let listener = bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert!(matches!(bind(&path), Err(SocketError::Taken(_))));
        drop(listener);
        drop(bind(&path).unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(SocketError::NoSocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
