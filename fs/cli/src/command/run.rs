//! `spanfs run`: a program of the image, in a mount namespace that ends with it.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::mpsc::{Receiver, channel};

use rustix::process::{Pid, kill_process};
use spanfs_layer::oci::ImageConfig;

use crate::arguments::Run;
use crate::enter::Program;
use crate::failure::{Code, Failure};
use crate::namespace::{self, Privilege};
use crate::output::Output;
use crate::runtime;
use crate::session::{Mounting, Session};
use crate::settings::{self, Facts};
use crate::signals::{self, Signal};

/// PATH of a program whose image sets none, as container engines have it.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(crate) fn run(arguments: &Run, output: &Output) -> Result<ExitCode, Failure> {
    let attempted = || format!("running {}", arguments.image.image);
    // What belongs to the user is found before the namespace makes him root.
    let facts = Facts::gather();
    let keeping = settings::keeping(&arguments.keep, &facts)?;
    let reaching = settings::reaching(&arguments.image.access, &facts)?;
    let place = place()?;
    let privilege = namespace::enter().map_err(|error| {
        Failure::io(attempted(), &error).advise(
            "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, \
             kernel.apparmor_restrict_unprivileged_userns=0), or run as root",
        )
    })?;
    let places = Places::make(&place).map_err(|error| Failure::io(attempted(), &error))?;
    let (sender, events) = channel();
    let orderly = signals::listen(sender).map_err(|error| Failure::io(attempted(), &error))?;

    let mut session = Session::open(&arguments.image, None, None, &keeping, &reaching, output)?;
    let mut mounting = Mounting::of(&places.image, arguments.show, places.state.clone());
    mounting.command.clone_from(&arguments.command);
    session.mount(&mounting)?;
    let root = furnish(&places, arguments.read_only, privilege, output);
    let program = program(arguments, session.config(), &root, privilege, output)?;
    orderly.begin();
    let status = become_it(&program, &events).map_err(|error| Failure::io(attempted(), &error))?;
    // Nobody is left in the namespace, so everything mounted there may go at once.
    let ended = namespace::detach(&root).map_err(|error| Failure::io(attempted(), &error));
    let ended = ended.and(session.end());
    drop(session);
    ended?;
    Ok(exit_code(status))
}

/// The directory that every run mounts its tmpfs over, each in a namespace of its own: so none is left
/// behind, however a run ends.
fn place() -> Result<PathBuf, Failure> {
    let place = runtime::directory()?.join("run");
    match fs::create_dir(&place) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Failure::io(format!("making {}", place.display()), &error))
        }
        _ => Ok(place),
    }
}

/// Directories of a run, on a tmpfs that is gone with the namespace.
struct Places {
    image: PathBuf,
    root: PathBuf,
    upper: PathBuf,
    work: PathBuf,
    state: PathBuf,
}

impl Places {
    fn make(place: &Path) -> io::Result<Self> {
        namespace::mount_tmpfs(place)?;
        let directory = |name: &str| {
            let path = place.join(name);
            fs::create_dir(&path).map(|()| path)
        };
        Ok(Self {
            image: directory("image")?,
            root: directory("root")?,
            upper: directory("upper")?,
            work: directory("work")?,
            state: directory("state")?,
        })
    }
}

/// Put a writable tree over the image where that works, and the machine's parts into it.
fn furnish(places: &Places, read_only: bool, privilege: Privilege, output: &Output) -> PathBuf {
    let Places { image, root, upper, work, .. } = places;
    let writable = !read_only
        && match namespace::mount_overlay(image, upper, work, root, privilege) {
            Ok(()) => true,
            Err(error) => {
                output.note(format_args!("the image is shown read-only: overlayfs: {error}"));
                false
            }
        };
    let root = if writable { root.clone() } else { image.clone() };
    namespace::furnish(&root, writable);
    root
}

/// What to run: the command line over the image's config.
fn program(
    arguments: &Run,
    config: &ImageConfig,
    root: &Path,
    privilege: Privilege,
    output: &Output,
) -> Result<Program, Failure> {
    let image = &arguments.image.image;
    let command: Vec<String> = match arguments.command.is_empty() {
        false => arguments.command.clone(),
        true => config.command().map(str::to_owned).collect(),
    };
    if command.is_empty() {
        let reason = "the image names no program";
        return Err(Failure::usage(format!("running {image}"), reason)
            .advise(format!("spanfs run {image} -- /bin/sh")));
    }
    let wanted = arguments.user.clone().unwrap_or_else(|| config.config.user.clone());
    let wanted = Some(wanted).filter(|user| !matches!(user.as_str(), "" | "root" | "0" | "0:0"));
    let user = match privilege {
        Privilege::Root => wanted,
        Privilege::Mapped => {
            if let Some(user) = &wanted {
                output.note(format_args!("without root, {user} is you: one user is all there is"));
            }
            None
        }
    };
    let workdir = arguments.workdir.clone().unwrap_or_else(|| config.config.working_dir.clone());
    let workdir = if workdir.is_empty() { "/".to_owned() } else { workdir };
    let env = environment(&config.config.env, &arguments.env)?;
    Ok(Program { root: root.to_owned(), command, env, workdir, user, isolate: false })
}

/// `NAME=VALUE` texts as pairs, a later one over an earlier one.
fn environment(image: &[String], given: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let mut env = vec![("PATH".to_owned(), PATH_DEFAULT.to_owned())];
    if let Ok(term) = std::env::var("TERM") {
        env.push(("TERM".to_owned(), term));
    }
    for text in image.iter().chain(given) {
        let Some((name, value)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            let reason = format!("expected NAME=VALUE, found {text:?}");
            return Err(Failure::usage("making the program's environment", reason));
        };
        env.retain(|(known, _)| known != name);
        env.push((name.to_owned(), value.to_owned()));
    }
    Ok(env)
}

/// Start the program and pass signals on to it until it ends.
fn become_it(program: &Program, events: &Receiver<Signal>) -> io::Result<ExitStatus> {
    let text = serde_json::to_string(program)?;
    let mut child = Command::new("/proc/self/exe").arg("__enter").arg(text).spawn()?;
    pass_on(&mut child, events)
}

/// How often the child is looked at; nobody notices 10 ms at a program's end.
const POLL: std::time::Duration = std::time::Duration::from_millis(10);

fn pass_on(child: &mut Child, events: &Receiver<Signal>) -> io::Result<ExitStatus> {
    let pid = Pid::from_child(child);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if let Ok(Signal(number)) = events.recv_timeout(POLL)
            && let Some(signal) = rustix::process::Signal::from_named_raw(number)
        {
            // It may have ended this very moment.
            let _ended = kill_process(pid, signal);
        }
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signal).and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(Code::Failed as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_variables_win() {
        let text = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let env = environment(&text(&["PATH=/a", "X=1", "E="]), &text(&["X=2=3"])).unwrap();
        let value = |name: &str| {
            env.iter()
                .filter(|(known, _)| known == name)
                .map(|(_, value)| value.as_str())
                .collect::<Vec<_>>()
        };
        assert_eq!(value("PATH"), ["/a"].to_vec());
        assert_eq!(value("X"), ["2=3"].to_vec());
        assert_eq!(value("E"), [""].to_vec());
        for wrong in ["X", "=1", ""] {
            assert_eq!(environment(&[], &text(&[wrong])).unwrap_err().code(), Code::Usage);
        }
    }
}
