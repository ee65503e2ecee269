//! What runs: a socket per mount process, in a directory that only its user can enter.
//!
//! ```text
//! RUNTIME/ID.sock    answers `status` and `unmount`; ID is of the directory's path
//! RUNTIME/ID.log     stderr of a background mount
//! RUNTIME/ID.image   documents of its image, for whoever serves it next
//! RUNTIME/hold.sock  who keeps the connections of background mounts (`spanfs-hold`)
//! ```

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::time::Duration;

use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use spanfs_layer::Digest;

use crate::failure::{Code, Failure};

/// What one can ask of a mount process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Ask {
    /// How it is doing.
    Status,
    /// End the mount, then the process.
    Unmount,
}

/// A question that came over the socket, with the place for its answer.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) ask: Ask,
    pub(crate) answer: SyncSender<Value>,
}

/// Time for a peer to say its line, and for us to look after all we have.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// Unmounting waits for readers to leave.
pub(crate) const UNMOUNT_TIME_MAX: Duration = Duration::from_secs(30);
const QUESTION_LEN_MAX: u64 = 256;
const ANSWER_LEN_MAX: u64 = 16 << 20;

/// The directory, made if need be. One that another user could have made is refused.
pub(crate) fn directory() -> Result<PathBuf, Failure> {
    let uid = geteuid();
    let path = match std::env::var_os("XDG_RUNTIME_DIR") {
        _ if uid.is_root() => PathBuf::from("/run/spanfs"),
        Some(directory) if !directory.is_empty() => PathBuf::from(directory).join("spanfs"),
        _ => std::env::temp_dir().join(format!("spanfs-{}", uid.as_raw())),
    };
    let attempted = || format!("making the directory {} for sockets", path.display());
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path)
        .map_err(|error| Failure::io(attempted(), &error))?;
    let metadata = fs::symlink_metadata(&path).map_err(|error| Failure::io(attempted(), &error))?;
    let private = metadata.is_dir()
        && metadata.uid() == uid.as_raw()
        && metadata.permissions().mode() & 0o077 == 0;
    if !private {
        let reason = "it is there, but others than you may enter it";
        return Err(Failure::new(Code::Refused, attempted(), reason)
            .advise(format!("remove {}, or set XDG_RUNTIME_DIR", path.display())));
    }
    Ok(path)
}

/// Where the socket of the mount in `directory` is.
pub(crate) fn socket(directory: &Path) -> Result<PathBuf, Failure> {
    Ok(named(directory)?.with_extension("sock"))
}

/// Whether a process answers for the mount in `directory`.
pub(crate) fn is_served(directory: &Path) -> Result<bool, Failure> {
    Ok(UnixStream::connect(socket(directory)?).is_ok())
}

/// Where the log of the background mount in `directory` is.
pub(crate) fn log(directory: &Path) -> Result<PathBuf, Failure> {
    Ok(named(directory)?.with_extension("log"))
}

/// Where the documents of the image mounted in `directory` are, for a successor of its process.
pub(crate) fn pinned(directory: &Path) -> Result<PathBuf, Failure> {
    Ok(named(directory)?.with_extension("image"))
}

/// Long enough that no two directories of a machine share it, short enough for a socket's path.
const ID_LEN: usize = 20;

/// What the mount in a directory is called.
pub(crate) fn id(mounted: &Path) -> String {
    let mut hex = Digest::of(mounted.as_os_str().as_encoded_bytes()).hex().to_string();
    hex.truncate(ID_LEN);
    hex
}

fn named(mounted: &Path) -> Result<PathBuf, Failure> {
    Ok(directory()?.join(id(mounted)))
}

/// Sockets of all mount processes of this user, also dead ones.
pub(crate) fn sockets() -> Result<Vec<PathBuf>, Failure> {
    let directory = directory()?;
    let attempted = || format!("listing {}", directory.display());
    let entries = fs::read_dir(&directory).map_err(|error| Failure::io(attempted(), &error))?;
    let mut sockets: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    sockets.retain(|path| path.extension().is_some_and(|extension| extension == "sock"));
    sockets.sort();
    Ok(sockets)
}

/// Ask the process behind a socket. `None`: there is none any more.
pub(crate) fn ask(socket: &Path, ask: Ask, time_max: Duration) -> io::Result<Option<Value>> {
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(time_max))?;
    stream.set_write_timeout(Some(ANSWER_TIME_MAX))?;
    writeln!(stream, "{}", serde_json::to_string(&ask)?)?;
    let mut line = String::new();
    BufReader::new(stream.take(ANSWER_LEN_MAX)).read_line(&mut line)?;
    Ok(Some(serde_json::from_str(&line)?))
}

/// A socket being served; it goes when this does.
#[derive(Debug)]
pub(crate) struct Served {
    path: PathBuf,
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "socket stays behind");
        }
    }
}

/// Serve a mount's socket: every question goes to `asked`. Fails if a live process has it.
pub(crate) fn serve<Event: From<Asked> + Send + 'static>(
    path: &Path,
    asked: Sender<Event>,
) -> io::Result<Served> {
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::from(io::ErrorKind::AddrInUse));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let served = Served { path: path.to_owned() };
    std::thread::Builder::new().name("socket".to_owned()).spawn(move || {
        for stream in listener.incoming() {
            let result = stream.and_then(|stream| answer(stream, &asked));
            if let Err(error) = result {
                tracing::debug!(%error, "question over the socket");
            }
        }
    })?;
    Ok(served)
}

fn answer<Event: From<Asked>>(mut stream: UnixStream, asked: &Sender<Event>) -> io::Result<()> {
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    stream.set_write_timeout(Some(ANSWER_TIME_MAX))?;
    let mut line = String::new();
    BufReader::new((&stream).take(QUESTION_LEN_MAX)).read_line(&mut line)?;
    let ask = serde_json::from_str(&line)?;
    let (sender, receiver) = sync_channel(1);
    let gone = |_| io::Error::other("the mount is ending");
    asked.send(Asked { ask, answer: sender }.into()).map_err(gone)?;
    let answer = receiver.recv_timeout(UNMOUNT_TIME_MAX).map_err(io::Error::other)?;
    writeln!(stream, "{answer}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_answered_and_the_socket_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let (sender, receiver) = std::sync::mpsc::channel::<Asked>();
        assert_eq!(ask(&path, Ask::Status, ANSWER_TIME_MAX).unwrap(), None);
        let served = serve(&path, sender.clone()).unwrap();
        let answering = std::thread::spawn(move || {
            let asked = receiver.recv().unwrap();
            assert_eq!(asked.ask, Ask::Unmount);
            asked.answer.send(serde_json::json!({ "done": true })).unwrap();
            receiver
        });
        let answer = ask(&path, Ask::Unmount, ANSWER_TIME_MAX).unwrap().unwrap();
        assert_eq!(answer["done"], true);
        let second = serve(&path, sender).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        drop(served);
        assert!(!path.exists());
        drop(answering.join().unwrap());
    }
}
