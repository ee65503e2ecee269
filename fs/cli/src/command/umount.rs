//! `spanfs umount`: ask the process behind a mount to end it; take away what a dead one left.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::arguments::Umount;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::runtime::{self, Ask, UNMOUNT_TIME_MAX};

/// A process that has unmounted ends within moments.
const END_TIME_MAX: Duration = Duration::from_secs(10);
const END_POLL: Duration = Duration::from_millis(10);
/// A killed process of a background mount has a successor within tenths of a second, or none.
const SUCCESSOR_TIME_MAX: Duration = Duration::from_secs(3);

pub(crate) fn umount(arguments: &Umount, output: &Output) -> Result<(), Failure> {
    let sockets = if arguments.all {
        let sockets = runtime::sockets()?;
        sockets.into_iter().map(|socket| (None, socket)).collect()
    } else {
        let named = |directory: &PathBuf| {
            let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.clone());
            // The parent alone: the directory itself may hang on a dead process.
            let directory = canonical_parent(&directory);
            Ok((Some(directory.clone()), runtime::socket(&directory)?))
        };
        arguments.directories.iter().map(named).collect::<Result<Vec<_>, Failure>>()?
    };
    // One mount that stays must not keep the others.
    let mut failure = None;
    for (directory, socket) in sockets {
        match end(directory.as_deref(), &socket) {
            Ok(Some(directory)) if output.json => output.json(&json!({ "unmounted": directory })),
            Ok(Some(directory)) => output.note(format_args!("unmounted {}", directory.display())),
            Ok(None) => {}
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(()), Err)
}

/// The path with its parent resolved and its last component as written.
pub(crate) fn canonical_parent(path: &Path) -> PathBuf {
    let resolved = path.parent().and_then(|parent| parent.canonicalize().ok());
    match (resolved, path.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

/// End one mount; its directory, if there was one to end.
fn end(directory: Option<&Path>, socket: &Path) -> Result<Option<PathBuf>, Failure> {
    let shown = directory.map_or_else(|| socket.display(), |directory| directory.display());
    let attempted = format!("unmounting {shown}");
    let answer = ask(directory, socket).map_err(|error| Failure::io(attempted.clone(), &error))?;
    match answer {
        Some(answer) => match answer["error"].as_str() {
            Some(reason) => Err(Failure::new(Code::Failed, attempted, reason)
                .advise("end the programs that use it (fuser -m DIR) and try again")),
            None => {
                wait_for_end(&answer["pid"]);
                Ok(answer["directory"].as_str().map(PathBuf::from))
            }
        },
        None => take_away(directory, socket, attempted),
    }
}

/// Ask its process. `None` if there is none, and no successor of it comes either.
fn ask(directory: Option<&Path>, socket: &Path) -> io::Result<Option<Value>> {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let until = Instant::now() + SUCCESSOR_TIME_MAX;
    loop {
        let answer = match runtime::ask(socket, Ask::Unmount, UNMOUNT_TIME_MAX) {
            // It was about to die.
            Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof) => {
                None
            }
            answer => answer?,
        };
        let has_successor = || {
            let pinned = directory.and_then(|directory| runtime::pinned(directory).ok());
            pinned.is_some_and(|pinned| pinned.exists())
        };
        if answer.is_some() || Instant::now() > until || !has_successor() {
            return Ok(answer);
        }
        std::thread::sleep(END_POLL);
    }
}

/// The mount is gone; its process still closes the cache. Whoever removes that next must not race it.
fn wait_for_end(pid: &Value) {
    let Some(pid) = pid.as_u64() else { return };
    let process = PathBuf::from(format!("/proc/{pid}"));
    let until = Instant::now() + END_TIME_MAX;
    while process.exists() && Instant::now() < until {
        std::thread::sleep(END_POLL);
    }
}

/// What is left of a mount whose process is gone.
fn take_away(
    directory: Option<&Path>,
    socket: &Path,
    attempted: String,
) -> Result<Option<PathBuf>, Failure> {
    let had_socket = match std::fs::remove_file(socket) {
        Ok(()) => true,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(Failure::io(attempted, &error)),
    };
    let Some(directory) = directory else { return Ok(None) };
    crate::held::end(directory, &super::mount::state_directory()?)?;
    drop(std::fs::remove_file(runtime::pinned(directory)?)); // Most have none.
    let mounted = crate::leftover::unmount(directory)
        .map_err(|error| Failure::io(attempted.clone(), &error))?;
    if had_socket || mounted {
        return Ok(Some(directory.to_owned()));
    }
    Err(Failure::new(Code::NotFound, attempted, "spanfs shows nothing there")
        .advise("spanfs status lists what is mounted"))
}
