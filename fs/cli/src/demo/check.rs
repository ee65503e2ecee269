//! Every file of the mounted image against what was put into it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use serde_json::Value;
use spanfs_layer::{Algorithm, Digest, Hasher};

use super::image::Expected;
use crate::failure::{Code, Failure};
use crate::starts::{self, Stages};

const ATTEMPTED: &str = "checking every file of the mounted image";

/// How many paths were checked.
pub(super) fn check(
    stages: &Stages<'_>,
    contents: &BTreeMap<PathBuf, Expected>,
) -> Result<usize, Failure> {
    let failed = |error: io::Error| Failure::io(ATTEMPTED, &error);
    let place = stages.directory.join("mounted");
    fs::create_dir(&place).map_err(failed)?;
    let _mounted = Mounted::at(&place, stages).map_err(failed)?;
    let total = contents.values().map(len).sum();
    let mut bar = stages.output.bar("checking every file", total);
    let mut done = 0;
    for (path, expected) in contents {
        stages.check_stop()?;
        let shown = place.join(path.strip_prefix("/").unwrap_or(path));
        let found = look(&shown, expected);
        let found = found.map_err(|error| {
            Failure::io(format!("reading {} of the mounted image", path.display()), &error)
        })?;
        if found != *expected {
            let reason = format!("{} is {found:?}, expected {expected:?}", path.display());
            return Err(Failure::new(Code::Corrupt, ATTEMPTED, reason));
        }
        done += len(expected);
        bar.set(done);
    }
    bar.finish("all as in the source");
    Ok(contents.len())
}

fn len(expected: &Expected) -> u64 {
    match expected {
        Expected::File { len, .. } => *len,
        _ => 0,
    }
}

fn look(path: &Path, expected: &Expected) -> io::Result<Expected> {
    let metadata = fs::symlink_metadata(path)?;
    let mode = metadata.mode() & 0o7777;
    if metadata.is_dir() {
        return Ok(Expected::Directory { mode });
    }
    if metadata.is_symlink() {
        return Ok(Expected::Symlink { target: fs::read_link(path)? });
    }
    let digest = match hash(path) {
        Ok(digest) => digest,
        // A file that its owner may not read is no business of ours: root of the image may.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => match expected {
            Expected::File { digest, mode, .. } if mode & 0o400 == 0 => *digest,
            _ => return Err(error),
        },
        Err(error) => return Err(error),
    };
    Ok(Expected::File { mode, mtime: metadata.mtime(), len: metadata.len(), digest })
}

fn hash(path: &Path) -> io::Result<Digest> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// A mount in the foreground of a child of ours: it ends with the demo, so that nobody need keep it for
/// anybody. It must go, however the check ends.
struct Mounted(Child);

impl Mounted {
    fn at(place: &Path, stages: &Stages<'_>) -> io::Result<Self> {
        let mut command = stages.again("mount");
        command.args(["--foreground", "--json"]).arg(place);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut mounted = Self(child);
        let mut report = String::new();
        if let Some(stdout) = &mut mounted.0.stdout {
            BufReader::new(stdout).read_line(&mut report)?;
        }
        // What kept it from mounting it has said itself.
        let reason = || io::Error::other(format!("mounting it failed: {report:?}"));
        let report: Option<Value> = serde_json::from_str(&report).ok();
        report.filter(|report| report["directory"].is_string()).ok_or_else(reason)?;
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        starts::end(&mut self.0);
    }
}
