//! Real peers of the tests: registries and skopeo, started by us and ended by process id.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A child that does not outlive the test.
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// True where a test may not be skipped.
pub fn strict() -> bool {
    std::env::var_os("SPANFS_TEST_STRICT").is_some_and(|value| value == "1")
}

/// Whether all of these programs are there and, if asked for, root; says what is missing.
pub fn able(programs: &[&str], root: bool) -> bool {
    let mut missing: Vec<String> = programs
        .iter()
        .filter(|program| {
            !std::env::var_os("PATH")
                .iter()
                .flat_map(std::env::split_paths)
                .any(|dir| dir.join(program).exists())
        })
        .map(|program| (*program).to_owned())
        .collect();
    if root && !rustix::process::geteuid().is_root() {
        missing.push("root".to_owned());
    }
    assert!(missing.is_empty() || !strict(), "missing in a strict run: {missing:?}");
    if !missing.is_empty() {
        eprintln!("skipped: this machine lacks {missing:?}");
    }
    missing.is_empty()
}

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").into()
}

/// A golden fixture.
pub fn fixture(path: &str) -> PathBuf {
    repository().join("tests/fixtures").join(path)
}

/// The built `spanfs` command.
pub fn spanfs() -> PathBuf {
    built("spanfs")
}

/// A program of ours, as `tests/run` builds it before it runs the tests. Another stands in for it
/// where `SPANFS_TEST_PROGRAM_name` says so.
pub fn built(program: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(format!("SPANFS_TEST_PROGRAM_{program}")) {
        return path.into();
    }
    let own = std::env::current_exe().expect("a test has a path");
    let profile = own.ancestors().nth(2).expect("target/PROFILE/deps/test");
    let path = profile.join(program);
    assert!(path.exists(), "{} is not built: cargo build --workspace --bins", path.display());
    path
}

/// A port on loopback that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("loopback").port()
}

/// How a [`DockerRegistry`] guards itself.
#[derive(Default)]
pub struct Guarded {
    /// Certificate and key files.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// With it: authority whose certificates clients must have.
    pub client_ca: Option<PathBuf>,
    /// htpasswd file (bcrypt).
    pub htpasswd: Option<PathBuf>,
    /// Token realm and the certificate that signs tokens.
    pub token: Option<(String, PathBuf)>,
}

/// Debian's docker-registry on loopback.
pub struct DockerRegistry {
    _process: Guard,
    _dir: TempDir,
    /// `127.0.0.1:port`.
    pub address: String,
}

impl DockerRegistry {
    /// Starts it on a free port and waits until it listens.
    pub fn start(guarded: &Guarded) -> Self {
        let dir = TempDir::new().expect("temporary directory");
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let mut config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: \
             {{rootdirectory: {}}}}}\nhttp:\n  addr: {address}\n",
            dir.path().join("data").display()
        );
        if let Some((certificate, key)) = &guarded.tls {
            let clients = guarded.client_ca.as_ref();
            let clients = clients.map(|ca| format!(", clientcas: [{}]", ca.display()));
            config += &format!(
                "  tls: {{certificate: {}, key: {}{}}}\n",
                certificate.display(),
                key.display(),
                clients.unwrap_or_default()
            );
        }
        if let Some(htpasswd) = &guarded.htpasswd {
            config +=
                &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", htpasswd.display());
        }
        if let Some((realm, bundle)) = &guarded.token {
            config += &format!(
                "auth: {{token: {{realm: \"{realm}\", service: test-registry, issuer: test-issuer, \
                 rootcertbundle: {}}}}}\n",
                bundle.display()
            );
        }
        let path = dir.path().join("config.yml");
        fs::write(&path, config).expect("write config");
        let log = fs::File::create(dir.path().join("log")).expect("log file");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log file"))
            .stderr(log)
            .spawn()
            .expect("docker-registry starts");
        let process = Guard(child);
        wait_for_listener("docker-registry", &address);
        Self { _process: process, _dir: dir, address }
    }
}

/// go-containerregistry's registry on loopback: it has the referrers API.
pub struct ReferrersRegistry {
    _process: Guard,
    /// `127.0.0.1:port`.
    pub address: String,
}

impl ReferrersRegistry {
    /// Starts the one that `tests/peers/build` has put into `programs`.
    pub fn start(programs: &Path) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let child = Command::new(programs.join("registry"))
            .args(["--address", &address])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("registry starts");
        let process = Guard(child);
        wait_for_listener("registry", &address);
        Self { _process: process, address }
    }
}

fn wait_for_listener(name: &str, address: &str) {
    let end = Instant::now() + Duration::from_secs(20);
    let socket: SocketAddr = address.parse().expect("an address");
    while TcpStream::connect_timeout(&socket, Duration::from_secs(1)).is_err() {
        assert!(Instant::now() < end, "{name} does not listen on {address}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Runs a program to its end and returns its output; panics with all it said if it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("the program starts");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// Copies an image between `transport:reference`s, as users do.
pub fn skopeo_copy(from: &str, to: &str, options: &[&str]) {
    run(Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet"])
        .args(options)
        .args([from, to]));
}
