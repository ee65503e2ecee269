//! The last step of `run`: a process that becomes the image's program.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::process::{Signal, chdir, chroot, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use crate::namespace;

/// What to become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Program {
    /// Root of its filesystem.
    pub(crate) root: PathBuf,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// All of its environment.
    pub(crate) env: Vec<(String, String)>,
    /// Directory to start in, as the image has it.
    pub(crate) workdir: String,
    /// `NAME|UID[:NAME|GID]`; `None` to stay who we are.
    pub(crate) user: Option<String>,
    /// Give it a mount namespace first, with the machine's /proc, /sys and /dev in its root.
    #[serde(default)]
    pub(crate) isolate: bool,
}

/// As shells and container engines report a program that can't be started.
const EXIT_NOT_EXECUTABLE: u8 = 126;
const EXIT_NOT_FOUND: u8 = 127;

/// Become the program; returns only on failure.
pub(crate) fn enter(text: &str) -> ExitCode {
    let program: Program = match serde_json::from_str(text) {
        Ok(program) => program,
        Err(error) => return refuse(&format!("reading what to run: {error}")),
    };
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return refuse(&format!("tying the program to spanfs: {error}"));
    }
    if program.isolate
        && let Err(error) = namespace::enter()
    {
        return refuse(&format!("making a namespace: {error}"));
    }
    if program.isolate {
        namespace::furnish(&program.root, true);
    }
    let entered = chroot(&program.root).and_then(|()| chdir("/"));
    if let Err(error) = entered {
        return refuse(&format!("making {} the root: {error}", program.root.display()));
    }
    if let Err(error) = chdir(&program.workdir) {
        return refuse(&format!("entering the working directory {}: {error}", program.workdir));
    }
    let Some((name, arguments)) = program.command.split_first() else {
        return refuse("the image names no program, and none was given");
    };
    let mut command = Command::new(name);
    command.args(arguments).env_clear();
    if let Some(user) = &program.user {
        match Identity::find(user) {
            Ok(identity) => identity.apply(&mut command),
            Err(reason) => return refuse(&format!("becoming the user {user}: {reason}")),
        }
    }
    // What the image or the caller says of HOME wins over the password file.
    let error = command.envs(program.env).exec();
    eprintln!("spanfs: starting {name}\n  because: {error}");
    match error.kind() {
        io::ErrorKind::NotFound => ExitCode::from(EXIT_NOT_FOUND),
        _ => ExitCode::from(EXIT_NOT_EXECUTABLE),
    }
}

fn refuse(reason: &str) -> ExitCode {
    eprintln!("spanfs: starting the image's program\n  because: {reason}");
    ExitCode::from(EXIT_NOT_EXECUTABLE)
}

#[derive(Debug, PartialEq, Eq)]
struct Identity {
    uid: u32,
    gid: u32,
    home: Option<String>,
}

/// Password files of images are small; a larger one is not read.
const PASSWD_LEN_MAX: u64 = 4 << 20;

impl Identity {
    fn find(user: &str) -> Result<Self, String> {
        let passwd = read(Path::new("/etc/passwd"))?;
        let group = read(Path::new("/etc/group"))?;
        Self::parse(user, &passwd, &group)
    }

    fn parse(user: &str, passwd: &str, group: &str) -> Result<Self, String> {
        let (user, wanted_group) = match user.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (user, None),
        };
        let row = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|row| {
            let uid = row.get(2);
            row.first() == Some(&user) || user.parse::<u32>().is_ok() && uid == Some(&user)
        });
        let field = |index: usize| row.as_ref().and_then(|row| row.get(index).copied());
        let uid = field(2).unwrap_or(user).parse().map_err(|_| format!("no user {user}"))?;
        let gid = match wanted_group {
            None => field(3).and_then(|gid| gid.parse().ok()).unwrap_or(0),
            Some(wanted) => find_group(wanted, group)?,
        };
        Ok(Self { uid, gid, home: field(5).map(str::to_owned) })
    }

    fn apply(&self, command: &mut Command) {
        // Setting the user clears the other groups too, which a user namespace of one user forbids.
        if (self.uid, self.gid) != (0, 0) {
            command.uid(self.uid).gid(self.gid);
        }
        if let Some(home) = &self.home {
            command.env("HOME", home);
        }
    }
}

fn find_group(wanted: &str, group: &str) -> Result<u32, String> {
    let mut rows = group.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let row = rows.find(|row| row.first() == Some(&wanted));
    let gid = row.as_ref().and_then(|row| row.get(2).copied()).unwrap_or(wanted);
    gid.parse().map_err(|_| format!("no group {wanted}"))
}

fn read(path: &Path) -> Result<String, String> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > PASSWD_LEN_MAX => {
            Err(format!("{} has {} bytes", path.display(), metadata.len()))
        }
        Ok(_) => {
            let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        // Numbers need no files.
        Err(_) => Ok(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        let passwd = "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/false\n";
        let group = "root:x:0:\nstaff:x:50:web\n";
        let check = |user: &str, expected: Option<(u32, u32, Option<&str>)>| {
            let found = Identity::parse(user, passwd, group).ok();
            let found = found.as_ref().map(|it| (it.uid, it.gid, it.home.as_deref()));
            assert_eq!(found, expected, "{user:?}");
        };
        check("web", Some((33, 34, Some("/srv"))));
        check("33", Some((33, 34, Some("/srv"))));
        check("web:staff", Some((33, 50, Some("/srv"))));
        check("web:7", Some((33, 7, Some("/srv"))));
        check("1000", Some((1000, 0, None)));
        check("nobody", None);
        check("web:nogroup", None);
    }
}
