//! Other lazy snapshotters, where their programs are here.

use anyhow::{Context as _, Result, ensure};

use super::containerd::two;
use super::{Containerd, Daemon, Engine, Form, Places, Subject, program, version};

/// containerd 2 with a proxy snapshotter of that name.
pub(super) fn proxied(name: &str, socket: &str, root: &str) -> String {
    format!(
        "version = 3\n[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n\
         platform = \"linux\"\nsnapshotter = \"{name}\"\n\
         [proxy_plugins.{name}]\ntype = \"snapshot\"\naddress = \"/run/{socket}\"\n\
         [proxy_plugins.{name}.exports]\nroot = \"/var/lib/{root}\"\n\
         enable_remote_snapshot_annotations = \"true\"\n"
    )
}

pub(super) const SOCI_SOCKET: &str = "soci-snapshotter-grpc/soci-snapshotter-grpc.sock";
pub(super) const SOCI_ROOT: &str = "soci-snapshotter-grpc";
pub(super) const SOCI_NAME: &str = "soci-snapshotter-grpc";
pub(super) const SOCI_CONFIG: &str = "soci-snapshotter-grpc/config.toml";

/// Whole layers, fetched and unpacked side by side, with the settings of the peer's advice.
pub(super) const PARALLEL: &str = r#"[pull_modes.soci_v1]
enable = false
[pull_modes.soci_v2]
enable = false
[content_store]
type = "containerd"
[pull_modes.parallel_pull_unpack]
enable = true
max_concurrent_downloads_per_image = 10
concurrent_download_chunk_size = "8mb"
max_concurrent_unpacks_per_image = 4
discard_unpacked_layers = true
"#;

fn soci(
    places: &Places,
    name: &'static str,
    settings: &str,
    config: String,
    form: Form,
) -> Result<Subject> {
    let (programs, number) = two(places)?;
    let path = program(places.soci.as_deref(), SOCI_NAME).context("--soci DIR says where it is")?;
    let said = version(&path)?;
    ensure!(!said.contains("spanfs"), "{} is ours under the peer's name", path.display());
    Ok(Subject {
        name,
        what: format!("containerd {number}, {said}{settings}"),
        is_ours: false,
        is_eager: form == Form::Plain,
        image: form,
        engine: Engine::Containerd(Box::new(Containerd {
            programs,
            config: proxied("soci", SOCI_SOCKET, SOCI_ROOT),
            snapshotter: "soci",
            daemon: Some(Daemon {
                program: path,
                name: SOCI_NAME,
                config: (SOCI_CONFIG, config),
                socket: SOCI_SOCKET,
                root: SOCI_ROOT,
                knows_trace: false,
            }),
        })),
    })
}

pub(super) fn soci_lazy(places: &Places) -> Result<Subject> {
    soci(places, "soci-lazy", ", index v2", String::new(), Form::Indexed)
}

pub(super) fn soci_parallel(places: &Places) -> Result<Subject> {
    let settings = ", parallel: chunks of 8 MiB, 10 downloads, 4 unpacks";
    soci(places, "soci-parallel", settings, PARALLEL.to_owned(), Form::Plain)
}

pub(super) fn soci_parallel_unpigz(places: &Places) -> Result<Subject> {
    let unpigz = program(None, "unpigz")?;
    let config = format!(
        "{PARALLEL}[pull_modes.parallel_pull_unpack.decompress_streams.gzip]\npath = \"{}\"\n\
         args = [\"-c\"]\n",
        unpigz.display()
    );
    let settings = ", parallel: chunks of 8 MiB, 10 downloads, 4 unpacks by unpigz";
    soci(places, "soci-parallel-unpigz", settings, config, Form::Plain)
}

/// Lazy only for images that are eStargz: `perf` takes them as they are and converts none.
pub(super) fn stargz(places: &Places) -> Result<Subject> {
    let name = "containerd-stargz-grpc";
    let (programs, number) = two(places)?;
    let path = program(places.stargz.as_deref(), name).context("--stargz DIR says where it is")?;
    let said = version(&path)?;
    let (socket, root) = ("containerd-stargz-grpc/containerd-stargz-grpc.sock", name);
    Ok(Subject {
        name: "stargz",
        what: format!("containerd {number}, {said}; lazy only if the image is eStargz"),
        is_ours: false,
        is_eager: false,
        image: Form::Plain,
        engine: Engine::Containerd(Box::new(Containerd {
            programs,
            config: proxied("stargz", socket, root),
            snapshotter: "stargz",
            daemon: Some(Daemon {
                program: path,
                name,
                config: ("containerd-stargz-grpc/config.toml", String::new()),
                socket,
                root,
                knows_trace: false,
            }),
        })),
    })
}
