//! containerd by itself: overlayfs and EROFS.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::{Containerd, Engine, Form, Places, Subject, program, version};

/// Bytes of a range when a layer is fetched by several requests at once.
const FETCH_BUFFER: u64 = 8 << 20;
const UNPACKS: u32 = 4;

/// containerd's version of a directory or of PATH, as `2.3.4`.
fn containerd(directory: Option<&Path>) -> Result<(PathBuf, String)> {
    let path = program(directory, "containerd")?;
    let said = version(&path)?;
    let number = said.split_whitespace().find_map(|word| {
        let number = word.strip_prefix('v').unwrap_or(word);
        number.starts_with(|c: char| c.is_ascii_digit()).then(|| number.to_owned())
    });
    let number = number.with_context(|| format!("{}: no version in {said:?}", path.display()))?;
    Ok((path, number))
}

/// The directory of containerd 2, and its version.
pub(super) fn two(places: &Places) -> Result<(Vec<PathBuf>, String)> {
    let directory = places.containerd.as_deref();
    let (path, number) = containerd(directory)?;
    ensure!(
        !number.starts_with("1."),
        "containerd 2 is not here ({} is {number}): --containerd DIR, or tests/peers/build builds it",
        path.display()
    );
    Ok((directory.map(Path::to_owned).into_iter().collect(), number))
}

fn plain(name: &'static str, what: String, containerd: Containerd) -> Subject {
    Subject {
        name,
        what,
        is_ours: false,
        is_eager: true,
        image: Form::Plain,
        engine: Engine::Containerd(Box::new(containerd)),
    }
}

/// What the transfer service of containerd 2 is told beside the snapshotter.
struct Transfer {
    snapshotter: &'static str,
    differ: &'static str,
    more: String,
}

impl Transfer {
    fn config(&self) -> String {
        let Self { snapshotter, differ, more } = self;
        format!(
            "version = 3\n[plugins.'io.containerd.transfer.v1.local']\n{more}\
             [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n\
             platform = \"linux\"\nsnapshotter = \"{snapshotter}\"\ndiffer = \"{differ}\"\n"
        )
    }
}

pub(super) fn overlayfs_one(_: &Places) -> Result<Subject> {
    let (path, number) = containerd(None)?;
    ensure!(number.starts_with("1."), "{} is {number}, not 1.x", path.display());
    let containerd = Containerd {
        programs: Vec::new(),
        config: "version = 2\n".to_owned(),
        snapshotter: "overlayfs",
        daemon: None,
    };
    Ok(plain("overlayfs-1.6", format!("containerd {number}, overlayfs"), containerd))
}

pub(super) fn overlayfs(places: &Places) -> Result<Subject> {
    let (programs, number) = two(places)?;
    let transfer = Transfer { snapshotter: "overlayfs", differ: "walking", more: String::new() };
    let containerd =
        Containerd { programs, config: transfer.config(), snapshotter: "overlayfs", daemon: None };
    Ok(plain("overlayfs", format!("containerd {number}, overlayfs"), containerd))
}

pub(super) fn overlayfs_parallel(places: &Places) -> Result<Subject> {
    let (programs, number) = two(places)?;
    let transfer = Transfer {
        snapshotter: "overlayfs",
        differ: "walking",
        more: format!("concurrent_layer_fetch_buffer = {FETCH_BUFFER}\n"),
    };
    let containerd =
        Containerd { programs, config: transfer.config(), snapshotter: "overlayfs", daemon: None };
    let what = format!("containerd {number}, overlayfs, layers fetched in ranges of 8 MiB");
    Ok(plain("overlayfs-parallel", what, containerd))
}

/// Its own EROFS snapshotter and differ, at their best.
pub(super) fn erofs(places: &Places) -> Result<Subject> {
    let (mut programs, number) = two(places)?;
    let mkfs = program(places.erofs_utils.as_deref(), "mkfs.erofs").context(
        "mkfs.erofs 1.7 or newer is needed: --erofs-utils DIR, or tests/peers/erofs-utils.sh",
    )?;
    let mkfs_version = version(&mkfs)?;
    programs.extend(mkfs.parent().map(Path::to_owned));
    let transfer = Transfer {
        snapshotter: "erofs",
        differ: "erofs",
        more: format!(
            "concurrent_layer_fetch_buffer = {FETCH_BUFFER}\nmax_concurrent_unpacks = {UNPACKS}\n"
        ),
    };
    let config = transfer.config()
        + "[plugins.'io.containerd.service.v1.diff-service']\ndefault = [\"erofs\", \"walking\"]\n\
           [plugins.'io.containerd.differ.v1.erofs']\nmkfs_options = [\"--sort=none\"]\n";
    let containerd = Containerd { programs, config, snapshotter: "erofs", daemon: None };
    let what = format!(
        "containerd {number}, erofs snapshotter and differ ({mkfs_version}, --sort=none), ranges of \
         8 MiB, {UNPACKS} unpacks"
    );
    Ok(plain("erofs", what, containerd))
}
