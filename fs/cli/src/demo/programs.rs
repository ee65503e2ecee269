//! Programs of this machine that an image can be made of, with what they need.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program with its files.
#[derive(Clone, Debug, Default)]
pub(super) struct Program {
    /// The executable and the libraries that its loader maps.
    pub(super) closure: BTreeSet<PathBuf>,
    /// Directories that it reads at run time.
    pub(super) directories: Vec<PathBuf>,
    /// What to start.
    pub(super) command: Vec<String>,
}

/// A start that touches a good part of the runtime, as a service's start does.
const PYTHON_START: &str = "import argparse, asyncio, decimal, email.message, html.parser, \
     http.client, json, logging.config, sys, unittest, urllib.request, xml.etree.ElementTree; \
     print('hello from Python', sys.version.split()[0], 'with', len(sys.modules), 'modules')";
const PERL_START: &str = "use POSIX; use Encode; use Data::Dumper; use File::Temp; \
     printf \"hello from Perl %vd with %d modules\\n\", $^V, scalar keys %INC;";
const SHELL_START: &str = "echo hello from the shell";

/// What this machine has, best to start first. Empty where not even a shell is a native program.
pub(super) fn find() -> Vec<Program> {
    [python(), perl(), shell()].into_iter().flatten().collect()
}

fn python() -> Option<Program> {
    let ask = "import os, sys, sysconfig; print(os.path.realpath(sys.executable)); \
               print(sysconfig.get_path('stdlib')); print(sysconfig.get_path('platstdlib'))";
    let answer = answer(Command::new("python3").args(["-I", "-c", ask]))?;
    let mut lines = answer.lines().map(PathBuf::from);
    let executable = lines.next().filter(|path| path.is_absolute())?;
    let mut directories: Vec<PathBuf> = lines.filter(|path| path.is_dir()).collect();
    directories.dedup();
    let mut closure = closure(&executable)?;
    for directory in &directories {
        let extensions = fs::read_dir(directory.join("lib-dynload")).ok();
        for extension in extensions.into_iter().flatten().flatten() {
            closure.extend(libraries(&extension.path()).unwrap_or_default());
        }
    }
    let command = ["-I", "-B", "-c", PYTHON_START].map(str::to_owned);
    Some(program(&executable, closure, directories, &command))
}

fn perl() -> Option<Program> {
    let executable = native(Path::new("/usr/bin/perl"))?;
    let answer = answer(Command::new(&executable).args(["-e", "print join qq(\\n), $^X, @INC"]))?;
    let directories = answer.lines().skip(1).map(PathBuf::from);
    let directories = directories.filter(|path| path.is_absolute() && path.is_dir()).collect();
    let closure = closure(&executable)?;
    Some(program(&executable, closure, directories, &["-e", PERL_START].map(str::to_owned)))
}

fn shell() -> Option<Program> {
    let executable = ["/usr/bin/bash", "/bin/bash", "/bin/sh"].iter().find_map(|path| {
        let path = Path::new(path);
        native(path).map(|_| path.to_owned())
    })?;
    let closure = closure(&executable)?;
    Some(program(&executable, closure, Vec::new(), &["-c", SHELL_START].map(str::to_owned)))
}

fn program(
    executable: &Path,
    closure: BTreeSet<PathBuf>,
    directories: Vec<PathBuf>,
    arguments: &[String],
) -> Program {
    let mut command = vec![executable.to_string_lossy().into_owned()];
    command.extend_from_slice(arguments);
    Program { closure, directories, command }
}

/// The path, if an ELF file is behind it.
fn native(path: &Path) -> Option<PathBuf> {
    use std::io::Read as _;
    let mut magic = [0; 4];
    fs::File::open(path).ok()?.read_exact(&mut magic).ok()?;
    (&magic == b"\x7fELF").then(|| path.to_owned())
}

/// The executable and what its loader would map.
fn closure(executable: &Path) -> Option<BTreeSet<PathBuf>> {
    native(executable)?;
    let mut closure = libraries(executable)?;
    closure.insert(executable.to_owned());
    Some(closure)
}

/// The dynamic loader of this machine knows best what a program needs: asked by this variable, it
/// lists the libraries and does not start the program. Shared objects are asked through `ldd`.
fn libraries(object: &Path) -> Option<BTreeSet<PathBuf>> {
    let listed = if object.extension().is_some_and(|extension| extension == "so") {
        answer(Command::new("ldd").arg(object))?
    } else {
        answer(Command::new(object).env("LD_TRACE_LOADED_OBJECTS", "1"))?
    };
    let paths = listed.split_whitespace().filter(|word| word.starts_with('/'));
    Some(paths.map(PathBuf::from).filter(|path| path.is_file()).collect())
}

/// stdout of a command that succeeds.
fn answer(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    if !output.status.success() {
        return None;
    }
    OsString::from_vec(output.stdout).into_string().ok()
}
