//! Pulled by containerd's own client, indexed and pushed by `soci`, found and mounted by spanfs.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde_json::Value;
use spanfs::image::{Discovery, Image, Images, ImagesOptions, LayerSource, Pull};
use spanfs::mounted::{ShowOptions, show};
use spanfs_cache::{Cache, CacheOptions};
use spanfs_fetch::RegistryOptions;
use spanfs_layer::oci::Platform;
use spanfs_registry::Registry;
use tempfile::TempDir;

use crate::containerd::Containerd;
use crate::golden::SOCI;
use crate::image;

/// Debian's registry, which has no referrers API. Ends with its drop.
struct DockerRegistry {
    child: Child,
    port: u16,
    _directory: TempDir,
}

impl DockerRegistry {
    fn start() -> Option<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: \
             {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
            data.display()
        );
        let path = directory.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&path).stdout(Stdio::null()).stderr(Stdio::null());
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) if std::env::var_os("SPANFS_TEST_STRICT").is_some_and(|it| it == "1") => {
                panic!("docker-registry is needed: {error}")
            }
            Err(error) => {
                eprintln!("skipped: docker-registry: {error}");
                return None;
            }
        };
        let registry = Self { child, port, _directory: directory };
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        // Both fail only where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(mut command: Command) -> Output {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    output
}

fn ctr(containerd: &Containerd, arguments: &[&str]) {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(containerd.address()).args(arguments);
    run(command);
}

fn soci(containerd: &Containerd, arguments: &[&str]) -> String {
    let mut command = Command::new(SOCI);
    command.env_clear().env("CONTAINERD_ADDRESS", containerd.address());
    command.arg("--root").arg(containerd.scratch().join("soci")).args(arguments);
    String::from_utf8(run(command).stdout).unwrap()
}

fn find(name: &str) -> (Images, Image, Discovery) {
    let registry = RegistryOptions { plain_http: true, ..RegistryOptions::default() };
    let options = ImagesOptions { registry, ..ImagesOptions::default() };
    let images = Images::start(options).unwrap();
    let platform: Platform = "linux/amd64".parse().unwrap();
    let image = images.find(&name.parse().unwrap(), &platform).unwrap();
    let discovery = images.discover(&image);
    (images, image, discovery)
}

const BUILD: [&str; 4] = ["--min-layer-size", "0", "--span-size", "65536"];

/// Create, push and find an index of version 1 in a registry that holds the image already.
fn version_1(containerd: &Containerd, host: &str) {
    let name = format!("{host}/team/app:1");
    ctr(containerd, &["content", "fetch", "--plain-http", &name]);
    soci(containerd, &[&["create"], &BUILD[..], &[&name]].concat());
    let index = soci(containerd, &["index", "list", "-q", "--ref", &name]);
    let (_, _, before) = find(&name);
    assert!(matches!(before, Discovery::None { .. }), "{before:?}");
    let pushed = soci(containerd, &["--debug", "push", "--plain-http", "--user", "u:p", &name]);
    assert!(pushed.contains("successfully pushed artifact"), "{pushed}");
    // As the peer tells of them.
    let of_index = format!("http req PUT http://{host}/v2/team/app/manifests/{}", index.trim());
    assert!(pushed.lines().any(|line| line == of_index), "{pushed}");
    assert!(pushed.lines().any(|line| line == "http res 201 Created"), "{pushed}");
    let (_, image, found) = find(&name);
    let Discovery::Found { digest, index: found, by } = found else { panic!("{found:?}") };
    assert_eq!((digest.to_string().as_str(), by), (index.trim(), "referrers"));
    assert!(image.layers().all(|(layer, _)| found.ztoc(&layer.digest).is_some()));
    let again = soci(containerd, &["push", "--plain-http", "--existing-index", "skip", &name]);
    assert!(again.contains("skipping pushing artifacts for image manifest"), "{again}");
}

#[test]
fn an_index_is_found_where_it_was_pushed() {
    let Some(containerd) = Containerd::start() else { return };
    containerd.client();
    // With the referrers API, and with the tag that stands in for it.
    let registry = Registry::builder().start().unwrap();
    image::serve(&registry, "plain", "team/app", "1");
    version_1(&containerd, &registry.addr().to_string());
    let Some(docker) = DockerRegistry::start() else { return };
    let host = format!("127.0.0.1:{}", docker.port);
    let mut copy = Command::new("skopeo");
    let from = format!("oci:{}", image::layout("plain").display());
    copy.args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", &from]);
    copy.arg(format!("docker://{host}/team/app:1"));
    run(copy);
    version_1(&containerd, &host);
}

#[test]
fn a_converted_image_is_pushed_and_mounted() {
    let Some(containerd) = Containerd::start() else { return };
    containerd.client();
    let registry = Registry::builder().start().unwrap();
    image::serve(&registry, "plain-multi", "team/app", "1");
    let host = registry.addr().to_string();
    let (name, converted) = (format!("{host}/team/app:1"), format!("{host}/team/lazy:1"));
    ctr(&containerd, &["content", "fetch", "--plain-http", "--all-platforms", &name]);
    let convert = ["--all-platforms", &name, &converted];
    soci(&containerd, &[&["convert"], &BUILD[..], &convert].concat());
    ctr(&containerd, &["images", "push", "--plain-http", &converted]);
    let (images, image, found) = find(&converted);
    let Discovery::Found { by, .. } = &found else { panic!("{found:?}") };
    assert_eq!(*by, "annotation");
    let scratch = tempfile::tempdir().unwrap();
    let cache_dir = scratch.path().join("cache");
    let cache = Cache::open(CacheOptions::new(cache_dir.clone(), 2)).unwrap();
    let stop = AtomicBool::new(false);
    let source = LayerSource {
        cache: &cache,
        directory: &cache_dir,
        stop: &stop,
        progress: &|layer, _| panic!("{} is fetched whole", layer.digest),
        pull: Pull::default(),
    };
    let layers = images.open_layers(&image, &found, None, &source).unwrap();
    let mount_point = scratch.path().join("mount");
    std::fs::create_dir(&mount_point).unwrap();
    let options = ShowOptions {
        transport: None,
        enable_uring: false,
        front: None,
        state: scratch.path().join("state"),
        indexes: scratch.path().join("indexes"),
        upper: None,
        bare_layer: false,
        holding: None,
        succeeds: false,
    };
    let mounted = show(&layers, &mount_point, &options).unwrap();
    let compared = files_are_those_of_the_image(&mount_point);
    mounted.unmount(Duration::from_secs(30)).unwrap();
    assert!(compared > 10, "{compared} files");
}

/// How many files there are; each with the content that its maker wrote down.
fn files_are_those_of_the_image(mount_point: &Path) -> usize {
    let tree = String::from_utf8(image::fixture("tree.jsonl")).unwrap();
    let rows = tree.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut compared = 0;
    for row in rows.filter(|row| row["type"] == "reg" && row["sha256"].is_string()) {
        let path = row["path"].as_str().unwrap();
        let bytes = std::fs::read(mount_point.join(path.trim_start_matches('/'))).unwrap();
        let found = spanfs_layer::Digest::of(&bytes).hex().to_string();
        assert_eq!(found, row["sha256"].as_str().unwrap(), "{path}");
        compared += 1;
    }
    compared
}
