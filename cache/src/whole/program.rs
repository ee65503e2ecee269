//! A program that decompresses in our place, from its standard input to its standard output.
//!
//! What it gives is believed as little as our own decoder: digests decide. It sees nothing of our
//! environment, runs as nobody where we are root, gains no privileges, writes no files, and is ended
//! with all its children when it makes no progress or nobody wants the layer any more.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, prlimit};
use spanfs_fetch::buffer::Download;
use spanfs_layer::Hasher;
use spanfs_layer::ztoc::Compression;

use super::pass::check;
use super::{STOP_POLL, WholeSpec, source};
use crate::CacheError;
use crate::build::{BuildError, BuildOptions, Built, LayerBuilder};
use crate::cache::claim::Claim;

/// A program and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its file.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// How long it may neither take nor give a byte while there is one to take or to give.
    pub patience: Duration,
}

impl Program {
    /// Why a layer that it decompressed has no zTOC.
    pub(super) fn no_ztoc(&self) -> String {
        format!("it was decompressed by {}, which tells no checkpoints", self.path.display())
    }
}

/// What the builder is to do with the program's output: it is the tar.
pub(super) fn build_options(spec: &WholeSpec<'_>) -> BuildOptions {
    BuildOptions { compression: Some(Compression::Uncompressed), ..spec.build.clone() }
}

/// Decompress by a program. The digest of the blob is checked here already: a wrong blob is no fault
/// of the program's.
pub(super) fn decode(
    program: &Program,
    spec: &WholeSpec<'_>,
    claim: &Claim,
    builder: LayerBuilder<'_>,
    failed: impl Fn(BuildError) -> CacheError + Send,
) -> Result<(Built, Option<Download>), CacheError> {
    let layer = spec.layer();
    let fault =
        |reason: String| CacheError::Decompressor { layer, program: program.path.clone(), reason };
    let started = start(program).map_err(|error| fault(format!("cannot be started: {error}")))?;
    let Started { child, input, output, errors } = started;
    let watch = Watch::new(child);
    let mut blob_hash = Hasher::new(layer.algorithm());
    let (fed, built, said) = std::thread::scope(|scope| {
        let said = scope.spawn(|| tail(errors));
        let watched = &watch;
        // It takes the pipe along: a program whose output is refused is not to wait for its reader.
        let reading = scope.spawn(move || read(output, builder, watched, failed));
        let watching = scope.spawn(|| watch.run(program.patience, spec.stop));
        let mut input = Some(input);
        let fed = source::feed(spec, claim, |bytes| {
            blob_hash.update(bytes);
            // One that ended before its input did may be right; the digests tell.
            if input.as_mut().is_some_and(|input| watch.write(input, bytes).is_err()) {
                input = None;
            }
            Ok(())
        });
        drop(input);
        watch.set(Doing::Giving);
        let built = reading.join().unwrap_or_else(|it| std::panic::resume_unwind(it));
        watch.set(Doing::Ending);
        watching.join().unwrap_or_else(|it| std::panic::resume_unwind(it));
        (fed, built, said.join().unwrap_or_default())
    });
    let status = watch.end();
    spec.check_stop()?;
    let download = fed?;
    if watch.is_late.load(Ordering::Relaxed) {
        let patience = program.patience;
        return Err(fault(format!("it made no progress for {patience:?} and was ended; {said}")));
    }
    check(layer, "its blob has digest", &blob_hash.finish(), &layer)?;
    let status = match status {
        Ok(status) => status,
        Err(error) => return Err(fault(format!("its end is unknown: {error}; {said}"))),
    };
    let mut built = match built {
        Err(CacheError::Build { source, .. }) => {
            let causes = causes(&source);
            return Err(fault(format!("its output is no layer: {causes}; {status}; {said}")));
        }
        built => built?,
    };
    if !status.success() {
        return Err(fault(format!("{status}; {said}")));
    }
    if let Some(diff_id) = spec.diff_id.filter(|it| it.algorithm() == built.diff_id.algorithm())
        && built.diff_id != diff_id
    {
        let found = built.diff_id;
        let reason = format!("its output has digest {found}, expected {diff_id}; {said}");
        return Err(fault(reason));
    }
    built.blob_digest = layer;
    Ok((built, download))
}

fn causes(error: &dyn std::error::Error) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

struct Started {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    errors: ChildStderr,
}

/// The user that owns nothing.
const NOBODY: u32 = 65_534;

/// Start it on a thread of its own: what that thread gave up for ever, the program has not.
fn start(program: &Program) -> io::Result<Started> {
    let start = || {
        rustix::thread::set_no_new_privs(true)?;
        let mut command = Command::new(&program.path);
        command
            .args(&program.args)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if rustix::process::geteuid().is_root() {
            command.gid(NOBODY).uid(NOBODY);
        }
        let mut child = command.spawn()?;
        let nothing = Rlimit { current: Some(0), maximum: Some(0) };
        for resource in [Resource::Fsize, Resource::Core] {
            // It may have ended already.
            let _ = prlimit(pid_of(&child), resource, nothing);
        }
        let missing = || io::Error::other("it has no pipes");
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = child.stdout.take().ok_or_else(missing)?;
        let errors = child.stderr.take().ok_or_else(missing)?;
        Ok(Started { child, input, output, errors })
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("decompressor".to_owned());
        let thread = thread.spawn_scoped(scope, start)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// Bytes read at once from the program.
const PIECE_LEN: usize = 256 << 10;

fn read(
    mut output: ChildStdout,
    mut builder: LayerBuilder<'_>,
    watch: &Watch,
    failed: impl Fn(BuildError) -> CacheError,
) -> Result<Built, CacheError> {
    let mut buffer = vec![0; PIECE_LEN];
    let mut take = || loop {
        match output.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                watch.moved();
                builder.feed(buffer.get(..count).unwrap_or_default())?;
                watch.moved();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // As if it had ended: then it gave too little, and its status says why.
            Err(_) => return Ok(()),
        }
    };
    let taken = take().and_then(|()| builder.finish());
    taken.map_err(failed)
}

/// The end of what it complained of is what tells.
const SAID_LEN_MAX: usize = 1 << 10;

fn tail(mut errors: ChildStderr) -> String {
    let (mut said, mut piece) = (Vec::new(), [0; 1024]);
    while let Ok(count) = errors.read(&mut piece)
        && count > 0
    {
        said.extend_from_slice(piece.get(..count).unwrap_or_default());
        let surplus = said.len().saturating_sub(SAID_LEN_MAX);
        said.drain(..surplus);
    }
    match String::from_utf8_lossy(&said).trim() {
        "" => "it said nothing".to_owned(),
        said => format!("it said: {said}"),
    }
}

/// What happens between us and the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// We wait for the source.
    Nothing,
    /// It is given bytes.
    Taking,
    /// It has all of them, and is to give the rest of its own.
    Giving,
    /// It is to end.
    Ending,
}

/// Ends a program that is stuck.
struct Watch {
    child: Mutex<Child>,
    doing: Mutex<(Doing, Instant)>,
    is_late: AtomicBool,
}

impl Watch {
    fn new(child: Child) -> Self {
        let doing = Mutex::new((Doing::Nothing, Instant::now()));
        Self { child: Mutex::new(child), doing, is_late: AtomicBool::new(false) }
    }

    fn set(&self, doing: Doing) {
        *self.doing.lock() = (doing, Instant::now());
    }

    fn moved(&self) {
        self.doing.lock().1 = Instant::now();
    }

    fn write(&self, input: &mut ChildStdin, bytes: &[u8]) -> io::Result<()> {
        self.set(Doing::Taking);
        let written = input.write_all(bytes);
        self.set(Doing::Nothing);
        written
    }

    /// Until the output has ended; then its status is a matter of moments.
    fn run(&self, patience: Duration, stop: &AtomicBool) {
        loop {
            let (doing, since) = *self.doing.lock();
            let is_late = doing != Doing::Nothing && since.elapsed() > patience;
            if is_late || stop.load(Ordering::Relaxed) {
                self.is_late.store(is_late, Ordering::Relaxed);
                return self.kill();
            }
            if doing == Doing::Ending && self.child.lock().try_wait().is_ok_and(|it| it.is_some()) {
                return;
            }
            std::thread::sleep(if doing == Doing::Ending { END_POLL } else { STOP_POLL });
        }
    }

    fn kill(&self) {
        let mut child = self.child.lock();
        // Its own children hold our pipes too. Not once it is reaped: its number may be another's.
        if let (Ok(None), Some(group)) = (child.try_wait(), pid_of(&child)) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// It has ended, or was ended.
    fn end(&self) -> io::Result<ExitStatus> {
        self.kill();
        self.child.lock().wait()
    }
}

/// How often an ending program is looked at.
const END_POLL: Duration = Duration::from_millis(1);

impl Drop for Watch {
    fn drop(&mut self) {
        // Nothing waits for it after an error or a panic.
        drop(self.end());
    }
}
