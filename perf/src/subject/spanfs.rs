//! Ours, below containerd and by itself.

use anyhow::{Context as _, Result};

use super::containerd::two;
use super::peers::{PARALLEL, SOCI_CONFIG, SOCI_NAME, SOCI_ROOT, SOCI_SOCKET, proxied};
use super::{Containerd, Daemon, Engine, Form, Places, Standalone, Subject, program, version};

struct Ours {
    name: &'static str,
    settings: &'static str,
    config: String,
    form: Form,
    knows_trace: bool,
}

fn ours(places: &Places, ours: Ours) -> Result<Subject> {
    let (programs, number) = two(places)?;
    let path = program(Some(&places.spanfs), "spanfs-snapshotter")
        .context("cargo build --release -p spanfs-snapshotter, or --spanfs DIR")?;
    Ok(Subject {
        name: ours.name,
        what: format!("containerd {number}, {}{}", version(&path)?, ours.settings),
        is_ours: true,
        is_eager: ours.form == Form::Plain,
        image: ours.form,
        engine: Engine::Containerd(Box::new(Containerd {
            programs,
            config: proxied("soci", SOCI_SOCKET, SOCI_ROOT),
            snapshotter: "soci",
            daemon: Some(Daemon {
                program: path,
                // The name chooses the peer's paths.
                name: SOCI_NAME,
                config: (SOCI_CONFIG, ours.config),
                socket: SOCI_SOCKET,
                root: SOCI_ROOT,
                knows_trace: ours.knows_trace,
            }),
        })),
    })
}

pub(super) fn lazy(places: &Places) -> Result<Subject> {
    let (name, settings) = ("spanfs-lazy", ", index v2, first start anywhere");
    ours(
        places,
        Ours { name, settings, config: String::new(), form: Form::Indexed, knows_trace: false },
    )
}

/// Nothing is fetched before it is read: a promise broken on purpose.
pub(super) fn lazy_no_prefetch(places: &Places) -> Result<Subject> {
    let (name, settings) = ("spanfs-lazy-no-prefetch", ", index v2, without background");
    let config = "[background_fetch]\ndisable = true\n".to_owned();
    ours(places, Ours { name, settings, config, form: Form::Indexed, knows_trace: false })
}

pub(super) fn trace(places: &Places) -> Result<Subject> {
    let (name, settings) = ("spanfs-trace", ", index v2, with the trace of an earlier start");
    ours(
        places,
        Ours { name, settings, config: String::new(), form: Form::Indexed, knows_trace: true },
    )
}

pub(super) fn parallel(places: &Places) -> Result<Subject> {
    let (name, settings) =
        ("spanfs-parallel", ", parallel: chunks of 8 MiB, 10 downloads, 4 unpacks");
    let config = PARALLEL.to_owned();
    ours(places, Ours { name, settings, config, form: Form::Plain, knows_trace: false })
}

/// The same where EROFS can't be had.
pub(super) fn files(places: &Places) -> Result<Subject> {
    let (name, settings) =
        ("spanfs-files", ", parallel as spanfs-parallel, layers unpacked to files");
    let config = format!("{PARALLEL}[spanfs]\nfront = \"files\"\n");
    ours(places, Ours { name, settings, config, form: Form::Plain, knows_trace: false })
}

/// A layer over one connection: a promise broken on purpose where each gets a share of the link.
pub(super) fn parallel_one(places: &Places) -> Result<Subject> {
    let (name, settings) =
        ("spanfs-parallel-one", ", parallel: chunks of 8 MiB, 1 download, 4 unpacks");
    let config = PARALLEL.replace("downloads_per_image = 10", "downloads_per_image = 1");
    assert_ne!(config, PARALLEL, "the setting has another name");
    ours(places, Ours { name, settings, config, form: Form::Plain, knows_trace: false })
}

/// `spanfs run`: no containerd at all.
pub(super) fn standalone(places: &Places) -> Result<Subject> {
    let path = program(Some(&places.spanfs), "spanfs")
        .context("cargo build --release -p spanfs, or --spanfs DIR")?;
    Ok(Subject {
        name: "spanfs-standalone",
        what: format!("{} run, index v2, first start anywhere", version(&path)?),
        is_ours: true,
        is_eager: false,
        image: Form::Indexed,
        engine: Engine::Standalone(Standalone { program: path }),
    })
}
