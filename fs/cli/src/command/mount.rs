//! `spanfs mount`: one process per mount, which lives as long as it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use rustix::process::geteuid;
use serde_json::{Value, json};
use spanfs::image::Pinned;
use spanfs_mount::overlay::Upper;
use spanfs_mount::transport::fuse3::Privilege;
use spanfs_mount::{MounterOptions, record};
use tempfile::TempDir;

use crate::arguments::Mount;
use crate::background;
use crate::failure::{Code, Failure};
use crate::held;
use crate::output::Output;
use crate::runtime::{self, Ask, Asked};
use crate::session::{Mounting, Session};
use crate::settings::{self, Facts, Keeping};
use crate::signals::{self, Signal};
use crate::supervise::supervise;

/// What a mount process waits for.
enum Event {
    Signal,
    Asked(Asked),
}

impl From<Signal> for Event {
    fn from(_: Signal) -> Self {
        Self::Signal
    }
}

impl From<Asked> for Event {
    fn from(asked: Asked) -> Self {
        Self::Asked(asked)
    }
}

pub(crate) fn mount(arguments: &Mount, output: &Output) -> Result<ExitCode, Failure> {
    let facts = Facts::gather();
    let keeping = settings::keeping(&arguments.keep, &facts)?;
    if arguments.succeeding_process {
        let directory = named_directory(&arguments.directory);
        return serve(arguments, &keeping, &facts, &directory, output).map(|()| ExitCode::SUCCESS);
    }
    let directory = check_directory(&arguments.directory)?;
    if arguments.background_process {
        return supervise(&directory, &state_directory()?);
    }
    if !arguments.foreground && !arguments.serving_process {
        return match background::start()? {
            Ok(report) => {
                tell(&report, output);
                Ok(ExitCode::SUCCESS)
            }
            Err(code) => Ok(code),
        };
    }
    serve(arguments, &keeping, &facts, &directory, output).map(|()| ExitCode::SUCCESS)
}

fn tell(report: &Value, output: &Output) {
    if output.json {
        return output.json(report);
    }
    let text = |key: &str| report[key].as_str().unwrap_or_default().to_owned();
    let (directory, front, reason) = (text("directory"), text("front"), text("reason"));
    output.note(format_args!("mounted {} at {directory}", text("image")));
    output.note(format_args!("shown by {front}: {reason}; spanfs umount {directory} ends it"));
}

/// The directory, as the kernel will name it.
fn check_directory(directory: &Path) -> Result<PathBuf, Failure> {
    let attempted = format!("mounting at {}", directory.display());
    let failed = |error: std::io::Error| {
        Failure::io(attempted.clone(), &error).advise(format!("mkdir -p {}", directory.display()))
    };
    // What nobody serves any more, but somebody keeps, must not be looked into.
    let named = named_directory(directory);
    if !runtime::is_served(&named)? {
        held::end(&named, &state_directory()?)?;
    }
    let directory = directory.canonicalize().map_err(failed)?;
    let is_empty = || Ok(fs::read_dir(&directory).map_err(failed)?.next().is_none());
    // What a killed process showed there stands in nobody's way.
    if !is_empty()? && (!recover_dead()? || !is_empty()?) {
        let reason = "the directory is not empty, and the mount would hide what is in it";
        return Err(Failure::new(Code::Failed, attempted, reason));
    }
    Ok(directory)
}

/// The directory as the kernel will name it, without a look at what is mounted there.
fn named_directory(directory: &Path) -> PathBuf {
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    super::umount::canonical_parent(&absolute)
}

/// Take away dead mounts; true if there were any.
fn recover_dead() -> Result<bool, Failure> {
    let attempted = "looking for dead mounts";
    let privilege = if geteuid().is_root() { Privilege::Root } else { Privilege::User };
    let records = MounterOptions::new(state_directory()?).records();
    let recovered = record::recover(&records, privilege);
    Ok(!recovered.map_err(|error| Failure::io(attempted, &error))?.is_empty())
}

/// Where records of mounts are kept.
pub(crate) fn state_directory() -> Result<PathBuf, Failure> {
    Ok(runtime::directory()?.join("mounts"))
}

fn serve(
    arguments: &Mount,
    keeping: &Keeping,
    facts: &Facts,
    directory: &Path,
    output: &Output,
) -> Result<(), Failure> {
    let attempted = || format!("mounting {} at {}", arguments.image.image, directory.display());
    let io = |error: std::io::Error| Failure::io(attempted(), &error);
    let reaching = settings::reaching(&arguments.image.access, facts)?;
    let (sender, events) = channel::<Event>();
    let orderly = signals::listen(sender.clone()).map_err(io)?;
    let only = arguments.layer.as_ref();
    let pinned = arguments.succeeding_process.then(|| read_pinned(directory)).transpose()?;
    let image = &arguments.image;
    let mut session = Session::open(image, pinned.as_ref(), only, keeping, &reaching, output)?;
    // Nothing was mounted so far, and a signal could simply end us; from here on it may not.
    orderly.begin();
    let mut mounting = Mounting::of(directory, arguments.show, state_directory()?);
    mounting.bare_layer = arguments.layer.is_some();
    let changes = arguments.rw.then(|| Changes::make(&keeping.cache_dir)).transpose()?;
    mounting.upper = changes.as_ref().map(Changes::upper);
    // Changes are gone with the process that made their directory.
    mounting.holding = arguments.is_behind().then(|| held::holding(directory)).flatten();
    mounting.holding.take_if(|_| arguments.rw);
    mounting.succeeds = arguments.succeeding_process;
    session.mount(&mounting)?;
    let socket = serve_socket(directory, sender).map_err(io)?;
    let facts_of_mount = MountFacts {
        directory: directory.to_owned(),
        image: arguments.image.image.clone(),
        cache_dir: keeping.cache_dir.clone(),
    };
    let report = facts_of_mount.report(&session);
    if arguments.serving_process {
        write_pinned(directory, &session).map_err(io)?;
        background::report_and_detach(&report, &runtime::log(directory)?).map_err(io)?;
    } else if !arguments.succeeding_process {
        tell(&report, output);
    }
    let result = loop {
        match events.recv() {
            Ok(Event::Asked(Asked { ask: Ask::Status, answer })) => {
                // Whoever asked may have gone.
                drop(answer.send(facts_of_mount.report(&session)));
            }
            Ok(Event::Asked(Asked { ask: Ask::Unmount, answer })) => {
                let result = session.end();
                let reply = match &result {
                    Ok(()) => json!({ "directory": directory, "pid": std::process::id() }),
                    Err(failure) => json!({ "error": failure.to_string() }),
                };
                drop(answer.send(reply));
                break result;
            }
            Ok(Event::Signal) | Err(_) => break session.end(),
        }
    };
    drop(socket);
    if arguments.is_behind() && result.is_ok() {
        // Whoever needs it after a clean end has a copy.
        drop(fs::remove_file(runtime::log(directory)?));
        drop(fs::remove_file(runtime::pinned(directory)?));
    }
    // The answer over the socket is written by a thread that must not be cut off.
    std::thread::sleep(Duration::from_millis(50));
    drop(changes);
    result
}

/// What the image was, for a successor of ours: its name may mean another by then.
fn write_pinned(directory: &Path, session: &Session) -> std::io::Result<()> {
    let path = runtime::pinned(directory).map_err(std::io::Error::other)?;
    match session.pinned() {
        Some(pinned) => fs::write(path, serde_json::to_vec(&pinned)?),
        None => Ok(()), // Then a successor finds none, and the mount ends as it would without it.
    }
}

fn read_pinned(directory: &Path) -> Result<Pinned, Failure> {
    let path = runtime::pinned(directory)?;
    let attempted = || format!("reading {}", path.display());
    let text = fs::read(&path).map_err(|error| Failure::io(attempted(), &error))?;
    serde_json::from_slice(&text)
        .map_err(|error| Failure::caused(Code::Failed, attempted(), &error))
}

fn serve_socket(directory: &Path, events: Sender<Event>) -> std::io::Result<runtime::Served> {
    let socket = runtime::socket(directory).map_err(std::io::Error::other)?;
    runtime::serve(&socket, events)
}

/// Where a writable mount's changes go, until it ends.
struct Changes {
    directory: TempDir,
    /// Locked as long as its process lives.
    _lock: File,
}

/// How the names of such directories begin.
const CHANGES: &str = "changes-";
/// A directory is locked within moments of being made.
const LOCK_TIME_MAX: Duration = Duration::from_secs(60);

impl Changes {
    fn make(cache_dir: &Path) -> Result<Self, Failure> {
        let attempted = format!("making a directory for changes in {}", cache_dir.display());
        sweep_changes(cache_dir);
        let make = || {
            let directory = tempfile::Builder::new().prefix(CHANGES).tempdir_in(cache_dir)?;
            let lock = File::open(directory.path())?;
            lock.try_lock()?;
            fs::create_dir(directory.path().join("upper"))?;
            fs::create_dir(directory.path().join("work"))?;
            Ok(Self { directory, _lock: lock })
        };
        make().map_err(|error: std::io::Error| Failure::io(attempted, &error))
    }

    fn upper(&self) -> Upper {
        let directory = self.directory.path();
        Upper { upper: directory.join("upper"), work: directory.join("work") }
    }
}

/// Remove changes whose process was killed.
fn sweep_changes(cache_dir: &Path) {
    for entry in fs::read_dir(cache_dir).into_iter().flatten().flatten() {
        let is_changes = entry.file_name().as_encoded_bytes().starts_with(CHANGES.as_bytes());
        let made = entry.metadata().and_then(|metadata| metadata.modified()).ok();
        let age = made.and_then(|made| made.elapsed().ok()).unwrap_or_default();
        if !is_changes || age < LOCK_TIME_MAX {
            continue;
        }
        let path = entry.path();
        let dead = File::open(&path).is_ok_and(|lock| lock.try_lock().is_ok());
        if dead && let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "changes of a killed mount stay");
        }
    }
}

/// What a mount process says of itself besides the state of its layers.
struct MountFacts {
    directory: PathBuf,
    image: String,
    cache_dir: PathBuf,
}

impl MountFacts {
    fn report(&self, session: &Session) -> Value {
        let status = session.status();
        let mut report = serde_json::to_value(&status).unwrap_or_default();
        if let Value::Object(fields) = &mut report {
            fields.insert("directory".into(), json!(self.directory));
            fields.insert("image".into(), json!(self.image));
            fields.insert("cache_dir".into(), json!(self.cache_dir));
            fields.insert("trace_runs".into(), json!(session.trace_runs()));
            fields.insert("pid".into(), json!(std::process::id()));
        }
        report
    }
}
