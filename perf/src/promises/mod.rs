//! What spanfs promises of its lazy mount and its snapshotter, one module a subject.

mod daemon;
pub(crate) mod edge;
mod edge_restart;
mod entries;
mod first_byte;
mod memory;
mod program;
mod pull_ready;
mod readers;
mod sequential;
mod small_files;
mod soci_create;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use spanfs_layer::Digest;
use spanfs_registry::{Link, Registry};

use crate::content::{self, Layer};
use crate::lab::{Lab, run as run_command};
use crate::report::Report;
use crate::subject::{self, Places, Subject};

type Promise = fn(&Lab, &mut Report) -> Result<()>;

const PROMISES: [(&str, Promise); 16] = [
    ("first-byte", first_byte::run),
    ("sequential", sequential::run),
    ("readers", readers::run),
    ("memory", memory::run),
    ("entries", entries::run),
    ("small-files", small_files::run),
    ("program", program::run),
    ("pull-ready", pull_ready::run),
    ("soci-create", soci_create::run),
    ("edge", edge::run),
    ("edge-options", edge::run_options),
    ("daemon-calls", daemon::calls),
    ("daemon-prepare", daemon::prepare),
    ("daemon-memory", daemon::memory),
    ("edge-kill", edge_restart::kill),
    ("edge-restart", edge_restart::restart),
];

/// Check the named promises, or all.
pub(crate) fn run(names: &[String], lab: &Lab, report: &mut Report) -> Result<()> {
    if let Some(unknown) = names.iter().find(|name| PROMISES.iter().all(|(n, _)| n != name)) {
        let known: Vec<_> = PROMISES.iter().map(|(name, _)| *name).collect();
        bail!("unknown promise {unknown}; there are {}", known.join(", "));
    }
    for (name, promise) in PROMISES {
        if (names.is_empty() || names.iter().any(|wanted| wanted == name))
            && let Err(error) = promise(lab, report)
        {
            report.failed(name, &error);
        }
    }
    Ok(())
}

/// Our programs beside `spanfs`, and the containerd 2 of `tests/peers/build`.
fn places(lab: &Lab) -> Places {
    let spanfs = lab.spanfs.parent().map_or_else(PathBuf::new, Path::to_owned);
    let containerd = std::env::var_os("SPANFS_TEST_PEERS").map(PathBuf::from);
    Places { containerd, spanfs, soci: None, stargz: None, erofs_utils: None }
}

/// A subject of the benchmark, or why it can't be had.
fn subject(lab: &Lab, name: &str) -> Result<Subject> {
    let (found, absent) = subject::find(&[name.to_owned()], &places(lab))?;
    let reason = absent.first().map(|absent| absent.reason.clone()).unwrap_or_default();
    found.into_iter().next().context(reason)
}

/// The layout of a synthetic image with its SOCI index; made once and kept in the scratch directory.
fn indexed_image<I>(lab: &Lab, name: &str, layers: impl FnOnce() -> Result<I>) -> Result<PathBuf>
where
    I: IntoIterator<Item = Layer>,
{
    let plain = lab.scratch.join("images").join(name);
    if !plain.join("oci-layout").exists() {
        content::write_layout(&plain, layers()?)?;
    }
    index(lab, &plain, name)
}

/// The converted form of a layout, made once and kept in the scratch directory.
fn index(lab: &Lab, plain: &Path, name: &str) -> Result<PathBuf> {
    let indexed = lab.scratch.join("indexed").join(name);
    if !indexed.join("oci-layout").exists() {
        fs::create_dir_all(&indexed)?;
        let dir = lab.dir("index-work")?;
        run_command(
            lab.spanfs(&dir)
                .arg("index")
                .args(["--min-layer-size", "0", "--output"])
                .arg(format!("oci:{}:latest", indexed.display()))
                .arg(format!("oci:{}:latest", plain.display())),
        )?;
    }
    Ok(indexed)
}

/// A registry that serves a layout as `REFERENCE` behind a link.
fn serve(layout: &Path, link: Link) -> Result<(Registry, String)> {
    let registry = Registry::builder().link(link).start()?;
    registry.put_image("perf", layout).with_context(|| layout.display().to_string())?;
    let reference = registry.reference("perf", "latest");
    Ok((registry, reference))
}

/// Digest of the only layer of a synthetic image: its largest blob.
fn only_layer(layout: &Path) -> Result<Digest> {
    let blobs = fs::read_dir(layout.join("blobs/sha256"))?.collect::<Result<Vec<_>, _>>()?;
    let largest = blobs
        .iter()
        .max_by_key(|blob| blob.metadata().map_or(0, |meta| meta.len()))
        .context("the layout has no blob")?;
    let hex = largest.file_name();
    Ok(format!("sha256:{}", hex.to_string_lossy()).parse()?)
}
